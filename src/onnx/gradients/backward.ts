// Walks from a loss back to the trained tensors and appends their gradients. If several nodes read a value, or if it
// was broadcast, its gradients are summed. Only needed gradients are built.

import { UnsupportedError } from '../../core/base/errors.js'
import type { NodeProto } from '../format/tensors.js'
import type { ShapeMap } from '../shapes/shapes.js'
import { type Builder, sharedValue, type Value } from '../view/builder.js'
import { type Graph, readBy } from '../view/graph.js'
import { entryOf, listByOperator, operatorOf } from '../view/operators.js'
import { type GradientRule, sumTo } from './context.js'
import { BROADCASTING, GRADIENTS, NON_DIFFERENTIABLE } from './gradients.js'
import { PATTERNS, type PatternContext } from './pattern-gradients.js'

/** A gradient rule for a value that several nodes compute together, if their single rules would take more passes. */
export interface CustomGradient {
  /** The values whose gradients the rule gives, instead of the inputs of the last node. */
  readonly inputs: readonly Value[]
  readonly rule: GradientRule
}

/** The key is the first output of the last of these nodes. */
export type CustomGradients = Map<Value, CustomGradient>

export interface GradientPath {
  /** The nodes in the order of the graph. */
  readonly nodes: readonly NodeProto[]
  readonly values: ReadonlySet<Value>
}

/** Finds the path from the values `from`, whose gradients are given, back to `wrt`, even if nodes compute `wrt`. */
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
    const customGradient = custom.get(node.output[0])
    const read = customGradient?.inputs ?? readBy(node)
    if (NON_DIFFERENTIABLE.has(operatorOf(node)) || !read.some((input) => depends.has(input))) continue
    // The places that TopK gives are integers.
    const floats = node.opType === 'TopK' ? node.output.slice(0, 1) : node.output
    const outputs = floats.filter((output) => output !== '' && !ends.has(output))
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

/** Throws UnsupportedError naming every node on the path without a gradient rule, before anything is built. */
export function checkDifferentiable({ nodes }: GradientPath, custom: Readonly<CustomGradients> = new Map()): void {
  const refused = nodes
    .filter((node) => !custom.has(node.output[0]))
    .map((node) => [operatorOf(node), node] as const)
    .filter(([operator]) => !Object.hasOwn(GRADIENTS, operator))
  if (refused.length === 0) return
  throw new UnsupportedError({
    where: 'gradients',
    what: `no gradient through ${listByOperator(refused)}`,
    hint: 'Export the graph in another way, or ask only for gradients of values behind these nodes',
  })
}

/**
 * Appends the backward graph from `seeds` (value → its gradient). Returns the gradients of `wrt`, but none for values
 * that the seeds do not depend on.
 */
export function buildBackward(
  g: Builder,
  shapes: ShapeMap,
  seeds: ReadonlyMap<Value, Value>,
  wrt: readonly Value[],
  custom: Readonly<CustomGradients> = new Map(),
): Map<Value, Value> {
  const path = gradientPath(g.graph, wrt, seeds.keys(), custom)
  checkDifferentiable(path, custom)
  const sums = new GradientSums(g)
  const onPath = new Set(path.nodes)
  for (const [value, gradient] of seeds) sums.add(value, () => gradient)
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
      sums.add(input, thunk, g.graph.initializers.has(node.input[1]))
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
 * Sorts values by the node that first reads them. ONNX Runtime computes the last of the graph's outputs first, so in
 * this order it need not keep the values from which the gradients near the loss are computed.
 */
function inReadingOrder(graph: Graph, values: readonly Value[]): Value[] {
  const places = new Map<Value, number>()
  graph.nodes.forEach(({ input }, place) => {
    for (const value of input) if (!places.has(value)) places.set(value, place)
  })
  return values.toSorted((a, b) => (places.get(a) ?? 0) - (places.get(b) ?? 0))
}

class GradientSums {
  readonly #summands = new Map<Value, (() => Value)[]>()
  readonly #totals = new Map<Value, Value>()

  constructor(private readonly g: Builder) {}

  /** @param isFirst puts the summand first, so that small products are added to large ones and not the reverse */
  add(value: Value, summand: () => Value, isFirst = false): void {
    const others = this.#summands.get(value) ?? []
    this.#summands.set(value, isFirst ? [summand, ...others] : [...others, summand])
  }

  /** Returns the sum, which the first call builds, or undefined if the value has no gradient. */
  total(value: Value): Value | undefined {
    const summands = this.#summands.get(value)
    if (summands === undefined) return undefined
    return sharedValue(this.#totals, value, () => {
      return summands.reduce<Value | undefined>((sum, make) => this.#added(sum, make), undefined) as Value
    })
  }

  made(value: Value): Value | undefined {
    return this.#totals.get(value)
  }

  /** Adds a summand. If `make` appends a Gemm, the sum so far becomes its third input, which saves an Add. */
  #added(sum: Value | undefined, make: () => Value): Value {
    const { graph } = this.g
    const count = graph.nodes.length
    const value = make()
    if (sum === undefined) return value
    const product = graph.producer(value)
    const isNew = graph.nodes.length > count && product === graph.nodes.at(-1)
    const isProduct = product?.opType === 'Gemm' && product.input.length === 2
    if (!isNew || !isProduct || graph.producer(sum)?.opType !== 'Gemm') return this.g.add(sum, value)
    graph.setInputs(product, [...product.input, sum])
    return value
  }
}

function thunksOf(context: PatternContext): ReturnType<GradientRule> {
  const operator = operatorOf(context.node)
  const thunks = entryOf(PATTERNS, operator)?.(context) ?? GRADIENTS[operator](context)
  if (!BROADCASTING.has(operator)) return thunks
  const { g, shapes, inputs, outputs } = context
  const from = shapes.get(outputs[0])
  return thunks.map((thunk, i) => {
    const to = shapes.get(inputs[i])
    return thunk && from && to ? () => sumTo(g, thunk(), from, to) : thunk
  })
}
