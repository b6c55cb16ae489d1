// Random numbers by sfc32 (Doty-Humphrey, PractRand). Each seed and stream name gives its own sequence, so drawing from
// one stream never changes another.

export class Random {
  #a: number
  #b: number
  #c: number
  #counter: number

  /** @param seed a safe integer: options and configs are checked before */
  constructor(seed: number, stream: string) {
    const hash = hashWords(`${seed}/${stream}`)
    this.#a = hash[0]
    this.#b = hash[1]
    this.#c = hash[2]
    this.#counter = 1
    // The author of sfc32 recommends 12 rounds before the first output, so that similar seeds diverge.
    for (let i = 0; i < 12; i++) this.uint32()
  }

  /** Draws an integer uniformly from [0, 2³²). */
  uint32(): number {
    const result = (((this.#a + this.#b) | 0) + this.#counter) | 0
    this.#counter = (this.#counter + 1) | 0
    this.#a = this.#b ^ (this.#b >>> 9)
    this.#b = (this.#c + (this.#c << 3)) | 0
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + result
    this.#c |= 0
    return result >>> 0
  }

  /** Draws a number uniformly from [0, 1), with 53 bits. */
  uniform(): number {
    return ((this.uint32() >>> 5) * 67108864 + (this.uint32() >>> 6)) / 9007199254740992
  }

  /** Draws a standard normal number (Box and Muller 1958). The second number that the method gives is not stored. */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform())
  }

  /** Draws an integer uniformly from [0, bound). */
  below(bound: number): number {
    return Math.floor(this.uniform() * bound)
  }

  /** Shuffles in place (Fisher–Yates). */
  shuffle<T, List extends { readonly length: number; [index: number]: T }>(items: List): List {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.below(i + 1)
      const item = items[i]
      items[i] = items[j]
      items[j] = item
    }
    return items
  }
}

/** Hashes a text with FNV-1a over UTF-16 units, with three offsets, each finished by the mixer of murmur3. */
function hashWords(text: string): [number, number, number] {
  return [0x811c9dc5, 0x9e3779b9, 0x85ebca6b].map((offset) => {
    let h = offset
    for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193)
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
    return h ^ (h >>> 16)
  }) as [number, number, number]
}
