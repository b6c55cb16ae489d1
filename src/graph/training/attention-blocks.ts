// Attention of long texts in a Scan over blocks of queries, and its gradient in another, which computes the
// probabilities of a block again: Rabe & Staats (arXiv 2112.05682), FlashAttention-2 (arXiv 2307.08691). So the scores
// of all queries never exist together, and keys that no query of a block sees are not read.

import { copyMessage } from '../../formats/onnx/messages.js'
import { create } from '../../formats/onnx/protobuf.js'
import {
  DataType,
  type GraphProto,
  type NodeProto,
  NodeProtoSchema,
  type TensorProto,
} from '../../formats/onnx/tensors.js'
import { scalarOf } from '../fuse/patterns.js'
import { buildBackward, type CustomGradients } from '../gradients/backward.js'
import { once, range } from '../gradients/context.js'
import { valueInfo } from '../inject/inject.js'
import { isStatic, type ProbedShape, ShapeMap } from '../shapes/shapes.js'
import { Builder, sharedValue, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

/** softmax(f(query·keys))·values → output, where f works on each score for itself. */
interface Attention {
  /** (…, S, d), (…, d, T), (…, T, d) */
  readonly inputs: readonly [query: Value, keys: Value, values: Value]
  readonly output: Value
  /** From the product with the values back to that with the keys. */
  readonly nodes: readonly NodeProto[]
  /** Masks, and numbers, which have a tensor: the nodes read them too. */
  readonly others: ReadonlyMap<Value, TensorProto | undefined>
}

interface Parts {
  readonly graph: Graph
  readonly shapes: ShapeMap
  /** Most queries of a block. */
  readonly rows: number
  readonly customGradients: CustomGradients
  /** The values through which gradients flow. */
  readonly onPath: ReadonlySet<Value>
}

const ON_SCORES = new Set(['Add', 'Cast', 'Div', 'Identity', 'IsNaN', 'Mul', 'Softmax', 'Sub', 'Tanh', 'Where'])

/** A mask that adds less than this to a score hides its key. */
const HIDDEN = -5e4

export function attendInBlocks(parts: Parts): void {
  const { graph } = parts
  const found = graph.nodes.flatMap((node) => attentionAt(parts, node) ?? [])
  const g = new Builder(graph, 'attention')
  const shared = new Map<string, Value>()
  for (const attention of found) replace(g, parts, attention, shared)
}

function attentionAt({ graph, shapes, onPath }: Parts, product: NodeProto): Attention | undefined {
  const [probabilities, values] = product.input
  const shape = shapes.get(probabilities)
  if (product.opType !== 'MatMul' || !grows(shape, -1) || !grows(shape, -2)) return undefined
  const nodes = new Set([product])
  const others = new Map<Value, TensorProto | undefined>()
  const open = [probabilities]
  let scores: NodeProto | undefined
  for (let value = open.pop(); value !== undefined; value = open.pop()) {
    const maker = graph.producer(value)
    if (maker === undefined || nodes.has(maker)) continue
    nodes.add(maker)
    if (maker.opType === 'MatMul' && scores === undefined) scores = maker
    else if (!ON_SCORES.has(maker.opType)) return undefined
    else {
      for (const input of maker.input) {
        if (onPath.has(input) || graph.producer(input)?.opType === 'IsNaN') open.push(input)
        else others.set(input, scalarOf(graph, input) === undefined ? undefined : graph.constant(input))
      }
    }
  }
  const isRead = [...nodes].some(
    ({ output }) => output[0] !== product.output[0] && graph.consumers(output[0]).some((reader) => !nodes.has(reader)),
  )
  const softmaxes = [...nodes].filter(({ opType }) => opType === 'Softmax')
  if (scores === undefined || softmaxes.length !== 1 || isRead) return undefined
  const [query, keys] = scores.input
  if (![query, keys, values, ...others.keys()].every((value) => shapes.has(value))) return undefined
  return { inputs: [query, keys, values], output: product.output[0], nodes: [...nodes], others }
}

/** True for an axis whose length is that of texts. */
function grows(shape: ProbedShape | undefined, axis: number): boolean {
  return shape !== undefined && shape.dims.length >= -axis && !isStatic(shape, axis)
}

const zeros = (count: number) => Array<number>(count).fill(0)

function replace(g: Builder, parts: Parts, attention: Attention, shared: Map<string, Value>): void {
  const { graph, shapes, customGradients } = parts
  const { inputs, output, nodes } = attention
  const places = placesOf(g, parts, attention, shared)
  graph.nodes = graph.nodes.filter((node) => !nodes.includes(node))
  graph.invalidate()
  const axis = rankIn(shapes, output) - 2
  const attributes = { num_scan_inputs: 1, scan_output_axes: [axis] }
  /** (…, blocks, rows, d) → (…, S, d) */
  const joined = (by: Builder, blocks: Value, like: Value) => {
    const flat = by.reshape(blocks, by.int([...zeros(axis), -1, shapes.get(like)!.dims[axis + 1]]))
    return by.op('Slice', [flat, by.int([0]), by.length(inputs[0], axis), by.int([axis])])
  }
  const forward = new Block(graph, shapes, attention, (value) => value)
  forward.giveRows(forward.inner(output), output)
  const scan = g.node('Scan', [places], { body: forward.done(), ...attributes })
  graph.setOutput(graph.producer(joined(g, scan.output[0], output)) as NodeProto, 0, output)

  const rule: NonNullable<ReturnType<CustomGradients['get']>>['rule'] = ({ g, dy }) => {
    const results = once(() => {
      // These nodes are of the backward pass, so that what they read can be computed again.
      const read = (value: Value) => sharedValue(shared, `again ${value}`, () => g.op('Identity', [value]))
      const block = new Block(graph, shapes, attention, read)
      block.giveGradients(dy)
      const sums = inputs.slice(1).map((value) => g.expand(g.float(0), g.shape(read(value))))
      const node = g.node('Scan', [...sums, places], { body: block.done(), ...attributes }, 3)
      const [ofKeys, ofValues, ofQuery] = node.output
      return [joined(g, ofQuery, inputs[0]), ofKeys, ofValues]
    })
    return inputs.map((_, i) => () => results()[i])
  }
  customGradients.set(output, { inputs, rule })
}

function rankIn(shapes: ShapeMap, value: Value): number {
  return (shapes.get(value) as ProbedShape).dims.length
}

/** The body of a Scan: attention of the queries and keys of one place. */
class Block {
  readonly #g: Builder
  readonly #inner = new Map<Value, Value>()
  /** Shapes of the graph outside, and of this one. */
  readonly #shapes: readonly [ShapeMap, ShapeMap]
  /** The first query and the one behind the last, and the same of keys: vectors of one. */
  readonly #place: readonly Value[]

  constructor(
    outer: Graph,
    shapes: ShapeMap,
    private readonly attention: Attention,
    private readonly read: (value: Value) => Value,
  ) {
    const g = bodyBuilder(outer, 4)
    const { graph, scope } = g
    const { inputs, nodes, others } = attention
    this.#g = g
    this.#shapes = [shapes, new ShapeMap()]
    this.#place = g.node('Split', [graph.inputs[0].name, g.int([1, 1, 1, 1])], { axis: 0 }, 4).output
    inputs.forEach((value, i) => void this.#put(value, this.#cut(read(value), i === 0, -i)))
    for (const [value, number] of others) {
      const copy = number && graph.addInitializer(copyMessage(number, { name: graph.freshName(`${scope}/number`) }))
      const shape = shapes.get(value)
      this.#put(value, copy ?? this.#cut(read(value), grows(shape, -2), grows(shape, -1) ? -1 : 0))
    }
    for (const { output } of nodes) for (const value of output) this.#put(value, graph.freshName(`${scope}/${value}`))
    for (const { name, opType, domain, input, output, attribute } of nodes) {
      const [own, given] = [input, output].map((all) => all.map((value) => this.inner(value)))
      const fresh = graph.freshName(`${scope}/${name}`)
      graph.add(create(NodeProtoSchema, { name: fresh, opType, domain, input: own, output: given, attribute }))
    }
  }

  inner(value: Value): Value {
    return this.#inner.get(value) ?? ''
  }

  #put(value: Value, name: Value): void {
    this.#inner.set(value, name)
    const shape = this.#shapes[0].get(value)
    if (shape !== undefined) this.#shapes[1].set(name, shape)
  }

  /** The part of the block: its queries along the axis before the last, its keys along `keyAxis`. */
  #cut(value: Value, hasQueries: boolean, keyAxis?: number): Value {
    const g = this.#g
    const [start, end, first, last] = this.#place
    const cuts: (readonly [from: Value, to: Value, axis: number])[] = []
    if (hasQueries) cuts.push([start, end, -2])
    if (keyAxis) cuts.push([first, last, keyAxis])
    if (cuts.length === 0) return value
    const bounds = ([0, 1] as const).map((i) => cuts.map((cut) => cut[i]))
    return g.op('Slice', [value, ...bounds.map((of) => g.concat(of, 0)), g.int(cuts.map(([, , axis]) => axis))])
  }

  #padded(value: Value, rank: number, axis: number, [before, behind]: readonly [Value, Value]): Value {
    const g = this.#g
    const [others, between, rest] = [rank + axis, rank - 1, -1 - axis].map((count) => g.int(zeros(count)))
    return g.op('Pad', [value, g.concat([others, before, between, behind, rest], 0)])
  }

  #declared(name: Value, like: Value) {
    const shape = this.#shapes[0].get(like) as ProbedShape
    const dims = shape.dims.map((dim, axis) => (isStatic(shape, axis) ? dim : `${name} ${axis}`))
    return valueInfo(name, DataType.FLOAT, dims)
  }

  /** Gives (…, rows, d) out, with as many rows as the other blocks have. */
  giveRows(value: Value, like: Value): void {
    const g = this.#g
    const [start, end] = this.#place
    const rank = rankIn(this.#shapes[0], like)
    const missing = g.sub(g.sub(end, start), g.length(value, rank - 2))
    g.graph.outputs.push(this.#declared(this.#padded(value, rank, -2, [g.int([0]), missing]), like))
  }

  /** Gives the gradients by keys and by values out, added to those of the blocks before, and that by the queries. */
  giveGradients(dy: Value): void {
    const g = this.#g
    const { graph } = g
    const [, , first, last] = this.#place
    const { inputs, output } = this.attention
    const wrt = inputs.map((value) => this.inner(value))
    const seeds = new Map([[this.inner(output), this.#cut(dy, true)]])
    const made = buildBackward(g, this.#shapes[1], seeds, wrt)
    graph.replaceUses(this.inner(output), this.#cut(this.read(output), true))
    for (const i of [1, 2]) {
      const rank = rankIn(this.#shapes[0], inputs[i])
      const sum = graph.freshName(`${g.scope}/sum`)
      graph.inputs.splice(-1, 0, this.#declared(sum, inputs[i]))
      const behind = g.sub(g.length(sum, rank - i), last)
      const all = g.add(sum, this.#padded(made.get(wrt[i]) as Value, rank, -i, [first, behind]))
      graph.outputs.push(this.#declared(all, inputs[i]))
    }
    this.giveRows(made.get(wrt[0]) as Value, inputs[0])
  }

  done(): GraphProto {
    this.#g.graph.prune()
    return this.#g.graph.toModel().graph as GraphProto
  }
}

/** A graph that is given a vector of integers. */
function bodyBuilder(outer: Graph, length: number): Builder {
  const g = new Builder(outer.newBody(), outer.freshName('attention/block'))
  g.graph.inputs = [valueInfo(g.graph.freshName(`${g.scope}/place`), DataType.INT64, [length])]
  return g
}

/** Masks of keys: they are added to the scores right before softmax. */
function masksOf({ graph, shapes }: Parts, { nodes }: Attention): Value[] {
  const masks: Value[] = []
  const isInside = (value: Value) => nodes.includes(graph.producer(value) as NodeProto)
  const softmax = nodes.find(({ opType }) => opType === 'Softmax') as NodeProto
  let sum = graph.producer(softmax.input[0])
  while (sum?.opType === 'Add' && nodes.includes(sum)) {
    masks.push(...sum.input.filter((value) => !isInside(value) && grows(shapes.get(value), -1)))
    sum = graph.producer(sum.input.find(isInside) as Value)
  }
  return masks
}

/** int64 (blocks, 4): first query and the one behind the last, and the same for the keys that these queries see. */
function placesOf(g: Builder, parts: Parts, attention: Attention, shared: Map<string, Value>): Value {
  const { shapes, rows } = parts
  const [query, keys] = attention.inputs
  const masks = masksOf(parts, attention)
  const lengths = [shapes.get(query)?.dims.at(-2), shapes.get(keys)?.dims.at(-1)]
  return sharedValue(shared, `places ${[...lengths, ...masks].join()}`, () => {
    const count = g.length(query, rankIn(shapes, query) - 2)
    const ceil = (a: Value, b: Value) => g.div(g.sub(g.add(a, b), g.int([1])), b)
    const blocks = ceil(count, g.int([rows]))
    const size = ceil(count, blocks)
    const numbers = g.op('Range', [g.int(0), g.op('Squeeze', [blocks]), g.int(1)])
    const starts = g.unsqueeze(g.mul(numbers, size), [1])
    const bounds = g.concat([starts, g.add(starts, size)], 1)
    const body = masks.length === 0 ? undefined : seenBy(parts, masks)
    const all = () => g.concat([g.int([0]), g.length(keys, rankIn(shapes, keys) - 1)], 0)
    const seen = body ? g.op('Scan', [bounds], { body, num_scan_inputs: 1 }) : g.expand(all(), g.shape(bounds))
    return g.concat([bounds, seen], 1)
  })
}

/** From the bounds of a block's queries to those of the keys that one of them sees. */
function seenBy({ graph: outer, shapes }: Parts, masks: readonly Value[]): GraphProto {
  const g = bodyBuilder(outer, 2)
  const { graph } = g
  const [start, end] = g.node('Split', [graph.inputs[0].name, g.int([1, 1])], { axis: 0 }, 2).output
  const rowsOf = (mask: Value) => (grows(shapes.get(mask), -2) ? g.op('Slice', [mask, start, end, g.int([-2])]) : mask)
  const sum = masks.map(rowsOf).reduce(g.add)
  const rank = Math.max(...masks.map((mask) => rankIn(shapes, mask)))
  const best = rank === 1 ? sum : g.reduceMax(sum, range(rank - 1), 0)
  const isSeen = g.cast(g.op('Greater', [best, g.float(HIDDEN)]), DataType.INT32)
  const first = g.op('ArgMax', [isSeen], { axis: 0 })
  const last = g.op('ArgMax', [isSeen], { axis: 0, select_last_index: 1 })
  graph.outputs = [valueInfo(g.concat([first, g.add(last, g.int([1]))], 0), DataType.INT64, [2])]
  return graph.toModel().graph as GraphProto
}
