// Puts LoRA beside lookups in embeddings, and lets trained rows take the place of the base's: all as graph inputs, for inference. Where
// rows of a batch have adapters of their own, tables stand under one another, and a token is looked up in the table of its row's slot.

import { TensorProto_DataType as DataType } from '../../formats/onnx/gen/onnx_pb.js'
import type { Embedding } from '../match/parameters.js'
import { Builder, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { valueInfo } from './inject.js'
import { type SiteNeeds, siteInput } from './sites.js'

/** The graph input, (1) or (rows, 1), that tells which table each row of the batch has; there where an embedding is adapted. */
export const SLOTS_INPUT = 'lora/slots'

/**
 * Adapts embeddings E (V, D) for inference. With t tables, 1 or one for each slot:
 *
 * - rowOf (t·V) in int64 and rows (m, D): a token x whose rowOf is not 0 gets this one of the rows in place of the base's
 * - scale, (D) or (rows, 1, D): multiplies them, for DoRA. B holds it as well
 * - A (t·V, r) and B (r, D) or (rows, r, D): A[x]·B is added
 *
 * @param needs what each module gets; those without an entry stay
 */
export function injectEmbeddings(graph: Graph, embeddings: readonly Embedding[], needs: SiteNeeds): void {
  const own = embeddings.filter(({ name }) => needs.has(name))
  if (own.length === 0) return
  const g = new Builder(graph, 'lora')
  graph.inputs.push(valueInfo(SLOTS_INPUT, DataType.INT64))
  for (const { name } of new Map(own.map((one) => [one.name, one])).values()) {
    for (const role of needs.get(name) ?? []) {
      graph.inputs.push(valueInfo(siteInput(name, role), role === 'rowOf' ? DataType.INT64 : DataType.FLOAT))
    }
  }
  for (const { name, node, last, vocabulary, dataType } of own) {
    const roles = needs.get(name)!
    const typed = (value: Value) => (dataType === DataType.FLOAT ? value : g.cast(value, dataType))
    const table = (role: 'A' | 'rows' | 'rowOf', index: Value) => g.op('Gather', [siteInput(name, role), index])
    const [output] = last.output
    let value = graph.freshName(`${output}/base`)
    graph.setOutput(last, 0, value)
    const offset = g.mul(SLOTS_INPUT, g.int(vocabulary))
    const token = g.add(g.cast(node.input[1], DataType.INT64), offset)
    if (roles.has('rowOf')) {
      const row = table('rowOf', token)
      const isKept = g.unsqueeze(g.op('Equal', [row, g.int(0)]), [-1])
      value = g.where(isKept, value, typed(table('rows', row)))
    }
    if (roles.has('scale')) value = g.mul(value, typed(siteInput(name, 'scale')))
    if (roles.has('A')) value = g.add(value, typed(g.matmul(table('A', token), siteInput(name, 'B'))))
    const maker = graph.producer(value)!
    graph.setOutput(maker, 0, output)
  }
}
