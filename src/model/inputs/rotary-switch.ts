// Long RoPE: onnxruntime-genai's builder writes an If that takes other cosines and sines once a run's length, cache and
// padding included, is over the length that the model was first trained on (Phi-3-128k, Phi-3.5, Phi-4-mini).

import type { NodeProto } from '../../onnx/format/tensors.js'
import type { Graph } from '../../onnx/view/graph.js'
import { scalarOf } from '../../onnx/view/patterns.js'

/**
 * Comparison → true if a length of exactly c tokens is still before the switch: first with the length on the left side
 * (`length > c`), then with the length on the right (`c > length`).
 */
const COMPARISONS: Readonly<Record<string, readonly [lengthFirst: boolean, constantFirst: boolean]>> = {
  Greater: [true, false],
  GreaterOrEqual: [false, true],
  Less: [false, true],
  LessOrEqual: [true, false],
}

/** Operators that a length is computed with, from the shape of an input or from positions. */
const OF_LENGTHS: ReadonlySet<string> = new Set([
  ...['Shape', 'Gather', 'Squeeze', 'Unsqueeze', 'Cast', 'Slice', 'Reshape', 'Identity'],
  ...['Add', 'Sub', 'Max', 'ReduceMax', 'ReduceSum'],
])

/** The lengths, in tokens, after which a graph computes other rotary values. Ascending; empty for most graphs. */
export function rotarySwitches(graph: Graph): number[] {
  const found = graph.nodes.flatMap((node) => {
    if (node.opType !== 'If' && node.opType !== 'Where') return []
    const condition = graph.producer(node.input[0])
    return (condition && lastLength(graph, condition)) ?? []
  })
  return [...new Set(found)].sort((a, b) => a - b)
}

/**
 * On which side of the switches a run of that length is: 0 for the near one. Texts are what they would be alone if all
 * rows of a run are on the side of their own lengths, and if a prompt's first run is on the side of its last one.
 */
export function sideOf(switches: readonly number[], length: number): number {
  return switches.filter((last) => length > last).length
}

/** Returns the largest length before the switch. */
function lastLength(graph: Graph, { opType, input: [a, b] }: NodeProto): number | undefined {
  const comparison = COMPARISONS[opType]
  if (comparison === undefined) return undefined
  const [first, second] = [scalarOf(graph, a), scalarOf(graph, b)]
  const [constant, length, isBefore] = second === undefined ? [first, b, comparison[1]] : [second, a, comparison[0]]
  if (constant === undefined || !isLength(graph, length)) return undefined
  return isBefore ? constant : constant - 1
}

function isLength(graph: Graph, value: string): boolean {
  const inputs = new Set(graph.inputs.map(({ name }) => name))
  let isOfInput = false
  for (const [made, node] of graph.madeOf([value])) {
    if (node === undefined) isOfInput ||= inputs.has(made)
    else if (node.opType !== 'Constant' && !OF_LENGTHS.has(node.opType)) return false
  }
  return isOfInput
}
