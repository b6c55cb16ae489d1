// Between an adapter's factors, A (r, k) and B (d, r), and what the training graph is fed: A (r, k) and Bᵀ (r, d).

import type { Matrix } from '../base/tensor.js'
import type { LoraAdapter } from '../lora/adapter.js'

/** Which factor a parameter of the graph is. */
export interface FactorName {
  readonly layer: string
  readonly factor: 'A' | 'B'
}

/** The adapter's factors as the graph takes them, in the parameters' order. */
export function readFactors(adapter: LoraAdapter, parameters: readonly FactorName[]): Float32Array[] {
  return parameters.map(({ layer, factor }) => {
    const { weightA, weightB } = adapter.layer(layer)
    return factor === 'A' ? Float32Array.from(weightA.data) : (transposed(weightB).data as Float32Array)
  })
}

/** Replaces the adapter's factors. */
export function writeFactors(
  adapter: LoraAdapter,
  parameters: readonly FactorName[],
  values: readonly Float32Array[],
): void {
  parameters.forEach(({ layer: name, factor }, i) => {
    const layer = adapter.layer(name)
    if (factor === 'A') layer.weightA = { data: values[i].slice(), shape: [layer.rank, layer.k] }
    else layer.weightB = transposed({ data: values[i], shape: [layer.rank, layer.d] })
  })
}

/** (n, m) → (m, n), in f32. */
function transposed({ data, shape: [rows, columns] }: Matrix): Matrix {
  const result = new Float32Array(data.length)
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) result[column * rows + row] = data[row * columns + column]
  }
  return { data: result, shape: [columns, rows] }
}
