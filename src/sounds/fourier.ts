// The Fourier transform of short frames, of any length.

/** Transforms frames of one length, again and again. */
export class Fourier {
  readonly length: number
  readonly #cos: Float64Array
  readonly #sin: Float64Array
  readonly #real: Float64Array
  readonly #imaginary: Float64Array

  constructor(length: number) {
    this.length = length
    this.#cos = Float64Array.from({ length }, (_, i) => Math.cos((2 * Math.PI * i) / length))
    this.#sin = Float64Array.from({ length }, (_, i) => -Math.sin((2 * Math.PI * i) / length))
    // Each level of halves has a stretch of its own behind that of the whole.
    this.#real = new Float64Array(2 * length)
    this.#imaginary = new Float64Array(2 * length)
  }

  /** |X|² of the first length / 2 + 1 frequencies of a real frame. */
  power(frame: Float64Array, output: Float64Array): void {
    this.#transform(frame, { start: 0, stride: 1, count: this.length, at: 0 })
    for (let i = 0; i < output.length; i++) output[i] = this.#real[i] ** 2 + this.#imaginary[i] ** 2
  }

  /**
   * Transforms every `stride`-th number of the frame from `start` on, and writes from `at` on: even lengths in two
   * halves, odd ones by the sum itself.
   */
  #transform(
    frame: Float64Array,
    { start, stride, count, at }: { start: number; stride: number; count: number; at: number },
  ): void {
    const [cos, sin, real, imaginary] = [this.#cos, this.#sin, this.#real, this.#imaginary]
    if (count % 2 === 1) {
      for (let k = 0; k < count; k++) {
        let [re, im] = [0, 0]
        for (let i = 0, turn = 0; i < count; i++, turn = (turn + k) % count) {
          const value = frame[start + i * stride]
          re += value * cos[turn * stride]
          im += value * sin[turn * stride]
        }
        real[at + k] = re
        imaginary[at + k] = im
      }
      return
    }
    const half = count / 2
    const [even, odd] = [at + count, at + count + half]
    this.#transform(frame, { start, stride: 2 * stride, count: half, at: even })
    const evens = [real.slice(even, odd), imaginary.slice(even, odd)]
    this.#transform(frame, { start: start + stride, stride: 2 * stride, count: half, at: even })
    for (let k = 0; k < half; k++) {
      const [c, s] = [cos[k * stride], sin[k * stride]]
      const re = real[even + k] * c - imaginary[even + k] * s
      const im = real[even + k] * s + imaginary[even + k] * c
      real[at + k] = evens[0][k] + re
      imaginary[at + k] = evens[1][k] + im
      real[at + half + k] = evens[0][k] - re
      imaginary[at + half + k] = evens[1][k] - im
    }
  }
}
