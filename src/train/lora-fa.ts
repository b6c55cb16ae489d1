// LoRA-FA (Zhang et al. 2023, arXiv 2308.03303): A stays as it started, and only B learns. The backward pass then needs x·Aᵀ (rows, r) of a
// layer's input, and not the input itself.

import { F64, type Matrix, zeros } from '../base/tensor.js'
import { symmetricEigen } from '../linalg/eigen.js'
import { copyAs, product } from '../linalg/product.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { LoraLayer } from '../lora/layer.js'

/** What PEFT adds to the diagonal of A·Aᵀ. */
const DAMPING = 1e-8
/** Relative to the largest eigenvalue and the size: smaller ones count as zero, as torch.linalg.pinv takes them in float32. */
const CUTOFF = 2 ** -23

/**
 * By what the gradient of each Bᵀ (r, d) is multiplied from the left, (r, r): (A·Aᵀ)⁻¹/s². The change of B that is made then changes the weight
 * as nearly as B alone can to what the full gradient of the weight would change. PEFT does the same (optimizers/lorafa.py).
 *
 * @param names of the trained tensors: those that are no B have no factor
 */
export function gradientFactors(adapter: LoraAdapter, names: readonly string[]): (Float64Array | undefined)[] {
  return names.map((name) => {
    const layer = name.endsWith('.B') ? adapter.get(name.slice(0, -2)) : undefined
    return layer instanceof LoraLayer ? inverseSquare(layer.weightA, layer.scaling) : undefined
  })
}

function inverseSquare(weightA: Matrix, scaling: number): Float64Array {
  const a = copyAs(weightA, F64)
  const r = a.shape[0]
  const square = product(a, a, { transposeB: true }) // (r, k) @ (k, r)
  for (let i = 0; i < r; i++) square.data[i * r + i] += DAMPING
  const { values, vectors } = symmetricEigen(square)
  const scaled = zeros(r, r, F64)
  for (let i = 0; i < r; i++) {
    const inverse = values[i] > CUTOFF * r * values[0] ? 1 / (values[i] * scaling ** 2) : 0
    for (let j = 0; j < r; j++) scaled.data[i * r + j] = vectors.data[i * r + j] * inverse
  }
  return product(vectors, scaled, { transposeA: true }).data as Float64Array
}
