// The forward pass of a linear layer that is not merged, and its gradients:
//   y = x·Wᵀ + s·(x'·Aᵀ·Bᵀ + b)                        x' is x after dropout, b a bias of B (Hu et al. 2021, arXiv 2106.09685)
//   y = x·Wᵀ + c ⊙ (x'·Wᵀ + s·x'·Aᵀ·Bᵀ) − x'·Wᵀ        with a magnitude m: c = m / ‖W + s·B·A‖ (Liu et al. 2024, arXiv 2402.09353)
// The order in the second formula is PEFT's: dropout also applies to the base's part of the difference. In the
// gradients, the norms count as constants (section 4.3 of Liu et al.).

import type { FloatArray, Matrix } from '../core/base/tensor.js'
import { addScaled, copyAs, product } from '../core/linalg/product.js'
import { scale } from './delta.js'

/** The tensors of a layer, in the base weight's precision. */
export interface PassWeights {
  /** (d, k) */
  readonly base: Matrix
  /** (r, k) */
  readonly weightA: Matrix
  /** (d, r) */
  readonly weightB: Matrix
  readonly scaling: number
  /** (d) */
  readonly biasB: FloatArray | undefined
}

/** The values of a forward pass that its backward pass needs. */
export interface Tape {
  /** The input of A (n, k). */
  readonly branch: Matrix
  /** Whether A and W have the same input. */
  readonly isShared: boolean
  /** True if there was dropout as well as a magnitude. */
  readonly hasDropped: boolean
  /** The product x'·Aᵀ (n, r), where x' is the input after dropout. */
  readonly hidden: Matrix
  /** If there is a magnitude: the outputs (n, d) that c multiplies, c, and the norms. */
  readonly dora: { readonly adapted: Matrix; readonly scales: Float64Array; readonly norms: Float64Array } | undefined
}

/** The gradients that a linear layer's `backward` returns. */
export interface LayerGradients {
  /** (r, k) */
  weightA: Matrix
  /** (d, r) */
  weightB: Matrix
  /** (n, k) */
  input: Matrix
  /** (d), if the layer has a magnitude. */
  magnitude?: FloatArray
  /** (d), if the layer has a bias of B. */
  biasB?: FloatArray
}

/**
 * Computes y (n, d). `base` is the input (n, k) of W, and `branch` the input of A. `dropped` is x' for the base's part
 * of the difference, if dropout makes it differ from `base`.
 */
export function forwardPass(
  weights: PassWeights,
  { base, branch, dropped }: { base: Matrix; branch: Matrix; dropped?: Matrix | undefined },
  /** m (d), and ‖W + s·B·A‖ (d), row by row. */
  dora: { readonly magnitude: FloatArray; readonly norms: Float64Array } | undefined,
): { output: Matrix; tape: Tape } {
  const { weightB, scaling, biasB } = weights
  const ofWeight = (x: Matrix) => product(x, weights.base, { transposeB: true }) // (n, k) @ (k, d) → (n, d)
  const hidden = product(branch, weights.weightA, { transposeB: true }) // (n, k) @ (k, r) → (n, r)
  const added = (addTo: Matrix) => product(hidden, weightB, { transposeB: true, scale: scaling, addTo }) // (n, r) @ (r, d)
  const kept = { branch, isShared: branch === base, hidden }
  const output = ofWeight(base)
  if (dora === undefined) {
    addBias(added(output), biasB, scaling)
    return { output, tape: { ...kept, hasDropped: false, dora } }
  }
  const { magnitude, norms } = dora
  const hasDropped = dropped !== undefined
  const frozen = hasDropped ? ofWeight(dropped) : output
  const adapted = added(copyAs(frozen, frozen.data))
  const scales = norms.map((norm, i) => magnitude[i] / norm)
  const scaled = scale(copyAs(adapted, adapted.data), 'columns', scales)
  const y = hasDropped ? addScaled(addScaled(output, frozen, -1), scaled, 1) : scaled
  return { output: y, tape: { ...kept, hasDropped, dora: { adapted, scales, norms } } }
}

/** Computes the gradients from dY (n, d). `branch` is undefined if its gradient is already included in `base`. */
export function backwardPass(weights: PassWeights, tape: Tape, dy: Matrix) {
  const { base, weightA, weightB, scaling, biasB } = weights
  const { dora } = tape
  const adapted = dora === undefined ? dy : scale(copyAs(dy, dy.data), 'columns', dora.scales)
  const hidden = product(adapted, weightB, { scale: scaling }) // (n, d) @ (d, r) → (n, r)
  const ofB = product(adapted, tape.hidden, { transposeA: true, scale: scaling }) // (d, n) @ (n, r) → (d, r)
  const input = product(tape.hasDropped ? dy : adapted, base) // (n, d) @ (d, k) → (n, k)
  const branch = product(hidden, weightA, tape.isShared ? { addTo: input } : {}) // (n, r) @ (r, k) → (n, k)
  return {
    weightA: product(hidden, tape.branch, { transposeA: true }), // (r, n) @ (n, k) → (r, k)
    weightB: ofB,
    magnitude: dora && columnSums(dy, (at, j) => dora.adapted.data[at] / dora.norms[j]),
    biasB: biasB && columnSums(dy, () => scaling),
    base: input,
    branch: tape.isShared ? undefined : branch,
    dropped: tape.hasDropped ? product(addScaled(adapted, dy, -1), base) : undefined,
  }
}

/** Adds s·b to the output in place. */
export function addBias({ data }: Matrix, biasB: FloatArray | undefined, scaling: number): void {
  if (biasB === undefined) return
  for (let at = 0; at < data.length; at++) data[at] += scaling * biasB[at % biasB.length]
}

/** Sums gradient · factor over each column, in f64. */
function columnSums(gradient: Matrix, factor: (at: number, column: number) => number): FloatArray {
  const { data, shape } = gradient
  const sums = new Float64Array(shape[1])
  for (let at = 0; at < data.length; at++) {
    const column = at % shape[1]
    sums[column] += data[at] * factor(at, column)
  }
  return data instanceof Float64Array ? sums : Float32Array.from(sums)
}
