// Losses over the vectors of a whole step, each with its gradient by every vector. They are computed here and not in
// the graph, because a vector is held against those of all other runs of the step (GradCache: Gao et al. 2021, arXiv
// 2101.06983).

/** Vectors of n texts, row-major (n, k). */
export interface Vectors {
  readonly data: Float32Array
  readonly width: number
}

export interface VectorLoss {
  readonly loss: number
  readonly gradients: Float32Array[]
}

/** Vectors scaled to length 1, in f64, with what a gradient by them has to pass. */
class Directions {
  readonly count: number
  readonly width: number
  readonly values: Float64Array
  readonly #norms: Float64Array

  constructor({ data, width }: Vectors) {
    this.width = width
    this.count = data.length / width
    this.values = new Float64Array(data.length)
    this.#norms = new Float64Array(this.count)
    for (let i = 0; i < this.count; i++) {
      let sum = 0
      for (let j = i * width; j < (i + 1) * width; j++) sum += data[j] * data[j]
      const norm = Math.max(Math.sqrt(sum), 1e-12)
      this.#norms[i] = norm
      for (let j = i * width; j < (i + 1) * width; j++) this.values[j] = data[j] / norm
    }
  }

  /** cos of row i and row j of another. */
  cosine(i: number, other: Directions, j: number): number {
    const { width } = this
    let sum = 0
    for (let k = 0; k < width; k++) sum += this.values[i * width + k] * other.values[j * width + k]
    return sum
  }

  /** gradient += scale · row j of another */
  add(gradient: Float64Array, i: number, other: Directions, j: number, scale: number): void {
    const { width } = this
    for (let k = 0; k < width; k++) gradient[i * width + k] += scale * other.values[j * width + k]
  }

  /** The gradient by the vectors themselves: (g − (g·u)·u) / ‖v‖ */
  backward(gradient: Float64Array): Float32Array {
    const { width, values } = this
    const result = new Float32Array(gradient.length)
    for (let i = 0; i < this.count; i++) {
      let along = 0
      for (let j = i * width; j < (i + 1) * width; j++) along += gradient[j] * values[j]
      for (let j = i * width; j < (i + 1) * width; j++) result[j] = (gradient[j] - along * values[j]) / this.#norms[i]
    }
    return result
  }
}

/**
 * Each text has to find its partner among those of all examples, and among the negatives: cross-entropy of cos /
 * temperature, as MultipleNegativesRankingLoss of sentence-transformers (scale = 1 / temperature).
 *
 * @param groups texts, partners, and negatives where there are some; each (n, k)
 * @param isSame whether a candidate is a second copy of what the text has to find, or of itself: it is no negative
 */
export function inBatchLoss(
  groups: readonly Vectors[],
  temperature: number,
  isSame: (text: number, candidate: number) => boolean = () => false,
): VectorLoss {
  const [texts, ...candidates] = groups.map((group) => new Directions(group))
  const gradients = groups.map(({ data }) => new Float64Array(data.length))
  const { count } = texts
  let loss = 0
  for (let i = 0; i < count; i++) {
    const logits = candidates.map((group, g) =>
      Float64Array.from({ length: count }, (_, j) => {
        const isLeftOut = (g > 0 || j !== i) && isSame(i, g * count + j)
        return isLeftOut ? Number.NEGATIVE_INFINITY : texts.cosine(i, group, j) / temperature
      }),
    )
    const most = Math.max(...logits.map((list) => list.reduce((a, b) => Math.max(a, b))))
    const sum = logits.reduce((total, list) => total + list.reduce((a, logit) => a + Math.exp(logit - most), 0), 0)
    loss += (most + Math.log(sum) - logits[0][i]) / count
    for (const [g, group] of candidates.entries()) {
      for (let j = 0; j < count; j++) {
        const probability = Math.exp(logits[g][j] - most) / sum
        const slope = (probability - (g === 0 && i === j ? 1 : 0)) / (count * temperature)
        if (slope === 0) continue
        texts.add(gradients[0], i, group, j, slope)
        group.add(gradients[g + 1], j, texts, i, slope)
      }
    }
  }
  return { loss, gradients: [texts, ...candidates].map((group, g) => group.backward(gradients[g])) }
}

/** CosineSimilarityLoss of sentence-transformers: the mean of (cos − score)². `scores`: one a pair. */
export function cosineLoss([first, second]: readonly Vectors[], scores: readonly number[]): VectorLoss {
  const [a, b] = [new Directions(first), new Directions(second)]
  const gradients = [new Float64Array(first.data.length), new Float64Array(second.data.length)]
  let loss = 0
  for (let i = 0; i < a.count; i++) {
    const difference = a.cosine(i, b, i) - scores[i]
    loss += (difference * difference) / a.count
    const slope = (2 * difference) / a.count
    a.add(gradients[0], i, b, i, slope)
    b.add(gradients[1], i, a, i, slope)
  }
  return { loss, gradients: [a.backward(gradients[0]), b.backward(gradients[1])] }
}

/** TripletLoss of sentence-transformers: the mean of max(0, cos(text, negative) − cos(text, partner) + margin). */
export function tripletLoss([first, second, third]: readonly Vectors[], margin: number): VectorLoss {
  const [a, p, n] = [first, second, third].map((group) => new Directions(group))
  const gradients = [first, second, third].map(({ data }) => new Float64Array(data.length))
  let loss = 0
  for (let i = 0; i < a.count; i++) {
    const excess = a.cosine(i, n, i) - a.cosine(i, p, i) + margin
    if (excess <= 0) continue
    loss += excess / a.count
    const slope = 1 / a.count
    a.add(gradients[0], i, n, i, slope)
    a.add(gradients[0], i, p, i, -slope)
    p.add(gradients[1], i, a, i, -slope)
    n.add(gradients[2], i, a, i, slope)
  }
  return { loss, gradients: [a, p, n].map((group, g) => group.backward(gradients[g])) }
}

export function cosineOf(a: Float32Array, b: Float32Array): number {
  let [dot, x, y] = [0, 0, 0]
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i]
    x += a[i] * a[i]
    y += b[i] * b[i]
  }
  return dot / Math.max(Math.sqrt(x * y), 1e-12)
}
