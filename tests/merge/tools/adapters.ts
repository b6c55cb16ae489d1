// Adapters with random factors, and their changes as plain matrices, computed by loops that share no code with the
// tools.

import { type FloatArray, LoraAdapter, type LoraConfigInput, type Tensor } from '../../../src/api/node.js'
import { Random } from '../../../src/core/base/random.js'
import { elementCount } from '../../../src/core/base/tensor.js'
import { configForLayer } from '../../../src/lora/config.js'

export const ALL = ['linear', 'other', 'embedding', 'convolution', 'groups', 'block.experts']

/** Makes an adapter with a layer of each kind, or of the named kinds. The convolution `groups` has 2 groups. */
export function randomAdapter(config: LoraConfigInput, seed: number, names: readonly string[] = ALL): LoraAdapter {
  const made = new LoraAdapter({
    targetModules: ['linear', 'other', 'embedding', 'convolution', 'groups'],
    targetParameters: ['block.experts'],
    ...config,
  })
  const random = new Random(seed, 'adapters')
  const tensor = (...shape: number[]): Tensor<FloatArray> => {
    return { data: Float32Array.from({ length: elementCount(shape) }, () => random.normal()), shape }
  }
  const matrix = (rows: number, columns: number) => ({ ...tensor(rows, columns), shape: [rows, columns] as const })
  for (const name of names) {
    const { rank } = configForLayer(made.config, name)
    if (name === 'linear') made.addFactors(name, matrix(rank, 14), matrix(11, rank))
    if (name === 'other') made.addFactors(name, matrix(rank, 9), matrix(20, rank))
    if (name === 'embedding') made.addEmbedding(name, matrix(rank, 17), matrix(8, rank))
    if (name === 'convolution') made.addConvolution(name, tensor(rank, 3, 2, 2), tensor(6, rank, 1, 1))
    if (name === 'groups' && rank % 2 === 0) made.addConvolution(name, tensor(rank, 4, 3), tensor(6, rank / 2, 1))
    if (name === 'block.experts') made.addExperts(name, matrix(rank * 2, 7), matrix(5, rank * 2))
  }
  return made
}

/**
 * The change s·B·A of each layer (d, k). Experts follow one another, and each group of a convolution has its own rows.
 */
export function changes(adapter: LoraAdapter): Map<string, { data: Float64Array; shape: number[] }> {
  const result = new Map<string, { data: Float64Array; shape: number[] }>()
  for (const part of adapter.parts('linear', 'embedding', 'convolution', 'parameter')) {
    const { weightA, weightB } = part.tensors
    const experts = part.kind === 'parameter' ? part.experts : 1
    const [rowsA, d] = [weightA.shape[0], weightB.shape[0]]
    const k = weightA.data.length / rowsA
    const columns = weightB.data.length / d
    const rank = columns / experts
    const groups = experts > 1 ? 1 : rowsA / columns
    const data = new Float64Array(experts * d * k)
    for (let e = 0; e < experts; e++) {
      for (let i = 0; i < d; i++) {
        const group = Math.floor(i / (d / groups))
        for (let j = 0; j < k; j++) {
          let sum = 0
          for (let p = 0; p < rank; p++) {
            const row = experts > 1 ? e * rank + p : group * rank + p
            const column = experts > 1 ? p * experts + e : p
            sum += weightB.data[i * columns + column] * weightA.data[row * k + j]
          }
          data[(e * d + i) * k + j] = part.scaling * sum
        }
      }
    }
    // PEFT stores the change of an embedding by rows, as (V, D).
    const isEmbedding = part.kind === 'embedding'
    result.set(part.name, isEmbedding ? { data: turned(data, d, k), shape: [k, d] } : { data, shape: [experts * d, k] })
  }
  return result
}

/** Σ weight·ΔW */
export function sumOf(inputs: readonly { adapter: LoraAdapter; weight: number }[]) {
  const result = new Map<string, { data: Float64Array; shape: number[] }>()
  for (const { adapter, weight } of inputs) {
    for (const [name, { data, shape }] of changes(adapter)) {
      const sum = result.get(name) ?? { data: new Float64Array(data.length), shape }
      data.forEach((value, i) => {
        sum.data[i] += weight * value
      })
      result.set(name, sum)
    }
  }
  return result
}

/** ‖got − expected‖/‖expected‖ */
export function distance(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (got.length !== expected.length) return Number.POSITIVE_INFINITY
  let [off, norm] = [0, 0]
  for (let i = 0; i < got.length; i++) {
    off += (got[i] - expected[i]) ** 2
    norm += expected[i] ** 2
  }
  return norm === 0 ? Math.sqrt(off) : Math.sqrt(off / norm)
}

function turned(data: Float64Array, rows: number, columns: number): Float64Array {
  return Float64Array.from(data, (_, at) => data[(at % rows) * columns + Math.floor(at / rows)])
}
