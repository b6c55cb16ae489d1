// The forward pass of a layer that is not merged, and its gradients; a convolution is the same over its windows as rows:
//   y = x·Wᵀ + s·(x'·Aᵀ·Bᵀ + b)                        x' is x after dropout, b a bias of B (Hu et al. 2021, arXiv 2106.09685)
//   y = x·Wᵀ + c ⊙ (x'·Wᵀ + s·x'·Aᵀ·Bᵀ) − x'·Wᵀ        with a magnitude m: c = m / ‖W + s·B·A‖ (Liu et al. 2024, arXiv 2402.09353)
// The second is PEFT's order: dropout is on the base's part of the difference, too. Norms count as constants in gradients (section
// 4.3 there).

import type { FloatArray, Matrix } from '../base/tensor.js'
import { scaleColumns } from './dora.js'
import { groupProduct, groupProductToLeft, groupProductToWeight } from './groups.js'
import { addScaled, copyAs, product } from './product.js'

/** Everything in the base weight's precision. */
export interface PassWeights {
  /** W (d, k/groups) */
  readonly base: Matrix
  /** A (r, k) */
  readonly weightA: Matrix
  /** B (d, r/groups) */
  readonly weightB: Matrix
  readonly scaling: number
  readonly groups: number
  /** b (d) */
  readonly biasB: FloatArray | undefined
}

/** m (d), and ‖W + s·B·A‖ (d), row by row. */
export interface Dora {
  readonly magnitude: FloatArray
  readonly norms: Float64Array
}

/** x as each part of the formula sees it, (n, k) each. */
export interface PassInputs {
  readonly base: Matrix
  /** What A sees. */
  readonly branch: Matrix
  /** x' for W, with dropout; undefined where that is `base`. */
  readonly dropped?: Matrix | undefined
}

/** What the forward pass leaves for the one back. */
export interface Tape {
  readonly branch: Matrix
  readonly hasDropped: boolean
  /** (n, r) */
  readonly hidden: Matrix
  /** With a magnitude: what c multiplies (n, d), c and the norms. */
  readonly dora: { readonly adapted: Matrix; readonly scales: Float64Array; readonly norms: Float64Array } | undefined
}

/** Gradients shaped like what they are of. */
export interface PassGradients {
  readonly weightA: Matrix
  readonly weightB: Matrix
  readonly magnitude: FloatArray | undefined
  readonly biasB: FloatArray | undefined
  readonly base: Matrix
  readonly branch: Matrix
  readonly dropped: Matrix | undefined
}

/** → y (n, d) */
export function forwardPass(
  { base, weightA, weightB, scaling, groups, biasB }: PassWeights,
  inputs: PassInputs,
  dora: Dora | undefined,
): { output: Matrix; tape: Tape } {
  const { branch, dropped } = inputs
  const hasDropped = dropped !== undefined
  const output = groupProduct(inputs.base, base, groups) // (n, k) @ (k, d) → (n, d)
  const hidden = product(branch, weightA, { transposeB: true }) // (n, k) @ (k, r) → (n, r)
  const addChange = (addTo: Matrix) => groupProduct(hidden, weightB, groups, { scale: scaling, addTo }) // (n, r) @ (r, d)
  if (dora === undefined) {
    addBias(addChange(output), biasB, scaling)
    return { output, tape: { branch, hidden, hasDropped, dora } }
  }
  const frozen = hasDropped ? groupProduct(dropped, base, groups) : output
  const adapted = addChange(copyAs(frozen, frozen.data))
  const scales = dora.norms.map((norm, i) => dora.magnitude[i] / norm)
  const scaled = scaleColumns(copyAs(adapted, adapted.data), scales)
  const tape = { branch, hidden, hasDropped, dora: { adapted, scales, norms: dora.norms } }
  return { output: hasDropped ? addScaled(addScaled(output, frozen, -1), scaled, 1) : scaled, tape }
}

/** From dY (n, d), for the weights that the forward pass had. */
export function backwardPass(
  { base, weightA, weightB, scaling, groups, biasB }: PassWeights,
  { branch, hidden, hasDropped, dora }: Tape,
  dy: Matrix,
): PassGradients {
  const dAdapted = dora === undefined ? dy : scaleColumns(copyAs(dy, dy.data), dora.scales)
  const dHidden = groupProductToLeft(dAdapted, weightB, groups, { scale: scaling }) // (n, d) @ (d, r) → (n, r)
  return {
    weightA: product(dHidden, branch, { transposeA: true }), // (r, n) @ (n, k) → (r, k)
    weightB: groupProductToWeight(dAdapted, hidden, groups, scaling), // (d, n) @ (n, r) → (d, r)
    magnitude: dora && columnSums(dy, (at, j) => dora.adapted.data[at] / dora.norms[j]),
    biasB: biasB && columnSums(dy, () => scaling),
    base: groupProductToLeft(hasDropped ? dy : dAdapted, base, groups), // (n, d) @ (d, k) → (n, k)
    branch: product(dHidden, weightA), // (n, r) @ (r, k) → (n, k)
    dropped: hasDropped && dora ? groupProductToLeft(addScaled(dAdapted, dy, -1), base, groups) : undefined,
  }
}

/** output += s·b, in place. */
export function addBias({ data }: Matrix, biasB: FloatArray | undefined, scaling: number): void {
  if (biasB === undefined) return
  for (let at = 0; at < data.length; at++) data[at] += scaling * biasB[at % biasB.length]
}

/** Σ factor ⊙ gradient over rows, in f64. */
function columnSums(gradient: Matrix, factor: (at: number, column: number) => number): FloatArray {
  const { data, shape } = gradient
  const sums = new Float64Array(shape[1])
  for (let at = 0; at < data.length; at++) {
    const column = at % shape[1]
    sums[column] += data[at] * factor(at, column)
  }
  return data instanceof Float64Array ? sums : Float32Array.from(sums)
}
