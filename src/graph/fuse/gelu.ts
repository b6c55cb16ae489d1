// GELU that an exporter wrote out, x·(1 + erf(x/√2))/2, as one operator: its gradient keeps x alone.

import type { NodeProto } from '../../formats/onnx/tensors.js'
import { Builder, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { bothWays, makerOf, onlyReader, scalarOf } from './patterns.js'

/** The last digits as float32. */
const TOLERANCE = 1e-6

export function fuseGelu(graph: Graph): void {
  const g = new Builder(graph, 'gelu')
  for (const node of graph.nodes.filter(({ opType }) => opType === 'Erf')) {
    const found = geluAround(graph, node)
    if (found === undefined) continue
    const value = g.op('com.microsoft:Gelu', [found.input])
    graph.replace(found.last, [value])
  }
  graph.requireOpset('com.microsoft', 1)
  graph.prune()
}

/** The x of x·(1 + erf(x/√2))/2 around an Erf, and the node that gives the whole. */
function geluAround(graph: Graph, erf: NodeProto): { input: Value; last: NodeProto } | undefined {
  const x = scaledInput(graph, erf.input[0])
  const sum = x === undefined ? undefined : onlyReader(graph, erf.output[0], 'Add')
  if (x === undefined || sum === undefined || !bothWays(sum).some(([, one]) => isAbout(graph, one, 1))) return undefined
  // The three factors of the whole are 1 + erf, x and ½, in any order.
  const product = onlyReader(graph, sum.output[0], 'Mul')
  const factor = bothWays(product).find(([a]) => a === sum.output[0])?.[1]
  if (product === undefined || factor === undefined) return undefined
  if (isHalfOf(graph, factor, x)) return { input: x, last: product }
  const last = onlyReader(graph, product.output[0], 'Mul')
  const rest = bothWays(last).find(([a]) => a === product.output[0])?.[1]
  if (last === undefined || rest === undefined) return undefined
  const isWhole = (factor === x && isAbout(graph, rest, 0.5)) || (rest === x && isAbout(graph, factor, 0.5))
  return isWhole ? { input: x, last } : undefined
}

/** The x of x/√2. */
function scaledInput(graph: Graph, value: Value): Value | undefined {
  const quotient = makerOf(graph, value, 'Div')
  if (quotient !== undefined) return isAbout(graph, quotient.input[1], Math.SQRT2) ? quotient.input[0] : undefined
  return bothWays(makerOf(graph, value, 'Mul')).find(([, scale]) => isAbout(graph, scale, Math.SQRT1_2))?.[0]
}

function isHalfOf(graph: Graph, value: Value, x: Value): boolean {
  return bothWays(makerOf(graph, value, 'Mul')).some(([a, half]) => a === x && isAbout(graph, half, 0.5))
}

function isAbout(graph: Graph, value: Value, expected: number): boolean {
  const scalar = scalarOf(graph, value)
  return scalar !== undefined && Math.abs(scalar / expected - 1) < TOLERANCE
}
