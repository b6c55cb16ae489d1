// Gradients of operators that only move elements: reshapes, transposes, joins, cuts and look-ups.

import { create } from '../format/protobuf.js'
import { DataType, type NodeProto, StringStringEntryProtoSchema } from '../format/tensors.js'
import { isStatic } from '../shapes/shapes.js'
import { intAttribute, intsAttribute, stringAttribute } from '../view/attributes.js'
import type { Value } from '../view/builder.js'
import {
  axisOf,
  clampStart,
  contentOf,
  type GradientContext,
  type GradientRule,
  intsOf,
  once,
  range,
  rankOf,
  refuse,
  reshapeLike,
  shapeOf,
} from './context.js'
import { beforeSwap, lastSwapped, transposeLast } from './matmul.js'

// y holds x's elements in x's order      dx = dy in x's shape
const view: GradientRule = (context) => [
  () => reshapeLike(context, context.dy, shapeOf(context, context.outputs[0]), context.inputs[0]),
]

export const LAYOUT: Readonly<Record<string, GradientRule>> = {
  Reshape: view,
  Flatten: view,
  Squeeze: view,
  Unsqueeze: view,

  // y = x with its axes permuted      dx = dy with the inverse permutation
  Transpose: (context) => [() => transposeBack(context)],

  // y = x repeated along axes of length 1      dx = dy, which `sumTo` sums down to the shape of x
  Expand: ({ dy }) => [() => dy],

  // y = x, repeated r times along each axis      dx = the sum of its copies in dy
  Tile: (context) => {
    const { g, inputs, dy } = context
    const [x, repeats] = inputs
    return [
      () => {
        const columns = [repeats, g.shape(x)].map((lengths) => g.unsqueeze(lengths, [1]))
        const copies = g.reshape(dy, g.reshape(g.concat(columns, 1), g.int([-1]))) // (r, length, r, length, …)
        const axes = range(rankOf(context, x)).map((axis) => 2 * axis)
        return g.reduceSum(copies, axes, 0)
      },
    ]
  },

  // y = [x₁, x₂, …]      dxᵢ = dy cut where xᵢ lies
  Concat: (context) => {
    const { g, inputs, dy } = context
    const axis = axisOf(context, 0)
    const lengths = inputs.map((x) => {
      const { dims, second } = shapeOf(context, x)
      return { value: dims[axis], second: second[axis] }
    })
    const filled = inputs.filter((_, i) => lengths[i].value !== 0 || lengths[i].second !== 0)
    if (filled.length === 1) return inputs.map((x) => (x === filled[0] ? () => dy : undefined))
    const parts = once(() => {
      const isKnown = lengths.every(({ value, second }) => value === second)
      const measured = () => inputs.map((x) => g.length(x, axis))
      const sizes = isKnown ? g.int(lengths.map(({ value }) => value)) : g.concat(measured(), 0)
      return g.node('Split', [dy, sizes], { axis }, inputs.length).output
    })
    return inputs.map((_, i) => () => parts()[i])
  },

  // y₁, y₂, … = x cut      dx = [dy₁, dy₂, …]
  Split: (context) => {
    const { g, outputs, dys } = context
    const zeros = (y: Value) => {
      const { dims, second } = shapeOf(context, y)
      return g.expand(g.float(0), dims.join() === second.join() ? g.int(dims) : g.shape(y))
    }
    const parts = () => outputs.map((y, i) => dys[i] ?? zeros(y))
    return [() => g.concat(parts(), axisOf(context, 0))]
  },

  // y = x[start:end:step]      dx = dy with zeros around and between
  Slice: (context) => [() => unslice(context)],

  // y = x[…, indices, …]      dx = zeros + dy added at the indices
  Gather: (context) => [() => ungather(context)],

  // y = x with constants around it      dx = dy cut where x lies
  Pad: (context) => [() => unpad(context), undefined, undefined, undefined],

  // y = x above or below a diagonal, else 0      dx = dy there, else 0
  Trilu: ({ g, node, inputs: [, ...diagonal], dy }) => [
    () => g.op('Trilu', [dy, ...diagonal], { upper: intAttribute(node, 'upper', 1) }),
  ],

  // y = x[indices]      dx = zeros + dy added at the indices
  GatherND: (context) => {
    const { g, node, inputs, dy } = context
    const [x, indices] = inputs
    if (intAttribute(node, 'batch_dims', 0) > 0) refuse(context, 'the gradient with batch_dims is not implemented')
    return [() => g.op('ScatterND', [g.expand(g.float(0), g.shape(x)), indices, dy], { reduction: 'add' })]
  },

  // y = x, with updates in the place of, or added to, what lies at the indices
  //     dx = dy, with zeros at the indices where they replace   dupdates = dy[indices]
  ScatterND: (context) => {
    const { g, node, inputs, dy } = context
    const [, indices, updates] = inputs
    const reduction = stringAttribute(node, 'reduction', 'none')
    if (!['none', 'add'].includes(reduction))
      refuse(context, `the gradient with reduction ${reduction} is not implemented`)
    const zeros = () => g.expand(g.float(0), g.shape(updates))
    return [
      () => (reduction === 'add' ? dy : g.op('ScatterND', [dy, indices, zeros()])),
      undefined,
      () => g.op('GatherND', [dy, indices]),
    ]
  },

  // y = the largest elements of x along an axis      dx = zeros, with dy at their places
  TopK: (context) => {
    const { g, inputs, outputs, dys } = context
    const zeros = () => g.expand(g.float(0), g.shape(inputs[0]))
    return [
      () => g.op('ScatterElements', [zeros(), outputs[1], dys[0] as Value], { axis: axisOf(context, -1) }),
      undefined,
    ]
  },

  // y = x, with updates at the indices      dx = dy with zeros there   dupdates = dy there
  ScatterElements: (context) => {
    const { g, node, inputs, dy } = context
    const [, indices, updates] = inputs
    const axis = axisOf(context, 0)
    if (stringAttribute(node, 'reduction', 'none') !== 'none')
      refuse(context, 'the gradient with a reduction is not implemented')
    const zeros = () => g.expand(g.float(0), g.shape(updates))
    return [
      () => g.op('ScatterElements', [dy, indices, zeros()], { axis }),
      undefined,
      () => g.op('GatherElements', [dy, indices], { axis }),
    ]
  },

  // y[…, i, …] = x[…, indices[…, i, …], …]      dx = zeros + dy added at the indices
  GatherElements: (context) => {
    const { g, inputs, dy } = context
    const [x, indices] = inputs
    const attributes = { axis: axisOf(context, 0), reduction: 'add' }
    return [() => g.op('ScatterElements', [g.expand(g.float(0), g.shape(x)), indices, dy], attributes)]
  },
}

function transposeBack(context: GradientContext): Value {
  const { g, node, inputs, dy } = context
  const rank = rankOf(context, inputs[0])
  const perm = intsAttribute(node, 'perm') ?? range(rank).reverse()
  const inverse = range(rank).map((axis) => perm.indexOf(axis))
  const product = g.graph.producer(dy)
  if (product?.opType === 'MatMul' && inverse.join() === lastSwapped(rank).join()) {
    // (qᵀ·e)ᵀ = eᵀ·q: this saves transposing the gradient of the keys in attention.
    const [left, right] = product.input
    const q = beforeSwap(g.graph, left)
    if (q !== undefined) return g.matmul(transposeLast(context, right, rank), q)
  }
  return g.transpose(dy, inverse)
}

function unpad(context: GradientContext): Value {
  const { g, node, inputs, dy } = context
  const [x, pads, , axesInput] = inputs
  const mode = stringAttribute(node, 'mode', 'constant')
  if (mode !== 'constant') refuse(context, `the gradient with mode ${mode} is not implemented`)
  const axes = axesInput ? intsOf(context, axesInput) : range(rankOf(context, x))
  if (axes === undefined) return refuse(context, 'its axes are not known before the run')
  const starts = g.slice(pads, 0, axes.length, 0)
  const lengths = g.op('Gather', [g.shape(x), g.int(axes)])
  return g.op('Slice', [dy, starts, g.add(starts, lengths), g.int(axes)])
}

/** An axis along which y is a part of x: where the part begins, for both probed shapes and at run time. */
interface Cut {
  readonly axis: number
  readonly begin: number
  readonly otherBegin: number
  /** Appends the begin as a vector with one element. */
  readonly atRunTime: () => Value
}

function unslice(context: GradientContext): Value {
  const { g, inputs, dy } = context
  const [x, starts, , axesInput, stepsInput] = inputs
  const content = contentOf(context, starts)
  const axes = axesInput ? intsOf(context, axesInput) : range(content?.value.length ?? 0)
  const steps = stepsInput ? intsOf(context, stepsInput) : axes?.map(() => 1)
  if (content === undefined || axes === undefined || steps === undefined) {
    return refuse(context, 'its starts, axes or steps are not known before the run')
  }
  const { dims, second } = shapeOf(context, x)
  const cuts = axes.map((entry, i) => {
    const axis = entry < 0 ? entry + dims.length : entry
    const [start, otherStart] = [content.value[i], content.second[i]]
    return {
      axis,
      step: steps[i],
      begin: clampStart(start, dims[axis], steps[i]),
      otherBegin: clampStart(otherStart, second[axis], steps[i]),
      atRunTime: () => {
        const given = g.cast(g.op('Gather', [starts, g.int([i])]), DataType.INT64)
        return start < 0 ? g.add(given, g.length(x, axis)) : given
      },
    }
  })
  const contiguous = cuts.filter(({ step }) => step === 1)
  const padded = pad(context, dy, contiguous)
  return cuts.filter(({ step }) => step !== 1).reduce((value, cut) => unstride(context, value, cut), padded)
}

/** Pads `value`, which is a part of x, with zeros to the shape of x. */
function pad(context: GradientContext, value: Value, cuts: readonly Cut[]): Value {
  const { g, inputs } = context
  const x = shapeOf(context, inputs[0])
  const y = shapeOf(context, context.outputs[0])
  const isLookUp = y.dims.length < x.dims.length // Gather by a scalar: the part has length 1
  const rank = x.dims.length
  const pads: (number | Value)[] = Array(2 * rank).fill(0)
  for (const { axis, begin, otherBegin, atRunTime } of cuts) {
    const end = begin + (isLookUp ? 1 : y.dims[axis])
    const otherEnd = otherBegin + (isLookUp ? 1 : y.second[axis])
    const isKnown = x.dims[axis] - end === x.second[axis] - otherEnd
    pads[axis] = begin === otherBegin ? begin : atRunTime()
    const rest = () => g.sub(g.sub(g.length(inputs[0], axis), vector(context, pads[axis])), g.length(value, axis))
    pads[axis + rank] = isKnown ? x.dims[axis] - end : rest()
  }
  if (pads.every((entry) => entry === 0)) return value
  const isConstant = (entry: number | Value): entry is number => typeof entry === 'number'
  const vectors = () => pads.map((entry) => vector(context, entry))
  return g.op('Pad', [value, pads.every(isConstant) ? g.int(pads) : g.concat(vectors(), 0)])
}

function vector({ g }: GradientContext, entry: number | Value): Value {
  return typeof entry === 'number' ? g.int([entry]) : entry
}

/**
 * Puts the elements of `value` at every `step`-th place of x, and zeros between them, which it looks up as one more
 * element of `value`.
 */
function unstride(context: GradientContext, value: Value, { axis, begin, step }: Cut & { step: number }): Value {
  const { g, inputs, outputs } = context
  const x = shapeOf(context, inputs[0])
  if (!isStatic(x, axis)) refuse(context, `its step is ${step} along axis ${axis}, whose length changes with the input`)
  const length = shapeOf(context, outputs[0]).dims[axis]
  const sources = range(x.dims[axis]).map((place) => {
    const source = (place - begin) / step
    return Number.isInteger(source) && source >= 0 && source < length ? source : length
  })
  const rank = x.dims.length
  const extended = g.op('Pad', [value, g.int(range(2 * rank).map((i) => (i === rank + axis ? 1 : 0)))])
  return g.op('Gather', [extended, g.int(sources)], { axis })
}

function ungather(context: GradientContext): Value {
  const { g, inputs, dy } = context
  const [x, indices] = inputs
  const axis = axisOf(context, 0)
  const indexRank = rankOf(context, indices)
  const isDistinct = context.node.metadataProps.some(({ key }) => key === DISTINCT)
  if (isDistinct && axis === 0 && indexRank === 1) {
    return g.op('ScatterND', [g.expand(g.float(0), g.shape(x)), g.unsqueeze(indices, [1]), dy])
  }
  const content = contentOf(context, indices)
  if (content?.value.length !== 1 || content.second.length !== 1 || indexRank > 1) return scatter(context, axis)
  const { dims, second } = shapeOf(context, x)
  const cut: Cut = {
    axis,
    begin: clampStart(content.value[0], dims[axis], 1),
    otherBegin: clampStart(content.second[0], second[axis], 1),
    atRunTime: () => {
      const given = g.cast(indexRank === 0 ? g.unsqueeze(indices, [0]) : indices, DataType.INT64)
      return content.value[0] < 0 ? g.add(given, g.length(x, axis)) : given
    },
  }
  return pad(context, indexRank === 0 ? g.unsqueeze(dy, [axis]) : dy, [cut])
}

/** Adds up rows by index with a one-hot product, because the sums of ScatterND depend on the order of its threads. */
function scatter(context: GradientContext, axis: number): Value {
  const { g, inputs, dy } = context
  const [x, indices] = inputs
  const rank = rankOf(context, x)
  const indexRank = rankOf(context, indices)
  const indexAxes = range(indexRank).map((i) => axis + i)
  const otherAxes = range(rank + indexRank - 1).filter((i) => !indexAxes.includes(i))
  const rows = g.op('Flatten', [g.transpose(dy, [...indexAxes, ...otherAxes])], { axis: indexRank }) // (indices, rest)

  const length = g.length(x, axis)
  const flat = g.cast(g.reshape(indices, g.int([1, -1])), DataType.INT64)
  const wrapped = g.where(g.op('Less', [flat, g.int(0)]), g.add(flat, length), flat)
  const places = g.op('Range', [g.int(0), g.op('Squeeze', [length]), g.int(1)])
  const oneHot = g.cast(g.op('Equal', [g.unsqueeze(places, [1]), wrapped]), g.floatType) // (length, indices)

  const perm = [axis, ...range(rank).filter((i) => i !== axis)]
  const shape = g.op('Gather', [g.shape(x), g.int(perm)])
  const back = range(rank).map((i) => perm.indexOf(i))
  return g.transpose(g.reshape(g.matmul(oneHot, rows), shape), back)
}

const DISTINCT = 'lowrank.distinct'

export function markDistinct(node: NodeProto): void {
  const entry = create(StringStringEntryProtoSchema, { key: DISTINCT, value: 'indices' })
  node.metadataProps = [...node.metadataProps, entry]
}
