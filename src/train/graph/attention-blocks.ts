// Computes attention of long texts in a Scan over blocks of queries, and its gradient in a second Scan that computes
// the probabilities again: Rabe & Staats (arXiv 2112.05682), FlashAttention-2 (arXiv 2307.08691). The scores of all
// queries never exist together, and keys that no query of a block sees are not read.

import { unrepeated } from '../../model/fuse/attention.js'
import { fuseTransposes } from '../../model/fuse/for-training.js'
import { DataType, type GraphProto, type NodeProto } from '../../onnx/format/tensors.js'
import { buildBackward, type CustomGradients } from '../../onnx/gradients/backward.js'
import { type GradientContext, once, range } from '../../onnx/gradients/context.js'
import { lastSwapped } from '../../onnx/gradients/matmul.js'
import { isStatic, mapShape, type ProbedShape, ShapeMap } from '../../onnx/shapes/shapes.js'
import { Builder, sharedValue, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { operatorOf } from '../../onnx/view/operators.js'
import { transposed } from '../../onnx/view/patterns.js'
import { valueInfo } from '../../onnx/view/value-info.js'

/** output = softmax(f(query·keysᵀ))·values, where f treats each score separately. */
interface Attention {
  /** (…, S, d) */
  readonly query: Value
  /** (…, T, d), before heads are repeated for the queries that share them. */
  readonly keys: Value
  readonly values: Value
  readonly output: Value
  readonly scores: Value
  /** The input of softmax. */
  readonly logits: Value
  readonly probabilities: Value
  /** The nodes between the two products, by their output. */
  readonly makers: ReadonlyMap<Value, NodeProto>
}

interface Parts {
  readonly graph: Graph
  readonly shapes: ShapeMap
  /** The largest number of queries in a block. */
  readonly rows: number
  readonly customGradients: CustomGradients
  /** The values through which gradients flow. */
  readonly onPath: ReadonlySet<Value>
}

const ON_SCORES = new Set(['Add', 'Cast', 'Div', 'Identity', 'IsNaN', 'Mul', 'Softmax', 'Sub', 'Tanh', 'Where'])

/** A key is hidden if a mask adds less than this to its score. */
const HIDDEN = -5e4

export function attendInBlocks(parts: Parts): void {
  const { graph } = parts
  const g = new Builder(graph, 'attention')
  const found = [...graph.nodes].flatMap((node) => attentionAt(g, parts, node) ?? [])
  const shared = new Map<string, Value>()
  for (const attention of found) replace(g, parts, attention, shared)
}

function attentionAt(g: Builder, parts: Parts, product: NodeProto): Attention | undefined {
  const { graph, shapes, onPath } = parts
  const [probabilities, ofValues] = product.input
  const shape = shapes.get(probabilities)
  if (product.opType !== 'MatMul' || !grows(shape, -1) || !grows(shape, -2)) return undefined
  const makers = new Map<Value, NodeProto>()
  const others = new Set<Value>()
  const open = [probabilities]
  let scores: NodeProto | undefined
  for (let value = open.pop(); value !== undefined; value = open.pop()) {
    const maker = graph.producer(value)
    if (maker === undefined || maker === scores || makers.has(value)) continue
    if (maker.opType === 'MatMul' && scores === undefined) scores = maker
    else if (!ON_SCORES.has(maker.opType)) return undefined
    else {
      makers.set(value, maker)
      for (const input of maker.input) {
        if (onPath.has(input) || graph.producer(input)?.opType === 'IsNaN') open.push(input)
        else others.add(input)
      }
    }
  }
  const softmaxes = [...makers.values()].filter(({ opType }) => opType === 'Softmax')
  if (scores === undefined || softmaxes.length !== 1) return undefined
  const nodes = new Set([product, scores, ...makers.values()])
  const isRead = [...makers.keys(), scores.output[0]].some((value) =>
    graph.consumers(value).some((reader) => !nodes.has(reader)),
  )
  const [query, ofKeys] = scores.input
  if (isRead || ![query, ofKeys, ofValues, ...others].every((value) => shapes.has(value))) return undefined
  const swap = lastSwapped(rankIn(shapes, ofKeys))
  const turned = transposed(graph, ofKeys, swap) ?? g.transpose(ofKeys, swap)
  const turn = (dims: readonly number[]) => swap.map((axis) => dims[axis])
  shapes.set(turned, mapShape(shapes.get(ofKeys) as ProbedShape, turn))
  const [keys, values] = [turned, ofValues].map((value) => unrepeatedHeads(parts, value, query))
  if (keys === undefined || values === undefined || headsOf(shapes, keys) !== headsOf(shapes, values)) return undefined
  const [logits] = softmaxes[0].input
  return { query, keys, values, output: product.output[0], scores: scores.output[0], logits, probabilities, makers }
}

/** Returns keys or values before heads are repeated; undefined if they differ from the query in other leading axes. */
function unrepeatedHeads({ graph, shapes }: Parts, value: Value, query: Value): Value | undefined {
  const of = shapes.get(query) as ProbedShape
  const rank = of.dims.length
  return [unrepeated(graph, value), value].find((candidate) => {
    const shape = shapes.get(candidate)
    if (shape?.dims.length !== rank) return false
    return range(rank - 2).every((axis) => {
      const isSame = of.dims[axis] === shape.dims[axis] && of.second[axis] === shape.second[axis]
      const isShared = axis === rank - 3 && isStatic(of, axis) && isStatic(shape, axis)
      return isSame || (isShared && of.dims[axis] % shape.dims[axis] === 0)
    })
  })
}

/** Returns the number of heads, or undefined if there is no such axis. */
function headsOf(shapes: ShapeMap, value: Value): number | undefined {
  return shapes.get(value)?.dims.at(-3)
}

/** True if the length of an axis depends on the texts. */
function grows(shape: ProbedShape | undefined, axis: number): boolean {
  return shape !== undefined && shape.dims.length >= -axis && !isStatic(shape, axis)
}

const zeros = (count: number) => Array<number>(count).fill(0)

function replace(g: Builder, parts: Parts, attention: Attention, shared: Map<string, Value>): void {
  const { graph, shapes, customGradients } = parts
  const { query, keys, values, output, scores, makers } = attention
  const places = placesOf(g, parts, attention, shared)
  const replaced = new Set([output, scores, ...makers.keys()])
  graph.nodes = graph.nodes.filter((node) => !replaced.has(node.output[0]))
  graph.invalidate()
  const axis = rankIn(shapes, output) - 2
  // Backwards: the last block usually sees most keys, so that its memory has room for the scores of all others.
  const directions = { scan_input_directions: [1], scan_output_directions: [1] }
  const attributes = { num_scan_inputs: 1, scan_output_axes: [axis], ...directions }
  /** (…, blocks, rows, d) → (…, S, d) */
  const joined = (by: Builder, blocks: Value, queries: Value, like: Value) => {
    const flat = by.reshape(blocks, by.int([...zeros(axis), -1, shapes.get(like)!.dims[axis + 1]]))
    return by.op('Slice', [flat, by.int([0]), by.length(queries, axis), by.int([axis])])
  }
  const inputs = [query, keys, values]
  const [result] = overHeads(g, shapes, attention, inputs, (by, part) => {
    const body = new Block(by, shapes, part, (value) => value).forward()
    const scan = by.node('Scan', [places], { body, ...attributes })
    return [joined(by, scan.output[0], part.query, values)]
  })
  graph.setOutput(graph.producer(result) as NodeProto, 0, output)

  const rule = ({ g, dy }: GradientContext) => {
    const results = once(() => {
      // Copies that belong to the backward pass, so that their values can be recomputed.
      const read = (value: Value) => sharedValue(shared, `again ${value}`, () => g.op('Identity', [value]))
      const given = [...inputs.map(read), dy, output]
      for (const [i, like] of [...inputs, output].entries()) shapes.set(given[i], shapes.get(like) as ProbedShape)
      return overHeads(g, shapes, attention, given, (by, part, [, , , dy, o]) => {
        // The product dy·vᵀ also subtracts Σ dy·o, by a last column of dy and a last column of ones of v.
        const slope = by.concat([dy, by.neg(by.reduceSum(by.mul(dy, o), [-1]))], -1)
        const ones = by.op('Pad', [part.values, by.int([...zeros(2 * axis + 3), 1]), by.float(1)])
        const body = new Block(by, shapes, part, read).backward(ones, slope)
        const sums = [part.keys, part.values].map((value) => by.expand(by.float(0), by.shape(value)))
        const [ofKeys, ofValues, ofQuery] = by.node('Scan', [...sums, places], { body, ...attributes }, 3).output
        return [joined(by, ofQuery, part.query, query), ofKeys, ofValues]
      })
    })
    return inputs.map((_, i) => () => results()[i])
  }
  customGradients.set(output, { inputs, rule })
}

/**
 * Calls `build`, if possible in a Scan over the heads of keys, so that a block's scores fit into a processor's cache.
 * The first inputs and the results have the shapes of query, keys and values.
 */
function overHeads(
  g: Builder,
  shapes: ShapeMap,
  attention: Attention,
  inputs: readonly Value[],
  build: (g: Builder, attention: Attention, inputs: readonly Value[]) => Value[],
): Value[] {
  const { query, keys, values, output, scores, makers } = attention
  const shapeOf = (value: Value) => shapes.get(value) as ProbedShape
  const of = ([query, keys, values]: readonly Value[]) => ({ ...attention, query, keys, values })
  const axis = rankIn(shapes, query) - 3
  const count = headsOf(shapes, keys) ?? 1
  const isForAll = (value: Value) => value === scores || makers.has(value) || (headsOf(shapes, value) ?? 1) === 1
  const areAlike = [...makers.values()].every(({ input }) => input.every(isForAll))
  if (count === 1 || !areAlike || !isStatic(shapeOf(keys), axis)) return build(g, of(inputs), inputs)
  const by = new Builder(g.graph.newBody(), g.graph.freshName(`${g.scope}/head`))
  const names = inputs.map((input) => {
    const name = by.graph.freshName(`${by.scope}/of`)
    const shape = mapShape(shapeOf(input), (dims) => dims.with(axis, dims[axis] / count))
    shapes.set(name, shape)
    return name
  })
  const results = build(by, of(names), names)
  by.graph.inputs = names.map((name) => declared(name, axis + 3))
  by.graph.outputs = results.map((name) => declared(name, axis + 3))
  const [scan_input_axes, scan_output_axes] = [names, results].map((of) => of.map(() => axis))
  const body = by.graph.toModel().graph as GraphProto
  const attributes = { body, num_scan_inputs: names.length, scan_input_axes, scan_output_axes }
  const reshaped = (value: Value, like: Value, partsOf: (heads: number) => number[]) => {
    const { dims } = shapeOf(like)
    return g.reshape(value, g.int([...zeros(axis), ...partsOf(dims[axis]), -1, dims[axis + 2]]))
  }
  const parted = inputs.map((input) => reshaped(input, input, (heads) => [count, heads / count]))
  const likes = results.length === 1 ? [output] : [query, keys, values]
  const scan = g.node('Scan', parted, attributes, results.length)
  return scan.output.map((value, i) => reshaped(value, likes[i], (heads) => [heads]))
}

/** Declares a value with this number of axes. */
function declared(name: Value, rank: number) {
  const dims = range(rank).map((axis) => `${name} ${axis}`)
  return valueInfo(name, DataType.FLOAT, dims)
}

function rankIn(shapes: ShapeMap, value: Value): number {
  return (shapes.get(value) as ProbedShape).dims.length
}

/**
 * A block as vectors (1): its queries [start, end), the keys [first, last) that they see, and the first key `full` to
 * which a mask adds something. The paddings, as Pad takes them, fill queries and keys up to the rows of other blocks.
 */
type Place = Readonly<Record<'start' | 'end' | 'first' | 'full' | 'last' | 'padQueries' | 'padKeys', Value>>

/** The body of a Scan: attention of a block's queries and keys. */
class Block {
  readonly #g: Builder
  readonly #rank: number
  readonly #place: Place
  /** Value of the outer graph → value here. Queries that share keys are rows of one product. */
  readonly #inner = new Map<Value, Value>()
  readonly #shapes = new ShapeMap()

  constructor(
    outer: Builder,
    private readonly shapes: ShapeMap,
    private readonly attention: Attention,
    private readonly read: (value: Value) => Value,
  ) {
    const { query, keys, values, scores, logits, probabilities } = attention
    this.#rank = rankIn(shapes, query)
    const sizes = [1, 1, 1, 1, 1, 2 * this.#rank, 2 * this.#rank]
    const g = bodyBuilder(outer, 5 + 4 * this.#rank)
    this.#g = g
    const { output } = g.node('Split', [g.graph.inputs[0].name, g.int(sizes)], { axis: 0 }, sizes.length)
    const [start, end, first, full, last, padQueries, padKeys] = output
    this.#place = { start, end, first, full, last, padQueries, padKeys }
    this.#inner.set(query, this.#as('keys', this.#cut(query, true)))
    for (const value of [keys, values]) this.#inner.set(value, this.#cut(value, false, -2))
    const [ofQuery, ofKeys] = [query, keys].map((value) => this.#inner.get(value) as Value)
    const times = (keyRows: Value) => this.#as('query', g.matmul(ofQuery, this.#swapped(keyRows)))
    const { masks, areAll } = masksOf(shapes, attention)
    if (areAll) {
      // The queries see most keys without a mask, so that nothing is added to their scores.
      const part = (from: Value, to: Value) => times(g.op('Slice', [keys, from, to, g.int([-2])]))
      const masked = masks.map((mask) => this.#cut(mask, grows(shapes.get(mask), -2), -1, full))
      const sum = g.concat([part(first, full), masked.reduce(g.add, part(full, last))], -1)
      for (const value of [scores, logits]) this.#inner.set(value, sum)
    } else this.#inner.set(scores, times(ofKeys))
    for (const value of [logits, probabilities]) this.#declare(this.#copied(value))
  }

  #copied(value: Value): Value {
    const name = sharedValue(this.#inner, value, () => {
      const shape = this.shapes.get(value)
      const maker = this.attention.makers.get(value)
      if (maker === undefined) return this.#cut(this.read(value), grows(shape, -2), grows(shape, -1) ? -1 : 0)
      const inputs = maker.input.map((input) => this.#copied(input))
      const node = this.#g.node(operatorOf(maker), inputs)
      node.attribute = maker.attribute
      return node.output[0]
    })
    const shape = this.shapes.get(value)
    if (shape !== undefined) this.#shapes.set(name, shape)
    return name
  }

  /** Declares that a value has the shape of the scores, so that ONNX Runtime can reuse their memory. */
  #declare(name: Value): Value {
    const dims = range(this.#rank).map((axis) => `scores ${axis}`)
    this.#g.graph.valueInfo.push(valueInfo(name, DataType.FLOAT, dims))
    return name
  }

  /** Cuts out the block: its queries along the axis before the last, its keys along `keyAxis`. */
  #cut(value: Value, hasQueries: boolean, keyAxis?: number, first = this.#place.first): Value {
    const g = this.#g
    const { start, end, last } = this.#place
    const cuts: (readonly [from: Value, to: Value, axis: number])[] = []
    if (hasQueries) cuts.push([start, end, -2])
    if (keyAxis) cuts.push([first, last, keyAxis])
    if (cuts.length === 0) return value
    const bounds = ([0, 1] as const).map((i) => cuts.map((cut) => cut[i]))
    const joined = bounds.map((of) => (of.length === 1 ? of[0] : g.concat(of, 0)))
    return g.op('Slice', [value, ...joined, g.int(cuts.map(([, , axis]) => axis))])
  }

  #swapped(value: Value): Value {
    return this.#g.transpose(value, lastSwapped(this.#rank))
  }

  /**
   * Reshapes a value to the axes of queries (…, heads, rows, n), or to the axes of keys (…, key heads, heads/key heads
   * · rows, n), where all query heads of a key head lie below one another.
   */
  #as(like: 'query' | 'keys', value: Value): Value {
    const [heads, keyHeads] = (['query', 'keys'] as const).map((of) => headsOf(this.shapes, this.attention[of]))
    if (heads === undefined || keyHeads === undefined || heads === keyHeads) return value
    const g = this.#g
    const others = zeros(this.#rank - 3)
    if (like === 'keys') return g.reshape(value, g.int([...others, keyHeads, -1, 0]))
    // Not -1, as there may be no keys. Shared, because ONNX Runtime's optimizers would otherwise put -1 back.
    const shape = sharedValue(this.#inner, 'shape of queries', () => {
      const rows = g.sub(this.#place.end, this.#place.start)
      return g.concat([g.int([...others, heads]), rows, g.int([0])], 0)
    })
    return g.reshape(value, shape)
  }

  /** Outputs (…, rows, d), padded to as many rows as other blocks have. */
  #giveRows(value: Value): void {
    this.#g.graph.outputs.push(declared(this.#g.op('Pad', [value, this.#place.padQueries]), this.#rank))
  }

  forward(): GraphProto {
    const { probabilities, values } = this.attention
    const [p, v] = [probabilities, values].map((value) => this.#copied(value))
    this.#giveRows(this.#as('query', this.#g.matmul(this.#as('keys', p), v)))
    return this.#done()
  }

  /**
   * Outputs the gradients of keys and values, added to the sums of earlier blocks, and the gradient of the queries.
   * `ones`: values and a column of ones. `slope`: dy and a column of −Σ dy·output.
   */
  backward(ones: Value, slope: Value): GraphProto {
    const g = this.#g
    const { graph } = g
    const { query, keys, scores, logits, probabilities } = this.attention
    const [q, k, p] = [query, keys, probabilities].map((value) => this.#copied(value))
    const wide = this.#as('keys', this.#cut(slope, true))
    const dy = g.slice(wide, 0, -1, this.#rank - 1)
    // p = softmax x, o = p·v      dx = p·(do·vᵀ − Σ do·o)
    const slopes = this.#as('query', g.matmul(wide, this.#swapped(this.#cut(ones, false, -2))))
    const dx = this.#declare(g.mul(p, this.#declare(slopes)))
    const seeds = new Map([[this.#copied(logits), dx]])
    const inner = this.#copied(scores)
    const ds = this.#as('keys', buildBackward(g, this.#shapes, seeds, [inner]).get(inner) as Value)
    for (const gradient of [g.matmul(this.#swapped(ds), q), g.matmul(this.#swapped(this.#as('keys', p)), dy)]) {
      const sum = graph.freshName(`${g.scope}/sum`)
      graph.inputs.splice(-1, 0, declared(sum, this.#rank))
      const padded = g.op('Pad', [gradient, this.#place.padKeys])
      graph.outputs.push(declared(g.add(sum, padded), this.#rank))
    }
    this.#giveRows(this.#as('query', g.matmul(ds, k)))
    return this.#done()
  }

  #done(): GraphProto {
    fuseTransposes(this.#g.graph)
    return this.#g.graph.toModel().graph as GraphProto
  }
}

/** Builds the body of a Scan that reads a vector of integers. */
function bodyBuilder(outer: Builder, length: number): Builder {
  const g = new Builder(outer.graph.newBody(), outer.graph.freshName(`${outer.scope}/block`))
  g.graph.inputs = [valueInfo(g.graph.freshName(`${g.scope}/place`), DataType.INT64, [length])]
  return g
}

/** Finds masks that are added right before softmax. `areAll`: nothing else happens to the scores. */
function masksOf(shapes: ShapeMap, { logits, scores, makers }: Attention): { masks: Value[]; areAll: boolean } {
  const masks: Value[] = []
  let value = logits
  let areAll = true
  for (let sum = makers.get(value); sum?.opType === 'Add'; sum = makers.get(value)) {
    const isInside = (input: Value) => input === scores || makers.has(input)
    const added = sum.input.filter((input) => !isInside(input) && grows(shapes.get(input), -1))
    masks.unshift(...added)
    areAll &&= added.length === 1
    value = sum.input.find(isInside) as Value
  }
  return { masks, areAll: areAll && masks.length > 0 && value === scores }
}

/** Appends int64 (blocks, 5 + 4·rank): the numbers of {@link Place}. */
function placesOf(g: Builder, parts: Parts, attention: Attention, shared: Map<string, Value>): Value {
  const { shapes, rows } = parts
  const { query, keys } = attention
  const { masks } = masksOf(shapes, attention)
  const rank = rankIn(shapes, query)
  const lengths = [query, keys].map((value) => shapes.get(value)?.dims.at(-2))
  return sharedValue(shared, `places ${[rank, ...lengths, ...masks].join()}`, () => {
    const [count, length] = [query, keys].map((value) => g.length(value, rank - 2))
    const ceil = (a: Value, b: Value) => g.div(g.sub(g.add(a, b), g.int([1])), b)
    const blocks = ceil(count, g.int([rows]))
    const size = ceil(count, blocks)
    const numbers = g.op('Range', [g.int(0), g.op('Squeeze', [blocks]), g.int(1)])
    const starts = g.unsqueeze(g.mul(numbers, size), [1])
    const ends = g.op('Min', [g.add(starts, size), count])
    const bounds = g.concat([starts, ends], 1)
    const body = masks.length === 0 ? undefined : seenBy(g, parts, masks)
    const all = () => g.expand(g.concat([g.int([0]), length, length], 0), g.concat([blocks, g.int([3])], 0))
    const seen = body ? g.op('Scan', [bounds], { body, num_scan_inputs: 1 }) : all()
    const [first, , last] = g.node('Split', [seen, g.int([1, 1, 1])], { axis: 1 }, 3).output
    const zero = g.sub(starts, starts)
    const pads = (before: Value, behind: Value) => {
      return [...Array(rank - 2).fill(zero), before, ...Array(rank - 1).fill(zero), behind, zero]
    }
    const missing = g.sub(g.add(starts, size), ends)
    return g.concat([bounds, seen, ...pads(zero, missing), ...pads(first, g.sub(length, last))], 1)
  })
}

/** Builds the body that finds [first, full, last] of {@link Place} from [start, end]. */
function seenBy(outer: Builder, { shapes }: Parts, masks: readonly Value[]): GraphProto {
  const g = bodyBuilder(outer, 2)
  const { graph } = g
  const [start, end] = g.node('Split', [graph.inputs[0].name, g.int([1, 1])], { axis: 0 }, 2).output
  const rowsOf = (mask: Value) => (grows(shapes.get(mask), -2) ? g.op('Slice', [mask, start, end, g.int([-2])]) : mask)
  const blockMasks = masks.map(rowsOf)
  const rank = Math.max(...masks.map((mask) => rankIn(shapes, mask)))
  /** 1 for each key if a mask adds more than `least` for any of the queries. */
  const exceeds = (least: number, sum: Value) => {
    const best = rank === 1 ? sum : g.reduceMax(sum, range(rank - 1), 0)
    return g.cast(g.op('Greater', [best, g.float(least)]), DataType.FLOAT)
  }
  const isSeen = exceeds(HIDDEN, blockMasks.reduce(g.add))
  const first = g.op('ArgMax', [isSeen], { axis: 0 })
  const last = g.add(g.op('ArgMax', [isSeen], { axis: 0, select_last_index: 1 }), g.int([1]))
  const sizes = blockMasks.map((mask) => g.op('Abs', [mask]))
  const isMasked = g.op('Slice', [exceeds(0, sizes.reduce(g.add)), first, last])
  const full = g.add(first, g.op('ArgMax', [g.concat([isMasked, g.float([1])], 0)], { axis: 0 }))
  graph.outputs = [valueInfo(g.concat([first, full, last], 0), DataType.INT64, [3])]
  return graph.toModel().graph as GraphProto
}
