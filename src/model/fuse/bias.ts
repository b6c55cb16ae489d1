// Turns the mask that attention adds to its scores into the bias of fused attention.

import type { NodeProto } from '../../onnx/format/tensors.js'
import { type Builder, sharedValue, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { dimensionOf, makerOf, scalarOf } from '../../onnx/view/patterns.js'
import { isCacheInput } from '../inputs/cache.js'
import { splitInputs } from '../inputs/roles.js'

/**
 * The number added to a hidden key's score: far below all scores, but finite, so that a row without keys is not NaN.
 */
const HIDDEN = -1e9

const PLACING = new Set(['Trilu', 'Div', 'Mod', 'BitShift'])
const ORDERS = new Set(['Less', 'LessOrEqual', 'Greater', 'GreaterOrEqual', 'Trilu'])

export interface Mask {
  /** The value to add, or a condition: true adds nothing, false a very low number. */
  readonly value: Value
  readonly isCondition: boolean
  readonly isCut: boolean
}

/**
 * Reads a mask. Returns undefined if it shows later tokens, because fused attention always hides them. `keys` are the
 * values that are as long as all keys.
 */
export function maskOf(graph: Graph, mask: Value, keys: ReadonlySet<Value>): Mask | undefined {
  let [value, isCut] = uncut(graph, mask, keys)
  const [condition, shown, hidden] = makerOf(graph, value, 'Where')?.input ?? []
  const isCondition =
    condition !== undefined && scalarOf(graph, shown) === 0 && (scalarOf(graph, hidden) ?? 0) <= HIDDEN
  if (isCondition && !isCut) [value, isCut] = uncut(graph, condition, keys)
  else if (isCondition) value = condition
  return hidesLaterTokens(graph, value) ? { value, isCondition, isCut } : undefined
}

function uncut(graph: Graph, value: Value, keys: ReadonlySet<Value>): [value: Value, isCut: boolean] {
  const node = makerOf(graph, value, 'Slice')
  if (node === undefined) return [value, false]
  const [whole, start, end, axes = '', steps = ''] = node.input
  const axis = scalarOf(graph, axes)
  const length = dimensionOf(graph, end)
  const isWhole = scalarOf(graph, start) === 0 && (steps === '' || scalarOf(graph, steps) === 1)
  const isLength = length !== undefined && keys.has(length.of) && (length.axis === 2 || length.axis === -2)
  return isWhole && isLength && (axis === 3 || axis === -1) ? [whole, true] : [value, false]
}

/** True if a mask compares places, and depends on nothing else than lengths, positions and padding. */
function hidesLaterTokens(graph: Graph, mask: Value): boolean {
  const { roles, others } = splitInputs(graph)
  const isRole = new Set(roles.flatMap(({ name, role }) => (role === 'tokenTypeIds' ? [] : [name])))
  const isPast = new Set(others.filter(isCacheInput).map(({ name }) => name))
  const isInput = new Set(graph.inputs.map(({ name }) => name))
  const isLength = ({ opType, input }: NodeProto) => opType === 'Shape' && isPast.has(input[0])
  let isOrdered = false
  for (const [value, node] of graph.madeOf([mask], (maker) => !isLength(maker))) {
    if (node === undefined && isInput.has(value) && !isRole.has(value)) return false
    if (node?.opType === 'Concat' && node.input.some((name) => isPast.has(name))) return false
    isOrdered ||= ORDERS.has(node?.opType ?? '')
  }
  return isOrdered
}

/**
 * True if a bias only hides later tokens and padding. False for windows and chunks, whose bounds depend on the position
 * of each key.
 */
export function isPlainBias(graph: Graph, bias: Value): boolean {
  const condition = makerOf(graph, bias, 'Where')?.input[0] ?? ''
  const made = Array.from(
    graph.madeOf([condition], ({ opType }) => opType !== 'Shape'),
    ([, node]) => node?.opType ?? '',
  )
  return made.filter((opType) => ORDERS.has(opType)).length === 1 && !made.some((opType) => PLACING.has(opType))
}

/** Appends the bias (batch or 1, heads or 1, sequence, total), shared by layers with the same mask. `total` is (1). */
export function addBias(
  g: Builder,
  { value, isCondition, isCut }: Mask,
  total: Value,
  shared: Map<string, Value>,
): Value {
  const whole = isCut
    ? sharedValue(shared, `cut of ${value}`, () => g.op('Slice', [value, g.int([0]), total, g.int([3])]))
    : value
  return sharedValue(shared, `bias of ${whole}`, () =>
    isCondition ? g.where(whole, g.float(0), g.float(HIDDEN)) : g.op('Max', [whole, g.float(HIDDEN)]),
  )
}
