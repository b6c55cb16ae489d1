// DequantizeLinear before a MatMul or Gemm, the form of QDQ exports: integers of 4 or 8 bits with scales per matrix,
// line or block. Operator: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html

import { DataType, dataTypeName, dimsOf, type NodeProto, type TensorProto } from '../../../onnx/format/tensors.js'
import { floatAttribute, intAttribute } from '../../../onnx/view/attributes.js'
import type { Value } from '../../../onnx/view/builder.js'
import type { Graph } from '../../../onnx/view/graph.js'
import { operatorOf } from '../../../onnx/view/operators.js'
import { type Source, sourceOf } from '../../../onnx/view/patterns.js'
import { FLOAT_DTYPES } from './float-product.js'
import { type Form, productOf } from './form.js'
import { castConstant, INTEGER_TYPES, integerForm } from './integers.js'

export const DEQUANTIZE_LINEAR: Form = integerForm({
  name: 'DequantizeLinear',

  find(graph, node) {
    const isGemm = operatorOf(node) === 'Gemm'
    if (!isGemm && operatorOf(node) !== 'MatMul') return undefined
    if (isGemm && intAttribute(node, 'transA', 0) === 1) return undefined
    const source = dequantizer(graph, node.input[1])
    const tensor = source && graph.constant(source.maker.input[0])
    if (source === undefined || tensor === undefined || tensor.dims.length !== 2) return undefined
    const { maker, isSwapped } = source
    const transposed = isSwapped !== (isGemm && intAttribute(node, 'transB', 0) === 1)
    const [rows, columns] = dimsOf(tensor)
    const [k, d] = transposed ? [columns, rows] : [rows, columns]
    const blockSize = intAttribute(maker, 'block_size', 0)
    const scales = castConstant(graph, maker.input[1])
    const kind = dataTypeName(tensor.dataType).toLowerCase()
    const shared = (scales?.tensor.dims.length ?? 0) === 0 ? 'one scale' : 'a scale for each line'
    const alpha = isGemm ? floatAttribute(node, 'alpha', 1) : 1
    return productOf(DEQUANTIZE_LINEAR, node, {
      ...{ weight: maker.input[0], transposed, k, d },
      dataType: source.castTo ?? scales?.dataType ?? DataType.FLOAT,
      layout: `${kind}, ${blockSize > 0 ? `blocks of ${blockSize}` : shared}`,
      problem: alpha === 1 ? problemOf(graph, maker, tensor) : `alpha ${alpha}`,
    })
  },

  matrix(graph, { node }) {
    const { maker } = dequantizer(graph, node.input[1])!
    const tensor = graph.constant(maker.input[0]) as TensorProto
    return {
      ...{ tensor, type: INTEGER_TYPES[tensor.dataType]!, width: dimsOf(tensor)[1] },
      ...{ scales: maker.input[1], zeroPoints: maker.input[2], scaleAt: scaleIndex(graph, maker) },
    }
  },
})

export function dequantizer(graph: Graph, value: Value): (Omit<Source, 'value'> & { maker: NodeProto }) | undefined {
  const { value: floats, ...source } = sourceOf(graph, value)
  const maker = graph.producer(floats)
  return maker?.opType === 'DequantizeLinear' ? { ...source, maker } : undefined
}

function axisOf(maker: NodeProto): number {
  const axis = intAttribute(maker, 'axis', 1)
  return axis < 0 ? axis + 2 : axis
}

function scaleIndex(graph: Graph, maker: NodeProto): (row: number, column: number) => number {
  const dims = graph.constant(maker.input[1])?.dims.map(Number) ?? []
  const blockSize = intAttribute(maker, 'block_size', 0)
  const isAlongRows = axisOf(maker) === 0
  if (blockSize > 0) {
    return isAlongRows
      ? (row, column) => Math.floor(row / blockSize) * dims[1] + column
      : (row, column) => row * dims[1] + Math.floor(column / blockSize)
  }
  if (dims.length === 0 || (dims.length === 1 && dims[0] === 1)) return () => 0
  return isAlongRows ? (row) => row : (_, column) => column
}

function problemOf(graph: Graph, maker: NodeProto, tensor: TensorProto): string | undefined {
  if (INTEGER_TYPES[tensor.dataType] === undefined) return `integers of type ${dataTypeName(tensor.dataType)}`
  const found = castConstant(graph, maker.input[1])
  if (found === undefined || FLOAT_DTYPES[found.dataType] === undefined) return 'scales that are no float constant'
  const scales = found.tensor
  const [shape, axis] = [dimsOf(tensor), axisOf(maker)]
  const blockSize = intAttribute(maker, 'block_size', 0)
  const dims = dimsOf(scales)
  const blocked = shape.map((dim, i) => (i === axis ? Math.ceil(dim / blockSize) : dim))
  const isOne = dims.every((dim) => dim === 1)
  if (blockSize > 0 ? dims.join() !== blocked.join() : !isOne && dims.join() !== `${shape[axis]}`) {
    return `scales of shape (${dims.join(', ')}) for a weight of (${shape.join(', ')})`
  }
  if ((maker.input[2] ?? '') === '') return undefined
  const zeros = graph.constant(maker.input[2])
  const isSame = zeros !== undefined && zeros.dataType === tensor.dataType && zeros.dims.join() === scales.dims.join()
  return isSame ? undefined : 'zero points of another type or shape'
}
