// The width of a value, as the graph tells it without being run.

import { dimsOf } from '../format/tensors.js'
import { intAttribute } from './attributes.js'
import type { Graph } from './graph.js'

const SAME_WIDTH = new Set(
  'RotaryEmbedding MRotaryEmbedding Add Cast Identity Mul Sub Div Neg Softplus Sigmoid Exp Clip LpNormalization'.split(
    ' ',
  ),
)

/** The length of the last axis of a value (B, T, …), as far as the graph tells. */
export function widthOf(graph: Graph, value: string): number | undefined {
  const declared = graph.declared(value)?.dims?.at(-1)
  const node = graph.producer(value)
  if (declared !== undefined || node === undefined) return declared
  if (node.opType === 'MatMul') {
    const weight = graph.constant(node.input[1])
    return weight === undefined ? undefined : dimsOf(weight).at(-1)
  }
  if (node.opType === 'MatMulNBits') return intAttribute(node, 'N', 0)
  if (node.opType === 'Reshape') {
    const last = graph.integers(node.input[1])?.at(-1)
    return last !== undefined && last > 0 ? last : undefined
  }
  if (node.opType === 'Split') {
    const sizes = graph.integers(node.input[1])
    return [-1, 2].includes(intAttribute(node, 'axis', 0)) ? sizes?.[node.output.indexOf(value)] : undefined
  }
  if (!SAME_WIDTH.has(node.opType)) return undefined
  const widths = node.input.flatMap((input) => widthOf(graph, input) ?? [])
  return widths.length === 0 ? undefined : Math.max(...widths)
}
