// Adds inputs for an adapter of each run, with the names that .onnx_adapter files use.

import { create } from '../../formats/onnx/protobuf.js'
import { byteLengthOf, TensorProtoSchema } from '../../formats/onnx/tensors.js'
import type { Linear } from '../match/linears.js'
import { Builder } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { valueInfo } from '../view/value-info.js'
import { adaptNodes } from './inject.js'

/**
 * Adds the inputs NAME.lora_A.weight (k, r) and NAME.lora_B.weight (r, d), which ONNX Runtime's LoraAdapter feeds. By
 * default they are zeros. Without `rank`, each run chooses it. Returns the names.
 */
export function addAdapterInputs(graph: Graph, linears: readonly Linear[], rank: number | undefined): string[] {
  const g = new Builder(graph, 'lora_inputs')
  const names = new Set<string>()
  const input = ({ name, dataType }: Linear, half: 'A' | 'B', dims: (number | string)[]): string => {
    const full = `${name}.lora_${half}.weight`
    if (names.has(full)) return full
    names.add(full)
    graph.inputs.push(valueInfo(full, dataType, dims))
    const shape = dims.map((dim) => (typeof dim === 'number' ? dim : 1))
    const rawData = new Uint8Array(byteLengthOf(dataType, shape)!)
    graph.addInitializer(create(TensorProtoSchema, { name: full, dataType, dims: shape.map(BigInt), rawData }))
    return full
  }
  adaptNodes(graph, g, linears, (linear, base) => {
    const r = rank ?? `${linear.name}.rank`
    const low = g.matmul(linear.input, input(linear, 'A', [linear.k, r]))
    const product = g.matmul(low, input(linear, 'B', [r, linear.d]))
    return base === undefined ? product : g.add(base, product)
  })
  return [...names]
}
