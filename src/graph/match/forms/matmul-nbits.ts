// MatMulNBits: weights of 4 or 8 bits in blocks along k, the form of `_q4` files and of onnxruntime-genai's int4:
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftmatmulnbits

import { create } from '../../../formats/onnx/protobuf.js'
import {
  DataType,
  dataTypeName,
  type NodeProto,
  type TensorProto,
  TensorProtoSchema,
} from '../../../formats/onnx/tensors.js'
import { type Attributes, intAttribute } from '../../view/attributes.js'
import type { Builder, Value } from '../../view/builder.js'
import type { Graph } from '../../view/graph.js'
import { operatorOf } from '../../view/operators.js'
import { FLOAT_DTYPES } from './float-product.js'
import { type Form, productOf } from './form.js'
import { castConstant, countOf, integerForm, type RowRange, viewOf } from './integers.js'

export interface BlockLayout {
  readonly bits: 4 | 8
  readonly blockSize: number
  /** Blocks of a row of W (d, k). The last one may reach over the row's end. */
  readonly blocks: number
  readonly k: number
  readonly d: number
}

export function blockLayout(node: NodeProto): BlockLayout {
  const [k, d] = [intAttribute(node, 'K', 0), intAttribute(node, 'N', 0)]
  const blockSize = intAttribute(node, 'block_size', 0)
  return { bits: intAttribute(node, 'bits', 4) as 4 | 8, blockSize, blocks: Math.ceil(k / blockSize), k, d }
}

const [WEIGHT, SCALES, ZERO_POINTS, GROUPS] = [1, 2, 3, 4]

export const MATMUL_NBITS: Form = integerForm({
  name: 'MatMulNBits',

  find(graph, node) {
    if (operatorOf(node) !== 'com.microsoft:MatMulNBits') return undefined
    const weight = graph.constant(node.input[WEIGHT])
    if (weight === undefined) return undefined
    const { bits, blockSize, k, d } = blockLayout(node)
    const hasZeroPoints = (node.input[ZERO_POINTS] ?? '') !== ''
    return productOf(MATMUL_NBITS, node, {
      ...{ weight: node.input[WEIGHT], transposed: true, k, d },
      dataType: castConstant(graph, node.input[SCALES])?.dataType ?? DataType.FLOAT,
      layout: `${bits} bits, blocks of ${blockSize}${hasZeroPoints ? ', zero points' : ''}`,
      problem: problemOf(graph, node, weight),
    })
  },

  matrix(graph, { node, weight, k }) {
    const { bits, blockSize, blocks } = blockLayout(node)
    const [, , scales, zeroPoints] = node.input
    const zerosPerRow = hasFloatZeroPoints(graph, node) ? blocks : (Math.ceil((blocks * bits) / 8) * 8) / bits
    return {
      ...{ tensor: graph.constant(weight) as TensorProto, type: { bits, isSigned: false }, scales, zeroPoints },
      ...{ width: blocks * blockSize, kept: k, middle: 1 << (bits - 1), block: blockSize },
      scaleAt: (row, column) => row * blocks + column / blockSize,
      zeroAt: (row, column) => row * zerosPerRow + column / blockSize,
    }
  },

  dequantize(g, { node, d }) {
    return floatRows(g, node, { first: 0, count: d, of: d })
  },

  dequantizeRows(g, { node, d }, first, count) {
    return hasRowsOfZeroPoints(g.graph, node) ? floatRows(g, node, { first, count, of: d }) : undefined
  },
})

/** With 4 bits two zero points share a byte, and DequantizeLinear cannot read odd rows. */
function hasRowsOfZeroPoints(graph: Graph, node: NodeProto): boolean {
  const { bits, blocks } = blockLayout(node)
  const isNone = (node.input[ZERO_POINTS] ?? '') === ''
  return isNone || (!hasFloatZeroPoints(graph, node) && (bits === 8 || blocks % 2 === 0))
}

/** (count, k) */
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

const views = new WeakMap<Graph, Map<string, Value>>()

/**
 * One view for all readers: ONNX Runtime maps a file once for each constant. Zero points are each reader's own, so that
 * it does not keep the floats of one for the next.
 */
function integersOnce(
  graph: Graph,
  weight: Value,
  view: { dataType: DataType; dims: number[]; rows: RowRange },
): Value {
  const known = views.get(graph) ?? new Map<string, Value>()
  views.set(graph, known)
  const key = `${view.rows.first} ${view.rows.count} ${weight}`
  const made = known.get(key)
  if (made !== undefined && graph.constant(made) !== undefined) return made
  const value = viewOf(graph, weight, view)
  known.set(key, value)
  return value
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

/** (d · blocks, 1) */
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

export function hasFloatZeroPoints(graph: Graph, node: NodeProto): boolean {
  const name = node.input[ZERO_POINTS] ?? ''
  return name !== '' && graph.constant(name)?.dataType !== DataType.UINT8
}

/** The part of a node that is not as the operator's documentation says. */
function problemOf(graph: Graph, node: NodeProto, weight: TensorProto): string | undefined {
  const { bits, blockSize, blocks, k, d } = blockLayout(node)
  if (bits !== 4 && bits !== 8) return `${bits} bits, not 4 or 8`
  if (!(k > 0 && d > 0)) return `sizes K = ${k}, N = ${d}`
  if (!(blockSize >= 16 && Number.isInteger(Math.log2(blockSize)))) return `blocks of ${blockSize}`
  if ((node.input[GROUPS] ?? '') !== '') return 'rows in another order (g_idx)'
  if (weight.dataType !== DataType.UINT8) return `packed in ${dataTypeName(weight.dataType)}, not UINT8`
  const expected = (d * blocks * blockSize * bits) / 8
  const got = countOf(graph, node.input[WEIGHT])
  if (got !== expected) return `a packed weight of ${got} bytes, not ${expected}`
  const scales = castConstant(graph, node.input[SCALES])
  if (scales === undefined || FLOAT_DTYPES[scales.dataType] === undefined) return 'scales that are no float constant'
  if (countOf(graph, node.input[SCALES]) !== d * blocks) {
    return `${countOf(graph, node.input[SCALES])} scales, not ${d * blocks}`
  }
  const zeroPoints = node.input[ZERO_POINTS] ?? ''
  if (zeroPoints === '') return undefined
  const tensor = castConstant(graph, zeroPoints)
  const isPacked = tensor?.dataType === DataType.UINT8
  if (tensor === undefined || (!isPacked && FLOAT_DTYPES[tensor.dataType] === undefined)) {
    return 'zero points that are no constant of bytes or floats'
  }
  const wanted = isPacked ? d * Math.ceil((blocks * bits) / 8) : d * blocks
  const found = countOf(graph, zeroPoints)
  return found === wanted ? undefined : `${found} zero points, not ${wanted}`
}
