// The walk from a loss back to what is trained: which nodes lie on the way, whether each has a rule, and the gradients,
// summed where a value is read several times and summed down where it was broadcast. Only what is needed is built.

import { UnsupportedError } from '../../base/errors.js'
import { elementCount } from '../../base/tensor.js'
import type { NodeProto } from '../../formats/onnx/tensors.js'
import type { ShapeMap } from '../shapes/shapes.js'
import { type Builder, sharedValue, type Value } from '../view/builder.js'
import { type Graph, implicitInputs } from '../view/graph.js'
import { entryOf, listByOperator, operatorOf } from '../view/operators.js'
import {
  BROADCASTING,
  GRADIENTS,
  type GradientContext,
  type GradientRule,
  NON_DIFFERENTIABLE,
  sumTo,
} from './gradients.js'
import { type Contribution, joinSlices } from './join-slices.js'
import { PATTERNS, type PatternContext } from './pattern-gradients.js'

/** The gradient of a value that several nodes compute, where the rules of these nodes would take more passes. */
export interface CustomGradient {
  /** The values that it is computed from, in the place of its node's own inputs. */
  readonly inputs: readonly Value[]
  readonly rule: GradientRule
}

/** Custom gradients by value: the first output of its last node. */
export type CustomGradients = Map<Value, CustomGradient>

/** The nodes between what is trained and what it is trained for. */
export interface GradientPath {
  /** In the graph's order. */
  readonly nodes: readonly NodeProto[]
  /** Values that a gradient flows to. */
  readonly values: ReadonlySet<Value>
}

/**
 * @param wrt values whose gradients are wanted; the path ends at them even where they are computed
 * @param from values whose gradients are given
 */
export function gradientPath(
  graph: Graph,
  wrt: readonly Value[],
  from: Iterable<Value>,
  custom: Readonly<CustomGradients> = new Map(),
): GradientPath {
  graph.sort()
  const ends = new Set(wrt)
  const depends = new Set(wrt)
  const dependent: NodeProto[] = []
  for (const node of graph.nodes) {
    const own = custom.get(node.output[0])
    const isReader = own === undefined ? readsAny(node, depends) : own.inputs.some((input) => depends.has(input))
    if (NON_DIFFERENTIABLE.has(operatorOf(node)) || !isReader) continue
    const outputs = node.output.filter((output) => output !== '' && !ends.has(output))
    if (outputs.length === 0) continue
    dependent.push(node)
    for (const output of outputs) depends.add(output)
  }
  const values = new Set<Value>(from)
  const nodes: NodeProto[] = []
  for (const node of dependent.reverse()) {
    if (!node.output.some((output) => values.has(output) && !ends.has(output))) continue
    nodes.push(node)
    for (const input of inputsOf(node, custom)) if (depends.has(input)) values.add(input)
  }
  return { nodes: nodes.reverse(), values }
}

function inputsOf(node: NodeProto, custom: Readonly<CustomGradients>): readonly Value[] {
  return custom.get(node.output[0])?.inputs ?? node.input
}

function readsAny(node: NodeProto, values: ReadonlySet<Value>): boolean {
  return node.input.some((input) => values.has(input)) || implicitInputs(node).some((input) => values.has(input))
}

/**
 * Refuses a path that cannot be differentiated, before anything is built.
 *
 * @throws UnsupportedError naming every node on the path without a gradient rule
 */
export function checkDifferentiable({ nodes }: GradientPath, custom: Readonly<CustomGradients> = new Map()): void {
  const refused = nodes
    .filter((node) => !custom.has(node.output[0]))
    .map((node) => [operatorOf(node), node] as const)
    .filter(([operator]) => !Object.hasOwn(GRADIENTS, operator))
  if (refused.length === 0) return
  const hints = new Set(refused.flatMap(([operator]) => entryOf(HINTS, operator) ?? []))
  throw new UnsupportedError({
    where: 'training',
    what: `no gradient through ${listByOperator(refused)}`,
    hint:
      hints.size > 0
        ? [...hints].join('. ')
        : 'Export the model in another way, or adapt only layers behind these nodes',
  })
}

const QUANTIZED = 'Train on the float32 export of the model; the adapter also fits the quantized one'
const BRANCHES = 'Export the model without branches: a decoder with past that is not merged'

const HINTS: Readonly<Record<string, string>> = {
  'com.microsoft:MatMulNBits': QUANTIZED,
  'com.microsoft:DynamicQuantizeMatMul': QUANTIZED,
  DynamicQuantizeLinear: QUANTIZED,
  MatMulInteger: QUANTIZED,
  QuantizeLinear: QUANTIZED,
  If: BRANCHES,
  Loop: BRANCHES,
  Scan: BRANCHES,
}

export interface BackwardOptions {
  readonly custom?: Readonly<CustomGradients>
  /** A scalar that all gradients are multiplied by. Default: none. */
  readonly scale?: Value
}

/**
 * Appends the backward graph.
 *
 * @param seeds value → its gradient
 * @param wrt the values whose gradients are wanted
 * @returns the gradient of each of `wrt`, of its shape; none for a value that the seeds do not depend on
 * @throws UnsupportedError as {@link checkDifferentiable}
 */
export function buildBackward(
  g: Builder,
  shapes: ShapeMap,
  seeds: ReadonlyMap<Value, Value>,
  wrt: readonly Value[],
  { custom = new Map(), scale }: BackwardOptions = {},
): Map<Value, Value> {
  const path = gradientPath(g.graph, wrt, seeds.keys(), custom)
  checkDifferentiable(path, custom)
  const waist = scale === undefined ? undefined : narrowestWaist(path, [...seeds.keys()], shapes, custom)
  const sums = new GradientSums(g, shapes, waist === undefined || scale === undefined ? undefined : { waist, scale })
  const onPath = new Set(path.nodes)
  for (const [value, gradient] of seeds) {
    sums.add(value, { make: () => (scale === undefined || waist !== undefined ? gradient : g.mul(gradient, scale)) })
  }
  for (const node of path.nodes.toReversed()) {
    const dys = node.output.map((output) => (path.values.has(output) ? sums.total(output) : undefined))
    const dy = dys.find((gradient) => gradient !== undefined)
    if (dy === undefined) continue
    const context: PatternContext = {
      g,
      node,
      inputs: [...inputsOf(node, custom)],
      outputs: [...node.output],
      dys,
      dy,
      shapes,
      readers: (value) => g.graph.consumers(value).filter((reader) => onPath.has(reader)),
      gradientOf: (value) => sums.made(value),
    }
    const thunks = custom.get(node.output[0])?.rule(context) ?? thunksOf(context)
    thunks.forEach((thunk, i) => {
      const input = context.inputs[i]
      if (thunk === undefined || !path.values.has(input)) return
      sums.add(input, { make: thunk, slice: node.opType === 'Slice' ? { node, dy } : undefined })
    })
  }
  return new Map(
    inReadingOrder(g.graph, wrt).flatMap((value) => {
      const gradient = sums.total(value)
      return gradient === undefined ? [] : [[value, gradient] as const]
    }),
  )
}

/**
 * Values in the order in which nodes first read them. ONNX Runtime begins with the last node that nobody reads: with
 * the gradients nearest to the loss, so that it need not keep what they are made of until it has computed all others.
 */
function inReadingOrder(graph: Graph, values: readonly Value[]): Value[] {
  const places = new Map<Value, number>()
  graph.nodes.forEach(({ input }, place) => {
    for (const value of input) if (!places.has(value)) places.set(value, place)
  })
  return values.toSorted((a, b) => (places.get(a) ?? 0) - (places.get(b) ?? 0))
}

/**
 * The value with the fewest elements of those that all of the gradient passes, the seeds and scalars aside: where a
 * factor of all gradients costs least. Undefined if there is none.
 */
function narrowestWaist(
  path: GradientPath,
  seeds: readonly Value[],
  shapes: ShapeMap,
  custom: Readonly<CustomGradients>,
): Value | undefined {
  const open = new Set(seeds)
  let best: { value: Value; elements: number } | undefined
  for (const node of path.nodes.toReversed()) {
    if (!node.output.some((output) => open.has(output))) continue
    for (const output of node.output) open.delete(output)
    for (const input of inputsOf(node, custom)) if (path.values.has(input)) open.add(input)
    if (open.size > 1) continue
    const [value] = open
    const elements = elementCount(shapes.get(value)?.dims ?? [])
    if (elements > 1 && elements < (best?.elements ?? Number.POSITIVE_INFINITY)) best = { value, elements }
  }
  return best?.value
}

/** The gradients of values that are read several times: summands, and their sums where these were asked for. */
class GradientSums {
  readonly #g: Builder
  readonly #shapes: ShapeMap
  readonly #scaling: { readonly waist: Value; readonly scale: Value } | undefined
  readonly #summands = new Map<Value, Contribution[]>()
  readonly #totals = new Map<Value, Value>()

  constructor(g: Builder, shapes: ShapeMap, scaling: { waist: Value; scale: Value } | undefined) {
    this.#g = g
    this.#shapes = shapes
    this.#scaling = scaling
  }

  add(value: Value, contribution: Contribution): void {
    const summands = this.#summands.get(value)
    if (summands === undefined) this.#summands.set(value, [contribution])
    else summands.push(contribution)
  }

  /** The sum, built at the first call; undefined if there is nothing to sum. */
  total(value: Value): Value | undefined {
    const summands = this.#summands.get(value)
    if (summands === undefined) return undefined
    return sharedValue(this.#totals, value, () => {
      const sum = joinSlices(this.#g, this.#shapes, summands)
        .map(({ make }) => make())
        .reduce(this.#g.add)
      return value === this.#scaling?.waist ? this.#g.mul(sum, this.#scaling.scale) : sum
    })
  }

  /** The sum, if it was built. */
  made(value: Value): Value | undefined {
    return this.#totals.get(value)
  }
}

/** Thunks that give the gradient of each of a node's inputs, in that input's shape. */
function thunksOf(context: PatternContext): ReturnType<GradientRule> {
  const operator = operatorOf(context.node)
  const thunks = entryOf(PATTERNS, operator)?.(context) ?? GRADIENTS[operator](context)
  if (!BROADCASTING.has(operator)) return thunks
  return thunks.map((thunk, i) => thunk && (() => reduced(context, thunk(), context.inputs[i])))
}

function reduced({ g, shapes, outputs }: GradientContext, gradient: Value, input: Value): Value {
  const from = shapes.get(outputs[0])
  const to = shapes.get(input)
  return from === undefined || to === undefined ? gradient : sumTo(g, gradient, from, to)
}
