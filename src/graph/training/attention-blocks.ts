// Attention of long texts in a Scan over blocks of queries, and its gradient in another, which computes the
// probabilities of a block again: Rabe & Staats (arXiv 2112.05682), FlashAttention-2 (arXiv 2307.08691). So no scores of
// all queries exist, and keys that no query of a block sees are not read.

import { copyMessage } from '../../formats/onnx/messages.js'
import { create } from '../../formats/onnx/protobuf.js'
import {
  DataType,
  type GraphProto,
  type NodeProto,
  NodeProtoSchema,
  type ValueInfoProto,
} from '../../formats/onnx/tensors.js'
import { scalarOf } from '../fuse/patterns.js'
import { buildBackward, type CustomGradients } from '../gradients/backward.js'
import { once, range } from '../gradients/context.js'
import { valueInfo } from '../inject/inject.js'
import { isStatic, type ProbedShape, ShapeMap } from '../shapes/shapes.js'
import { intAttribute } from '../view/attributes.js'
import { Builder, sharedValue, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

/** softmax(f(query·keys))·values, where f works on each score for itself. */
interface Attention {
  /** (…, S, d) */
  readonly query: Value
  /** (…, d, T) */
  readonly keys: Value
  /** (…, T, d) */
  readonly values: Value
  /** (…, S, d) */
  readonly output: Value
  /** From the product with the keys to that with the values. */
  readonly nodes: readonly NodeProto[]
  readonly softmax: NodeProto
  /** What the nodes read besides: masks, numbers. */
  readonly others: readonly Value[]
}

interface Options {
  /** Most queries of a block. */
  readonly rows: number
  readonly customGradients: CustomGradients
  /** The values through which gradients flow. */
  readonly onPath: ReadonlySet<Value>
}

const ON_SCORES = new Set(['Add', 'Cast', 'Div', 'Identity', 'IsNaN', 'Mul', 'Softmax', 'Sub', 'Tanh', 'Where'])

/** What adds less than this to a score hides its key. */
const HIDDEN = -5e4

export function attendInBlocks(graph: Graph, shapes: ShapeMap, options: Options): void {
  const found = graph.nodes.flatMap((node) => attentionAt(graph, shapes, options.onPath, node) ?? [])
  const g = new Builder(graph, 'attention')
  const shared = new Map<string, Value>()
  for (const attention of found) replace(g, shapes, attention, { ...options, shared })
}

function attentionAt(
  graph: Graph,
  shapes: ShapeMap,
  onPath: ReadonlySet<Value>,
  product: NodeProto,
): Attention | undefined {
  const [probabilities, values] = product.input
  if (product.opType !== 'MatMul' || !isSquare(shapes.get(probabilities))) return undefined
  const nodes = new Set([product])
  const others = new Set<Value>()
  const open = [probabilities]
  let scores: NodeProto | undefined
  for (let value = open.pop(); value !== undefined; value = open.pop()) {
    const maker = graph.producer(value)
    if (maker === undefined || nodes.has(maker)) continue
    nodes.add(maker)
    if (maker.opType === 'MatMul' && scores === undefined) {
      scores = maker
      continue
    }
    if (!ON_SCORES.has(maker.opType)) return undefined
    for (const input of maker.input) {
      const isInside = onPath.has(input) || graph.producer(input)?.opType === 'IsNaN'
      if (isInside) open.push(input)
      else others.add(input)
    }
  }
  const softmaxes = [...nodes].filter(({ opType }) => opType === 'Softmax')
  const last = (shapes.get(probabilities)?.dims.length ?? 0) - 1
  const isKnown = (value: Value) => shapes.has(value)
  const isOwn = (node: NodeProto) =>
    node === product || node.output.every((output) => graph.consumers(output).every((reader) => nodes.has(reader)))
  if (scores === undefined || softmaxes.length !== 1 || ![-1, last].includes(intAttribute(softmaxes[0], 'axis', -1)))
    return undefined
  const [query, keys] = scores.input
  if (![query, keys, values, ...others].every(isKnown) || ![...nodes].every(isOwn)) return undefined
  const [softmax] = softmaxes
  return { query, keys, values, output: product.output[0], nodes: [...nodes], softmax, others: [...others] }
}

/** (…, S, T) of texts of any length. */
function isSquare(shape: ProbedShape | undefined): boolean {
  return shape !== undefined && shape.dims.length > 2 && !isStatic(shape, -1) && !isStatic(shape, -2)
}

function grows(shape: ProbedShape, axis: number): boolean {
  return shape.dims.length >= -axis && !isStatic(shape, axis)
}

const zeros = (count: number) => Array<number>(count).fill(0)

function replace(
  g: Builder,
  shapes: ShapeMap,
  attention: Attention,
  { rows, customGradients, shared }: Options & { shared: Map<string, Value> },
): void {
  const { graph } = g
  const { query, keys, values, output, nodes } = attention
  const places = placesOf(g, shapes, attention, { rows, shared })
  graph.nodes = graph.nodes.filter((node) => !nodes.includes(node))
  graph.invalidate()
  const { dims } = shapes.get(output) as ProbedShape
  const axis = dims.length - 2
  const attributes = { num_scan_inputs: 1, scan_output_axes: [axis] }
  /** (…, blocks, rows, d) → (…, S, d) */
  const joined = (by: Builder, blocks: Value, width: number) => {
    const flat = by.reshape(blocks, by.int([...zeros(axis), -1, width]))
    return by.op('Slice', [flat, by.int([0]), by.length(query, axis), by.int([axis])])
  }
  const forward = new Block(graph, shapes, attention, (value) => value)
  forward.give(forward.filled(forward.inner(output)), shapes.get(output))
  const scan = g.node('Scan', [places], { body: forward.done(), ...attributes })
  const whole = joined(g, scan.output[0], dims[axis + 1])
  graph.setOutput(graph.producer(whole) as NodeProto, 0, output)

  customGradients.set(output, {
    inputs: [query, keys, values],
    rule: ({ g, dy }) => {
      const results = once(() => {
        // Of nodes of the backward pass, so that what they read can be computed again.
        const read = (value: Value) => sharedValue(shared, `again ${value}`, () => g.op('Identity', [value]))
        const block = new Block(graph, shapes, attention, read)
        block.giveGradients(dy)
        const sums = [keys, values].map((value) => g.expand(g.float(0), g.shape(read(value))))
        const node = g.node('Scan', [...sums, places], { body: block.done(), ...attributes }, 3)
        const [ofKeys, ofValues, ofQuery] = node.output
        return [joined(g, ofQuery, (shapes.get(query) as ProbedShape).dims[axis + 1]), ofKeys, ofValues]
      })
      return [0, 1, 2].map((i) => () => results()[i])
    },
  })
}

/** The body of a Scan: attention of the queries and keys of one place. */
class Block {
  readonly #attention: Attention
  readonly #shapes: ShapeMap
  readonly #read: (value: Value) => Value
  readonly #g: Builder
  readonly #inner = new Map<Value, Value>()
  /** Shapes of this graph's own values. */
  readonly #own = new ShapeMap()
  readonly #place: readonly Value[]

  constructor(outer: Graph, shapes: ShapeMap, attention: Attention, read: (value: Value) => Value) {
    const g = bodyBuilder(outer)
    const place = `${g.scope}/place`
    const { query, keys, values, nodes, others } = attention
    this.#attention = attention
    this.#shapes = shapes
    this.#read = read
    this.#g = g
    this.#place = g.node('Split', [place, g.int([1, 1, 1, 1])], { axis: 0 }, 4).output
    g.graph.inputs = [valueInfo(place, DataType.INT64, [4])]
    this.#put(query, this.#rows(read(query)))
    this.#put(keys, this.#seen(read(keys), -1))
    this.#put(values, this.#seen(read(values), -2))
    for (const value of others) this.#put(value, this.#part(value, outer))
    for (const node of nodes)
      for (const value of node.output) this.#put(value, g.graph.freshName(`${g.scope}/${value}`))
    for (const { name, opType, domain, input, output, attribute } of nodes) {
      const [inputs, outputs] = [input, output].map((all) => all.map((value) => this.inner(value)))
      const fresh = g.graph.freshName(`${g.scope}/${name}`)
      g.graph.add(create(NodeProtoSchema, { name: fresh, opType, domain, input: inputs, output: outputs, attribute }))
    }
  }

  inner(value: Value): Value {
    return this.#inner.get(value) ?? ''
  }

  #put(value: Value, name: Value): void {
    this.#inner.set(value, name)
    const shape = this.#shapes.get(value)
    if (shape !== undefined) this.#own.set(name, shape)
  }

  #rows(value: Value): Value {
    const [start, end] = this.#place
    return this.#g.op('Slice', [value, start, end, this.#g.int([-2])])
  }

  #seen(value: Value, axis: number): Value {
    const [, , first, last] = this.#place
    return this.#g.op('Slice', [value, first, last, this.#g.int([axis])])
  }

  #part(value: Value, outer: Graph): Value {
    const { graph, scope } = this.#g
    const shape = this.#shapes.get(value) as ProbedShape
    const tensor = scalarOf(outer, value) === undefined ? undefined : outer.constant(value)
    if (tensor !== undefined) {
      return graph.addInitializer(copyMessage(tensor, { name: graph.freshName(`${scope}/number`) }))
    }
    const rows = grows(shape, -2) ? this.#rows(this.#read(value)) : this.#read(value)
    return grows(shape, -1) ? this.#seen(rows, -1) : rows
  }

  /** The last block may have fewer rows than the others. */
  filled(value: Value): Value {
    const g = this.#g
    const [start, end] = this.#place
    const rank = (this.#shapes.get(this.#attention.output) as ProbedShape).dims.length
    const missing = g.sub(g.sub(end, start), g.length(value, rank - 2))
    return this.#padded(value, rank, -2, [g.int([0]), missing])
  }

  #padded(value: Value, rank: number, axis: number, [before, behind]: readonly [Value, Value]): Value {
    const g = this.#g
    const [others, between, rest] = [rank + axis, rank - 1, -1 - axis].map((count) => g.int(zeros(count)))
    return g.op('Pad', [value, g.concat([others, before, between, behind, rest], 0)])
  }

  give(name: Value, shape: ProbedShape | undefined): void {
    this.#g.graph.outputs.push(this.#declared(name, shape))
  }

  #declared(name: Value, shape: ProbedShape | undefined): ValueInfoProto {
    const dims = shape?.dims.map((dim, axis) => (isStatic(shape, axis) ? dim : `${name} ${axis}`))
    return valueInfo(name, DataType.FLOAT, dims)
  }

  /** The sums of the gradients by keys and by values, each with those of this block added, and its gradient by queries. */
  giveGradients(dy: Value): void {
    const g = this.#g
    const { graph } = g
    const { query, keys, values, output } = this.#attention
    const [, , first, last] = this.#place
    const wrt = [query, keys, values].map((value) => this.inner(value))
    const made = buildBackward(g, this.#own, new Map([[this.inner(output), this.#rows(dy)]]), wrt)
    graph.replaceUses(this.inner(output), this.#rows(this.#read(output)))
    for (const [value, axis] of [
      [keys, -1],
      [values, -2],
    ] as const) {
      const shape = this.#shapes.get(value) as ProbedShape
      const rank = shape.dims.length
      const sum = graph.freshName(`${g.scope}/sum`)
      graph.inputs.splice(-1, 0, this.#declared(sum, shape))
      const own = made.get(this.inner(value)) as Value
      const behind = g.sub(g.length(sum, rank + axis), last)
      this.give(g.add(sum, this.#padded(own, rank, axis, [first, behind])), shape)
    }
    this.give(this.filled(made.get(wrt[0]) as Value), this.#shapes.get(query))
  }

  done(): GraphProto {
    this.#g.graph.prune()
    return this.#g.graph.toModel().graph as GraphProto
  }
}

function bodyBuilder(outer: Graph): Builder {
  return new Builder(outer.newBody(), outer.freshName('attention/block'))
}

/** What is added to the scores before softmax: masks (…, S, T) or (…, 1, T). */
function masksOf(graph: Graph, shapes: ShapeMap, { softmax, nodes }: Attention): Value[] {
  const masks: Value[] = []
  let [scores] = softmax.input
  for (let node = graph.producer(scores); node?.opType === 'Add' && nodes.includes(node); ) {
    const isInside = (value: Value) => nodes.includes(graph.producer(value) as NodeProto)
    const [inside, mask] = isInside(node.input[0]) ? node.input : node.input.toReversed()
    if (grows(shapes.get(mask) as ProbedShape, -1) && !isInside(mask)) masks.push(mask)
    scores = inside
    node = graph.producer(scores)
  }
  return masks
}

/** int64 (blocks, 4): first query and the one behind the last, and the same for the keys that these queries see. */
function placesOf(
  g: Builder,
  shapes: ShapeMap,
  attention: Attention,
  { rows, shared }: { rows: number; shared: Map<string, Value> },
): Value {
  const { query, keys } = attention
  const { graph } = g
  const masks = masksOf(graph, shapes, attention)
  const axis = (value: Value, fromEnd: number) => (shapes.get(value) as ProbedShape).dims.length - fromEnd
  const lengthKey = [query, keys].map((value, i) => shapes.get(value)?.dims.at(i - 2))
  return sharedValue(shared, `places ${[...lengthKey, ...masks].join()}`, () => {
    const count = g.length(query, axis(query, 2))
    const ceil = (a: Value, b: Value) => g.div(g.sub(g.add(a, b), g.int([1])), b)
    const blocks = ceil(count, g.int([rows]))
    const size = ceil(count, blocks)
    const numbers = g.op('Range', [g.int(0), g.op('Squeeze', [blocks]), g.int(1)])
    const starts = g.unsqueeze(g.mul(numbers, size), [1])
    const bounds = g.concat([starts, g.add(starts, size)], 1)
    if (masks.length === 0) {
      const all = g.unsqueeze(g.concat([g.int([0]), g.length(keys, axis(keys, 1))], 0), [0])
      return g.concat([bounds, g.expand(all, g.concat([blocks, g.int([2])], 0))], 1)
    }
    const seen = g.op('Scan', [bounds], { body: seenBy(graph, shapes, masks), num_scan_inputs: 1 })
    return g.concat([bounds, seen], 1)
  })
}

/** From the bounds of a block's queries to those of the keys that one of them sees. */
function seenBy(outer: Graph, shapes: ShapeMap, masks: readonly Value[]): GraphProto {
  const g = bodyBuilder(outer)
  const { graph } = g
  const bounds = `${g.scope}/bounds`
  graph.inputs = [valueInfo(bounds, DataType.INT64, [2])]
  const [start, end] = g.node('Split', [bounds, g.int([1, 1])], { axis: 0 }, 2).output
  const shapeOf = (mask: Value) => shapes.get(mask) as ProbedShape
  const sum = masks
    .map((mask) => (grows(shapeOf(mask), -2) ? g.op('Slice', [mask, start, end, g.int([-2])]) : mask))
    .reduce(g.add)
  const rank = Math.max(...masks.map((mask) => shapeOf(mask).dims.length))
  const best = rank === 1 ? sum : g.reduceMax(sum, range(rank - 1), 0)
  const isSeen = g.cast(g.op('Greater', [best, g.float(HIDDEN)]), DataType.INT32)
  const first = g.op('ArgMax', [isSeen], { axis: 0 })
  const last = g.op('ArgMax', [isSeen], { axis: 0, select_last_index: 1 })
  graph.outputs = [valueInfo(g.concat([first, g.add(last, g.int([1]))], 0), DataType.INT64, [2])]
  return graph.toModel().graph as GraphProto
}
