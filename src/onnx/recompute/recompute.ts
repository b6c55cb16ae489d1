// Saves memory by computing cheap values a second time for the backward pass instead of keeping them. A smallest cut
// chooses the values, as in PyTorch's partitioner (https://github.com/pytorch/functorch/pull/653).

import { copyMessage } from '../format/messages.js'
import type { NodeProto } from '../format/tensors.js'
import { GRADIENTS } from '../gradients/gradients.js'
import type { ProbedShape, ShapeMap } from '../shapes/shapes.js'
import { intAttribute } from '../view/attributes.js'
import type { Value } from '../view/builder.js'
import { type Graph, subgraphs } from '../view/graph.js'
import { operatorOf, PREDICATES } from '../view/operators.js'
import { FlowNetwork, SINK, SOURCE } from './min-cut.js'

/**
 * The price of keeping an element, if computing it again costs 1, fitted to measured times. With few tokens, kept
 * values are small compared with the weights.
 */
const COST_OF_KEEPING = { few: 4, many: 10 }
/** A batch with at most this many tokens counts as small. */
const FEW = 512
/** In long texts, the price per output of a layer that is wider than its input, such as the first layers of an MLP. */
const COST_OF_WIDENING = 4
/** Multiplications and additions that take as long as one element of a simple operator. */
const PRODUCTS_PER_ELEMENT = 32

const SMALL = 1024

const VIEWS = new Set(['Reshape', 'Flatten', 'Squeeze', 'Unsqueeze', 'Identity'])
const NOTHING: ProbedShape = { dims: [0], second: [0] }
const WEIGHTED = new Set(['Gemm', 'com.microsoft:MatMulNBits'])
const BATCHED_PRODUCTS = new Set(['MatMul', 'com.microsoft:FusedMatMul'])
const CHEAP = new Set([...Object.keys(GRADIENTS), ...PREDICATES].filter((operator) => operator !== 'Gemm'))

interface Sizes {
  /** Estimates the number of elements of a shape in a typical run. */
  readonly elements: (shape: ProbedShape) => number
  readonly tokens: number
  /** True if texts are so long that memory matters more than some products. */
  readonly isLong: boolean
}

/** Returns the original of each new value; adds their shapes to `shapes`. */
export function recompute(graph: Graph, shapes: ShapeMap, loss: Value, sizes: Sizes): ReadonlyMap<Value, Value> {
  graph.sort()
  const forward = new Set(Array.from(graph.madeOf([loss])).flatMap(([, maker]) => maker ?? []))
  const backward = graph.nodes.filter((node) => !forward.has(node))
  const again = chooseRecomputed(graph, shapes, forward, backward, sizes)
  const copies = new Map<NodeProto, NodeProto>()
  const originals = new Map<Value, Value>()
  const anew = (value: Value): Value => {
    const maker = graph.producer(value)
    if (maker === undefined || !again.has(storage(graph, value))) return value
    let copy = copies.get(maker)
    if (copy === undefined) {
      const fresh = (name: string) => (name === '' ? '' : graph.freshName(`again/${name}`))
      const [input, output] = [maker.input.map(anew), maker.output.map(fresh)]
      copy = copyMessage(maker, { name: fresh(maker.name || maker.output[0]), input, output })
      copies.set(maker, copy)
      for (const [i, output] of maker.output.entries()) {
        const shape = shapes.get(output)
        if (shape !== undefined) shapes.set(copy.output[i], shape)
        originals.set(copy.output[i], output)
      }
    }
    return copy.output[maker.output.indexOf(value)]
  }
  for (const node of backward) node.input = node.input.map(anew)
  // Before the backward pass, so that ONNX Runtime computes each copy right before it is read.
  const end = graph.nodes.indexOf(graph.producer(loss) as NodeProto) + 1
  graph.nodes = [...graph.nodes.slice(0, end), ...copies.values(), ...graph.nodes.slice(end)]
  graph.invalidate()
  return originals
}

/** Returns the value whose memory a view shares; for other values, the value. */
function storage(graph: Graph, value: Value): Value {
  let source = value
  for (let maker = graph.producer(source); maker !== undefined && VIEWS.has(maker.opType); ) {
    source = maker.input[0]
    maker = graph.producer(source)
  }
  return source
}

/** Chooses the values to compute again. A view counts as the value that it shows. */
function chooseRecomputed(
  graph: Graph,
  shapes: ShapeMap,
  forward: ReadonlySet<NodeProto>,
  backward: readonly NodeProto[],
  sizes: Sizes,
): Set<Value> {
  const { elements, tokens } = sizes
  const costOfKeeping = tokens > FEW ? COST_OF_KEEPING.many : COST_OF_KEEPING.few
  const network = new FlowNetwork()
  /** A value is kept if the cut separates its two vertices. */
  const vertices = new Map<Value, { computed: number; kept: number }>()
  const open: Value[] = []
  /** Returns undefined if the value is small, or in memory anyway. */
  const vertexOf = (value: Value) => {
    const source = storage(graph, value)
    const shape = shapes.get(source)
    const maker = graph.producer(source)
    if (shape === undefined || maker === undefined || !forward.has(maker) || elements(shape) < SMALL) return
    let vertex = vertices.get(source)
    if (vertex === undefined) {
      vertex = { computed: network.vertex(), kept: network.vertex() }
      vertices.set(source, vertex)
      network.edge(vertex.computed, vertex.kept, costOfKeeping * elements(shape))
      open.push(source)
    }
    return vertex
  }
  for (const value of new Set(backward.flatMap(({ input }) => input))) {
    const vertex = vertexOf(value)
    if (vertex !== undefined) network.edge(vertex.kept, SINK, Number.POSITIVE_INFINITY)
  }
  for (let value = open.pop(); value !== undefined; value = open.pop()) {
    const { computed } = vertices.get(value) as { computed: number }
    const maker = graph.producer(value) as NodeProto
    const cost = costOf(maker, shapes, sizes)
    network.edge(SOURCE, computed, cost)
    if (cost === Number.POSITIVE_INFINITY) continue
    for (const input of new Set(maker.input)) {
      const vertex = vertexOf(input)
      if (vertex !== undefined) network.edge(vertex.kept, computed, Number.POSITIVE_INFINITY)
    }
  }
  const behind = network.sinkSide()
  return new Set([...vertices].flatMap(([value, { computed }]) => (behind.has(computed) ? [value] : [])))
}

/** The cost of running a node again; infinite for most products with weights, which never run again. */
function costOf(node: NodeProto, shapes: ShapeMap, { elements, isLong }: Sizes): number {
  const operator = operatorOf(node)
  const [read, given] = [node.input[0], node.output[0]].map((value) => elements(shapes.get(value) ?? NOTHING))
  if (isLong && WEIGHTED.has(operator) && given > read) return COST_OF_WIDENING * given
  if (!CHEAP.has(operator) || subgraphs(node).length > 0) return Number.POSITIVE_INFINITY
  const sizes = [...node.input, ...node.output].map((value) => shapes.get(value))
  const largest = Math.max(...sizes.map((shape) => (shape === undefined ? 0 : elements(shape))))
  if (!BATCHED_PRODUCTS.has(operator)) return largest
  const [a, b, y] = sizes
  if (a === undefined || b === undefined || y === undefined || Math.min(a.dims.length, b.dims.length) < 3) {
    return Number.POSITIVE_INFINITY
  }
  const inner = a.dims.length - (intAttribute(node, 'transA', 0) === 1 ? 2 : 1)
  const length = elements({ dims: [a.dims[inner]], second: [a.second[inner]] })
  return elements(y) * Math.max(1, Math.ceil(length / PRODUCTS_PER_ELEMENT))
}
