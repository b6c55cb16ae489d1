// Fuses GELU, by erf or by tanh(√(2/π)·(x + 0.044715·x³)), into one operator, whose gradient only needs to keep x.

import type { NodeProto } from '../../onnx/format/tensors.js'
import { Builder, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { bothWays, makerOf, onlyReader, scalarOf } from '../../onnx/view/patterns.js'

/** How far a constant may be off: constants in graphs are rounded to float32. */
const TOLERANCE = 1e-6

export function fuseGelu(graph: Graph): void {
  const g = new Builder(graph, 'gelu')
  for (const node of graph.nodes.filter(({ opType }) => opType === 'Erf' || opType === 'Tanh')) {
    const isErf = node.opType === 'Erf'
    const x = isErf ? scaledInput(graph, node.input[0]) : cubicInput(graph, node.input[0])
    const last = x === undefined ? undefined : geluAround(graph, node, x)
    if (x === undefined || last === undefined) continue
    const value = g.op(isErf ? 'com.microsoft:Gelu' : 'com.microsoft:FastGelu', [x])
    graph.replace(last, [value])
  }
  graph.requireOpset('com.microsoft', 1)
  graph.prune()
}

/** Returns the node that makes x·(1 + t)/2, if `node` makes t. */
function geluAround(graph: Graph, node: NodeProto, x: Value): NodeProto | undefined {
  const sum = onlyReader(graph, node.output[0], 'Add')
  if (sum === undefined || !bothWays(sum).some(([, term]) => isAbout(graph, term, 1))) return undefined
  // The factors 1 + t, x and ½ may come in any order.
  const product = onlyReader(graph, sum.output[0], 'Mul')
  const factor = bothWays(product).find(([a]) => a === sum.output[0])?.[1]
  if (product === undefined || factor === undefined) return undefined
  const halves = bothWays(makerOf(graph, factor, 'Mul'))
  if (halves.some(([a, half]) => a === x && isAbout(graph, half, 0.5))) return product
  const last = onlyReader(graph, product.output[0], 'Mul')
  const rest = bothWays(last).find(([a]) => a === product.output[0])?.[1]
  if (last === undefined || rest === undefined) return undefined
  const isWhole = (factor === x && isAbout(graph, rest, 0.5)) || (rest === x && isAbout(graph, factor, 0.5))
  return isWhole ? last : undefined
}

/** If a value is x/√2, returns x. */
function scaledInput(graph: Graph, value: Value): Value | undefined {
  const quotient = makerOf(graph, value, 'Div')
  if (quotient !== undefined) return isAbout(graph, quotient.input[1], Math.SQRT2) ? quotient.input[0] : undefined
  return bothWays(makerOf(graph, value, 'Mul')).find(([, scale]) => isAbout(graph, scale, Math.SQRT1_2))?.[0]
}

/** If a value is √(2/π)·(x + 0.044715·x³), returns x. */
function cubicInput(graph: Graph, value: Value): Value | undefined {
  const sum = bothWays(makerOf(graph, value, 'Mul')).find(([, scale]) => isAbout(graph, scale, Math.sqrt(2 / Math.PI)))
  for (const [x, term] of bothWays(makerOf(graph, sum?.[0] ?? '', 'Add'))) {
    const cube = bothWays(makerOf(graph, term, 'Mul')).find(([, scale]) => isAbout(graph, scale, 0.044715))?.[0] ?? ''
    const power = makerOf(graph, cube, 'Pow')
    if (power?.input[0] === x && isAbout(graph, power.input[1], 3)) return x
    const isSquare = (square: Value) => makerOf(graph, square, 'Mul')?.input.every((factor) => factor === x) === true
    if (bothWays(makerOf(graph, cube, 'Mul')).some(([a, square]) => a === x && isSquare(square))) return x
  }
  return undefined
}

function isAbout(graph: Graph, value: Value, expected: number): boolean {
  const scalar = scalarOf(graph, value)
  return scalar !== undefined && Math.abs(scalar / expected - 1) < TOLERANCE
}
