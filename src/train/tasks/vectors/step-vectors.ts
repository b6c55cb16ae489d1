// The vectors of a step, and the gradients of a loss over them. They are computed outside the graph because a loss
// compares vectors of different runs (GradCache: Gao et al. 2021, arXiv 2101.06983).

export class StepVectors {
  /** Examples of the step. */
  readonly count: number
  /** Texts of an example: 2 for a query and its document, 3 with a negative. */
  readonly groups: number
  /** Numbers of a vector that the loss sees. */
  readonly size: number
  readonly #width: number
  readonly #isScaled: boolean
  readonly #values: readonly Float64Array[]
  readonly #norms: readonly Float64Array[]
  readonly #gradients: readonly Float64Array[]

  /**
   * @param rows for each example the vectors (k) of its texts
   * @param size how many numbers of each vector count. Default: all
   * @param isScaled whether the loss sees vectors of length 1. Default true
   */
  constructor(rows: readonly (readonly Float32Array[])[], size = rows[0][0].length, isScaled = true) {
    this.count = rows.length
    this.groups = rows[0].length
    this.size = size
    this.#width = rows[0][0].length
    this.#isScaled = isScaled
    const arrays = (length: number) => Array.from({ length: this.groups }, () => new Float64Array(length))
    this.#values = arrays(this.count * size)
    this.#gradients = arrays(this.count * size)
    this.#norms = arrays(this.count)
    for (const [i, vectors] of rows.entries()) {
      for (const [group, vector] of vectors.entries()) {
        let sum = 0
        for (let k = 0; k < size; k++) sum += vector[k] * vector[k]
        const norm = isScaled ? Math.max(Math.sqrt(sum), 1e-12) : 1
        this.#norms[group][i] = norm
        for (let k = 0; k < size; k++) this.#values[group][i * size + k] = vector[k] / norm
      }
    }
  }

  /** Returns a vector as the loss sees it. */
  at(group: number, i: number): Float64Array {
    return this.#values[group].subarray(i * this.size, (i + 1) * this.size)
  }

  /** Where to add the derivative of the loss by {@link at}. */
  gradientAt(group: number, i: number): Float64Array {
    return this.#gradients[group].subarray(i * this.size, (i + 1) * this.size)
  }

  /** Returns the product of text `left` of example i with text `right` of example j: the cosine, if scaled. */
  product(left: number, i: number, right: number, j: number): number {
    const { size } = this
    const [a, b] = [this.#values[left], this.#values[right]]
    let sum = 0
    for (let k = 0, p = i * size, q = j * size; k < size; k++) sum += a[p + k] * b[q + k]
    return sum
  }

  /** Adds to the gradients what a product contributes. `slope` is the derivative of the loss by this product. */
  add(left: number, i: number, right: number, j: number, slope: number): void {
    const { size } = this
    const [a, b, da, db] = [this.#values[left], this.#values[right], this.#gradients[left], this.#gradients[right]]
    for (let k = 0, p = i * size, q = j * size; k < size; k++) {
      da[p + k] += slope * b[q + k]
      db[q + k] += slope * a[p + k]
    }
  }

  /** Adds the gradients for the whole unscaled vectors v to `sums`: (g − (g·u)·u) / ‖v‖ with u = v / ‖v‖ if scaled. */
  addGradients(sums: readonly (readonly Float64Array[])[]): void {
    for (const [group, vectors] of sums.entries()) {
      for (const [i, sum] of vectors.entries()) {
        const [direction, gradient] = [this.at(group, i), this.gradientAt(group, i)]
        const along = this.#isScaled ? gradient.reduce((total, value, k) => total + value * direction[k], 0) : 0
        const norm = this.#norms[group][i]
        for (let k = 0; k < this.size; k++) sum[k] += (gradient[k] - along * direction[k]) / norm
      }
    }
  }

  /** Makes zeros for {@link addGradients}: for each text of an example the vectors of all examples. */
  zeros(): Float64Array[][] {
    const vectors = () => Array.from({ length: this.count }, () => new Float64Array(this.#width))
    return Array.from({ length: this.groups }, vectors)
  }
}
