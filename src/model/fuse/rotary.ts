// Fuses rotary embeddings (Su et al. 2021, arXiv 2104.09864) into one RotaryEmbedding. The graph still computes the
// angles, so that every way of scaling them stays right.

import { type Builder, sharedValue, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { bothWays, concatenated, dimensionOf, makerOf, scalarOf, unsqueezed } from '../../onnx/view/patterns.js'

export interface Rotation {
  /** (batch, heads, sequence, size) */
  readonly x: Value
  /** (batch, sequence, size), whose halves are equal */
  readonly cos: Value
  readonly sin: Value
}

/** Finds the rotation that makes a value (batch, heads, sequence, size). */
export function rotationOf(graph: Graph, value: Value, size: number): Rotation | undefined {
  for (const [straight, turned] of bothWays(makerOf(graph, value, 'Add'))) {
    for (const [x, cos4] of bothWays(makerOf(graph, straight, 'Mul'))) {
      for (const [rotated, sin4] of bothWays(makerOf(graph, turned, 'Mul'))) {
        const cos = anglesOf(graph, cos4, 'Cos')
        const sin = anglesOf(graph, sin4, 'Sin')
        if (cos !== undefined && sin !== undefined && isHalfTurn(graph, rotated, x, size)) return { x, cos, sin }
      }
    }
  }
  return undefined
}

/** Returns the angles (batch, sequence, size) that become (batch, 1, sequence, size), if their halves are equal. */
function anglesOf(graph: Graph, value: Value, opType: 'Cos' | 'Sin'): Value | undefined {
  const angles = unsqueezed(graph, value, 1)
  return angles !== undefined && hasEqualHalves(graph, angles, opType) ? angles : undefined
}

function hasEqualHalves(graph: Graph, value: Value, opType: 'Cos' | 'Sin'): boolean {
  const node = graph.producer(value)
  if (node?.opType === opType) {
    const parts = concatenated(graph, node.input[0], [-1, 2])
    return parts?.length === 2 && parts[0] === parts[1]
  }
  if (node?.opType === 'Cast') return hasEqualHalves(graph, node.input[0], opType)
  if (node?.opType !== 'Mul') return false
  return bothWays(node).some(
    ([angles, factor]) => scalarOf(graph, factor) !== undefined && hasEqualHalves(graph, angles, opType),
  )
}

/** True if a value is (−x₂, x₁), with the halves of x. */
function isHalfTurn(graph: Graph, value: Value, x: Value, size: number): boolean {
  const parts = concatenated(graph, value, [-1, 3])
  const negated = parts?.length === 2 ? makerOf(graph, parts[0], 'Neg') : undefined
  if (parts === undefined || negated === undefined) return false
  const half = size / 2
  const [second, first] = [rangeOf(graph, negated.input[0], x, size), rangeOf(graph, parts[1], x, size)]
  return second?.from === half && second.to >= size && first?.from === 0 && first.to === half
}

function rangeOf(graph: Graph, value: Value, x: Value, size: number): { from: number; to: number } | undefined {
  const node = makerOf(graph, value, 'Slice')
  if (node?.input[0] !== x) return undefined
  const [, start, end, axes = '', steps = ''] = node.input
  const axis = scalarOf(graph, axes)
  const step = steps === '' ? 1 : scalarOf(graph, steps)
  const [from, to] = [placeOf(graph, start, x, size), placeOf(graph, end, x, size)]
  if ((axis !== 3 && axis !== -1) || step !== 1 || from === undefined || to === undefined) return undefined
  return { from, to }
}

/** Evaluates a constant, or half of the last axis of x. */
function placeOf(graph: Graph, value: Value, x: Value, size: number): number | undefined {
  const constant = graph.integers(value)
  if (constant !== undefined) return constant[0]
  const node = graph.producer(value)
  if (node?.opType === 'Unsqueeze' || node?.opType === 'Cast') return placeOf(graph, node.input[0], x, size)
  if (node?.opType !== 'Div' || scalarOf(graph, node.input[1]) !== 2) return undefined
  const dimension = dimensionOf(graph, node.input[0])
  return dimension?.of === x && (dimension.axis === 3 || dimension.axis === -1) ? size / 2 : undefined
}

/** Appends the rotation of x (batch, sequence, heads · size), or (batch, heads, sequence, size) with its `axes`. */
export function rotate(
  g: Builder,
  x: Value,
  { cos, sin }: Pick<Rotation, 'cos' | 'sin'>,
  size: number,
  shared: Map<string, Value>,
  axes: readonly [batch: number, sequence: number] = [0, 1],
): Value {
  const cacheOf = (angles: Value) =>
    sharedValue(shared, `half of ${angles}`, () => {
      const half = g.slice(angles, 0, size / 2, 2)
      return g.reshape(half, g.int([-1, size / 2]))
    })
  const places = sharedValue(shared, `places in ${cos}`, () => {
    const leading = g.slice(g.shape(cos), 0, 2, 0)
    const count = g.op('ReduceProd', [leading], { keepdims: 0 })
    const rows = g.reshape(g.op('Range', [g.int(0), count, g.int(1)]), leading)
    return g.expand(rows, g.op('Gather', [g.shape(x), g.int(axes)]))
  })
  return g.op('com.microsoft:RotaryEmbedding', [x, places, cacheOf(cos), cacheOf(sin)])
}
