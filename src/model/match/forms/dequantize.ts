// Appends nodes that dequantize weights while a graph runs, for training.

import { create } from '../../../onnx/format/protobuf.js'
import { DataType, type NodeProto, TensorProtoSchema } from '../../../onnx/format/tensors.js'
import { type Attributes, intAttribute } from '../../../onnx/view/attributes.js'
import type { Builder, Value } from '../../../onnx/view/builder.js'
import type { Graph } from '../../../onnx/view/graph.js'
import { dequantizer } from './dequantize-linear.js'
import type { FormName, Product } from './form.js'
import { countOf, type RowRange, viewOf } from './integers.js'
import { TABLES } from './matmul-bnb4.js'
import { type IntegerWeight, integerWeight } from './matmul-integer.js'
import { blockLayout, hasFloatZeroPoints, SCALES, WEIGHT, ZERO_POINTS } from './matmul-nbits.js'

interface Dequantizer {
  /** Appends nodes that make the stored matrix, (d, k) or (k, d), in f32. */
  whole(g: Builder, product: Product): Value
  /** The same for rows (count, k) of a large weight (d, k); undefined if it can only be made whole. */
  rows?(g: Builder, product: Product, first: number, count: number): Value | undefined
}

const NBITS: Dequantizer = {
  whole(g, { node, d }) {
    return floatRows(g, node, { first: 0, count: d, of: d })
  },

  rows(g, { node, d }, first, count) {
    return hasRowsOfZeroPoints(g.graph, node) ? floatRows(g, node, { first, count, of: d }) : undefined
  },
}

/** True if zero points can be cut by rows: with 4 bits an odd row would begin in the middle of a byte. */
function hasRowsOfZeroPoints(graph: Graph, node: NodeProto): boolean {
  const { bits, blocks } = blockLayout(node)
  const isNone = (node.input[ZERO_POINTS] ?? '') === ''
  return isNone || (!hasFloatZeroPoints(graph, node) && (bits === 8 || blocks % 2 === 0))
}

/** Appends a block of dequantized rows, (count, k). */
function floatRows(g: Builder, node: NodeProto, rows: RowRange): Value {
  const { graph } = g
  const { bits, blockSize, blocks, k } = blockLayout(node)
  const { first, count, of } = rows
  const dataType = bits === 4 ? DataType.UINT4 : DataType.UINT8
  const isBlocked = graph.opset() >= 21
  const zeroPoints = node.input[ZERO_POINTS] ?? ''
  const isWhole = hasRowsOfZeroPoints(graph, node)
  const shape = isBlocked ? [count, blocks] : [count * blocks]
  const dims = isBlocked ? [count, blocks * blockSize] : [count * blocks, blockSize]
  const integers = integersOnce(graph, node.input[WEIGHT], { dataType, dims, rows })
  const ofRows = (value: Value) => {
    if (count === of) return value
    return g.slice(g.reshape(value, g.int([of, blocks])), first, first + count, 0)
  }
  const scales = g.reshape(ofRows(node.input[SCALES]), g.int(shape))
  const zero =
    zeroPoints !== '' && isWhole
      ? viewOf(graph, zeroPoints, { dataType, dims: shape, rows })
      : middles(graph, dataType, shape, isWhole ? 1 << (bits - 1) : 0)
  const operator = isBlocked || bits === 8 ? 'DequantizeLinear' : 'com.microsoft:DequantizeLinear'
  const attributes: Attributes = isBlocked ? { axis: 1, block_size: blockSize } : { axis: 0 }
  const products = g.op(operator, [integers, scales, zero], attributes)
  const values = isWhole
    ? products
    : g.sub(
        g.reshape(products, g.int([count * blocks, blockSize])),
        g.mul(g.reshape(scales, g.int([-1, 1])), floatZeroPoints(g, node)),
      )
  const padded = g.reshape(values, g.int([count, blocks * blockSize]))
  return k === blocks * blockSize ? padded : g.slice(padded, 0, k, 1)
}

/**
 * Shares one view among all readers, because ONNX Runtime maps the file once per constant. Zero points are not shared:
 * ONNX Runtime would otherwise keep the floats of one reader for the next.
 */
function integersOnce(
  graph: Graph,
  weight: Value,
  view: { dataType: DataType; dims: number[]; rows: RowRange },
): Value {
  const { first, count } = view.rows
  const name = `${weight}/rows ${first} to ${first + count}`
  return graph.initializers.has(name) ? name : viewOf(graph, weight, { ...view, name })
}

function middles(graph: Graph, dataType: DataType, dims: readonly number[], value: number): Value {
  const count = dims.reduce((product, dim) => product * dim, 1)
  const bytes =
    dataType === DataType.UINT4
      ? new Uint8Array(Math.ceil(count / 2)).fill(value | (value << 4))
      : new Uint8Array(count).fill(value)
  const name = graph.freshName('zero points')
  return graph.addInitializer(create(TensorProtoSchema, { name, dataType, dims: dims.map(BigInt), rawData: bytes }))
}

/** Appends the zero points as floats (d · blocks, 1). */
function floatZeroPoints(g: Builder, node: NodeProto): Value {
  const { blocks, d } = blockLayout(node)
  const zeroPoints = node.input[ZERO_POINTS]
  if (hasFloatZeroPoints(g.graph, node)) return g.reshape(zeroPoints, g.int([-1, 1]))
  const bytes = g.cast(g.reshape(zeroPoints, g.int([d, Math.ceil(blocks / 2), 1])), DataType.FLOAT)
  const high = g.op('Floor', [g.mul(bytes, g.float(1 / 16))])
  const low = g.sub(bytes, g.mul(high, g.float(16)))
  const pairs = g.reshape(g.concat([low, high], 2), g.int([d, -1]))
  return g.reshape(g.slice(pairs, 0, blocks, 1), g.int([-1, 1]))
}

const BNB4: Dequantizer = {
  // Not by the operator's transB = 0: its values are wrong on the CPU (ONNX Runtime 1.30).
  whole(g, { node, k, d }) {
    const table = TABLES[intAttribute(node, 'quant_type', 1)]
    const blockSize = intAttribute(node, 'block_size', 0)
    const [count, blocks] = [k * d, Math.ceil((k * d) / blockSize)]
    const pairs = Array.from({ length: 512 }, (_, i) => table[i % 2 === 0 ? i >> 5 : (i >> 1) & 15])
    // Always −1, but if it were a constant, ONNX Runtime would fold all of this and keep the floats.
    const target = g.op('Min', [g.op('Slice', [g.shape(node.input[0]), g.int([0]), g.int([1])]), g.int([-1])])
    const bytes = g.reshape(node.input[1], target)
    const numbers = g.op('Gather', [g.float(pairs, [256, 2]), g.cast(bytes, DataType.INT32)]) // (bytes, 2)
    const scales = g.reshape(node.input[2], g.int([blocks, 1]))
    const cut = (values: Value) => g.slice(g.reshape(values, g.int([-1])), 0, count, 0)
    if (count % blockSize === 0 && count % 2 === 0) {
      return g.reshape(g.mul(g.reshape(numbers, g.int([blocks, blockSize])), scales), g.int([d, k]))
    }
    const ofEach = cut(g.expand(scales, g.int([blocks, blockSize])))
    return g.reshape(g.mul(cut(numbers), ofEach), g.int([d, k]))
  },
}

const INTEGERS: Dequantizer = {
  whole(g, found) {
    const { graph } = g
    const { weight, scale, zeroPoint } = integerWeight(graph, found.node) as IntegerWeight
    const parts = zeroPoint === '' ? [scale] : [scale, zeroPoint]
    const isShared = parts.every((value) => countOf(graph, value) === 1)
    // DequantizeLinear takes scale and zero point both as scalars, or both with a value for each output.
    const shaped = parts.map((value) => {
      return isShared ? g.reshape(value, g.int([])) : g.expand(g.reshape(value, g.int([-1])), g.int([found.d]))
    })
    return g.op('DequantizeLinear', [viewOf(graph, weight), ...shaped], isShared ? {} : { axis: 1 })
  },
}

const LINEAR: Dequantizer = {
  whole(g, { node }) {
    const { maker } = dequantizer(g.graph, node.input[1])!
    const copy = g.node('DequantizeLinear', [viewOf(g.graph, maker.input[0]), ...maker.input.slice(1)])
    copy.domain = maker.domain
    copy.attribute = [...maker.attribute]
    return copy.output[0]
  },
}

/** Form → its rule. Float weights, and forms that cannot be trained, have no rule. */
export const DEQUANTIZERS: Partial<Record<FormName, Dequantizer>> = {
  MatMulNBits: NBITS,
  MatMulBnb4: BNB4,
  MatMulInteger: INTEGERS,
  DynamicQuantizeMatMul: INTEGERS,
  DequantizeLinear: LINEAR,
}
