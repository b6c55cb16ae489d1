// Keeps packed records in one row from seeing one another: fused attention gets a mask as its bias, other attention an
// Add before its Softmax.

import { UnsupportedError } from '../../core/base/errors.js'
import type { RoleInput } from '../../model/inputs/roles.js'
import { DataType, type NodeProto } from '../../onnx/format/tensors.js'
import { intAttribute } from '../../onnx/view/attributes.js'
import type { Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { labelOf, operatorOf } from '../../onnx/view/operators.js'
import type { ObjectiveGraph } from './objective-graph.js'

/** The number of each token's record, int32 (batch, sequence). */
export const RECORDS = 'packing/records'

/** Leaves no probability, but keeps sums of masks finite. */
const HIDDEN = -1e9

/** Operators with an input for a bias of the scores, (batch, 1, S, S), and its index. */
const BIAS_INPUTS: Readonly<Record<string, number>> = {
  'com.microsoft:GroupQueryAttention': 10,
  'com.microsoft:MultiHeadAttention': 5,
  'com.microsoft:Attention': 5,
  Attention: 3,
}

/** Other operators that mix tokens. */
const MIXES_TOKENS = /Attention|^(CausalConvWithState|GatedDeltaNet|Conv|Scan|Loop|LSTM|GRU|RNN|If)$/

/** Operators that may come between the probabilities of attention and their product with the values. */
const BEHIND_SOFTMAX = new Set(['Cast', 'Dropout', 'Identity', 'IsNaN', 'Where'])

/** Throws UnsupportedError if an operator cannot be masked, or if positions cannot restart with each record. */
export function separateRecords(objective: ObjectiveGraph, roles: readonly RoleInput[]): void {
  const { g, graph } = objective
  const fused = graph.nodes.filter((node) => operatorOf(node) in BIAS_INPUTS)
  const softmaxes = graph.nodes.filter((node) => node.opType === 'Softmax' && weighsValues(graph, node))
  const mixer = graph.nodes.find((node) => !fused.includes(node) && MIXES_TOKENS.test(node.opType))
  if (mixer !== undefined) throw refusal(labelOf(mixer), 'records in one row would see one another through it')
  if (fused.length + softmaxes.length === 0) throw refusal('ONNX model', 'no attention was found in it')
  checkPositions(fused, softmaxes, roles)
  const records = objective.input(RECORDS, DataType.INT32, ['batch', 'sequence'])
  const isSame = g.op('Equal', [g.unsqueeze(records, [1, 3]), g.unsqueeze(records, [1, 2])])
  const mask = g.where(isSame, g.float(0), g.float(HIDDEN)) // (batch, 1, S, S)
  for (const node of fused) addBias(objective, node, mask)
  for (const node of softmaxes) {
    const [scores] = node.input
    graph.setInputs(node, [g.add(scores, mask)])
    objective.check((shapeOf) => {
      const dims = shapeOf(scores)?.dims
      if (dims === undefined || dims.length === 4) return
      throw refusal(labelOf(node), `its scores have ${dims.length} axes, not (batch, heads, tokens, tokens)`)
    })
  }
}

function addBias({ g, graph }: ObjectiveGraph, node: NodeProto, mask: Value): void {
  const index = BIAS_INPUTS[operatorOf(node)]
  const inputs = [...node.input, ...Array<string>(Math.max(0, index + 1 - node.input.length)).fill('')]
  if (inputs[index] !== '' && operatorOf(node) === 'Attention') throw refusal(labelOf(node), 'it has a mask of its own')
  inputs[index] = inputs[index] === '' ? mask : g.add(inputs[index], mask)
  graph.setInputs(node, inputs)
}

/**
 * Positions restart with each record by position_ids, or do not matter if attention only uses distances (do_rotary).
 */
function checkPositions(fused: readonly NodeProto[], softmaxes: readonly NodeProto[], roles: readonly RoleInput[]) {
  const isRotated = fused.every((node) => intAttribute(node, 'do_rotary', 0) === 1) && softmaxes.length === 0
  if (isRotated || roles.some(({ role }) => role === 'positionIds')) return
  throw refusal('ONNX model', 'it takes no position_ids, so that positions cannot begin anew with each record')
}

/** True if a Softmax is the left factor of a product, as in attention. */
function weighsValues(graph: Graph, softmax: NodeProto): boolean {
  const open = [...softmax.output]
  const seen = new Set<Value>()
  for (let value = open.pop(); value !== undefined; value = open.pop()) {
    if (seen.has(value)) continue
    seen.add(value)
    for (const node of graph.consumers(value)) {
      if (node.opType === 'MatMul' && node.input[0] === value) return true
      if (BEHIND_SOFTMAX.has(node.opType)) open.push(...node.output)
    }
  }
  return false
}

function refusal(where: string, what: string): UnsupportedError {
  return new UnsupportedError({ where, what, hint: 'Train without packing' })
}
