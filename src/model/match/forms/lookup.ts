// Lookups of embeddings: Gather of floats, GatherBlockQuantized (4 or 8 bits in blocks), and Gather of int8 or uint8
// before DequantizeLinear. Operator:
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftgatherblockquantized

import { DataType, dataTypeName, dimsOf, type NodeProto, type TensorProto } from '../../../onnx/format/tensors.js'
import { intAttribute } from '../../../onnx/view/attributes.js'
import type { Graph } from '../../../onnx/view/graph.js'
import { operatorOf } from '../../../onnx/view/operators.js'
import { sourceOf } from '../../../onnx/view/patterns.js'
import { nodeScope, parameterModule } from '../linears.js'
import { constantWeight, openFloatLines } from './float-product.js'
import { type Form, type Linear, productOf } from './form.js'
import { castConstant, countOf, INTEGER_TYPES, type IntegerType, integerForm } from './integers.js'

/** The output of a graph that is only an embedding, and the name of its module. */
const [EMBEDS, EMBEDDING] = ['inputs_embeds', 'embed_tokens']

function blockType(node: NodeProto, tensor: TensorProto): IntegerType | undefined {
  if (tensor.dataType !== DataType.UINT8) return INTEGER_TYPES[tensor.dataType]
  const bits = intAttribute(node, 'bits', 4)
  return bits === 4 || bits === 8 ? { bits, isSigned: false } : undefined
}

const BLOCKS: Form = integerForm({
  name: 'GatherBlockQuantized',
  isLookup: true,

  find(graph, node) {
    if (operatorOf(node) !== 'com.microsoft:GatherBlockQuantized') return undefined
    // If the table is also the head's weight, it is stored in another shape.
    const name = sourceOf(graph, node.input[0], ['Reshape', 'Identity']).value
    const tensor = graph.constant(name)
    const scales = castConstant(graph, node.input[2])
    if (tensor === undefined || scales === undefined || scales.tensor.dims.length !== 2) return undefined
    const type = blockType(node, tensor)
    const k = dimsOf(scales.tensor)[0]
    const isPacked = tensor.dataType === DataType.UINT8
    const count = countOf(graph, name) ?? 0
    const d = ((isPacked ? 8 / (type?.bits ?? 8) : 1) * count) / k
    const isRows = intAttribute(node, 'gather_axis', 0) === 0 && intAttribute(node, 'quantize_axis', 1) === 1
    const hasZeroPoints = (node.input[3] ?? '') !== ''
    const kind = `${type?.bits ?? intAttribute(node, 'bits', 4)} bits, blocks of ${intAttribute(node, 'block_size', 128)}`
    const isKnown = type !== undefined && isRows && Number.isInteger(d)
    return productOf(BLOCKS, node, {
      ...{ weight: name, dataType: scales.dataType, transposed: false, k, d, input: node.input[1] },
      layout: `${kind}${hasZeroPoints ? ', zero points' : ''}`,
      problem: isKnown ? undefined : `integers of ${dataTypeName(tensor.dataType)}`,
    })
  },

  matrix(graph, { node, weight, d }) {
    const tensor = graph.constant(weight) as TensorProto
    const type = blockType(node, tensor) as IntegerType
    const blockSize = intAttribute(node, 'block_size', 128)
    const blocks = Math.ceil(d / blockSize)
    const isPacked = tensor.dataType === DataType.UINT8
    // If two zero points share a byte, each row still begins with a new byte.
    const stride = isPacked ? (Math.ceil((blocks * type.bits) / 8) * 8) / type.bits : blocks
    return {
      ...{ tensor, type, width: d, scales: node.input[2], zeroPoints: node.input[3], block: blockSize },
      middle: isPacked ? 1 << (type.bits - 1) : 0,
      scaleAt: (row, column) => row * blocks + Math.floor(column / blockSize),
      zeroAt: (row, column) => row * stride + Math.floor(column / blockSize),
    }
  },
})

const INTEGERS: Form = integerForm({
  name: 'DequantizeLinear',
  isLookup: true,

  find(graph, node) {
    if (operatorOf(node) !== 'Gather' || intAttribute(node, 'axis', 0) !== 0) return undefined
    const tensor = graph.constant(node.input[0])
    const [last, ...others] = graph.consumers(node.output[0])
    if (tensor === undefined || tensor.dims.length !== 2 || INTEGER_TYPES[tensor.dataType]?.bits !== 8) return undefined
    if (last?.opType !== 'DequantizeLinear' || others.length > 0) return undefined
    const [k, d] = dimsOf(tensor)
    const scale = castConstant(graph, last.input[1])
    const isOne = scale !== undefined && countOf(graph, last.input[1]) === 1
    return productOf(INTEGERS, node, {
      ...{ last, weight: node.input[0], dataType: scale?.dataType ?? DataType.FLOAT },
      ...{ transposed: false, k, d, input: node.input[1] },
      layout: `${dataTypeName(tensor.dataType).toLowerCase()}, one scale`,
      problem: isOne ? undefined : 'scales of several lines',
    })
  },

  matrix(graph, { last, weight, d }) {
    const tensor = graph.constant(weight) as TensorProto
    const type = INTEGER_TYPES[tensor.dataType] as IntegerType
    const [, scales, zeroPoints] = last.input
    return { tensor, type, width: d, scales, zeroPoints, block: d, scaleAt: () => 0 }
  },
})

const FLOATS: Form = {
  name: 'Gather',
  isQuantized: false,
  isLookup: true,

  find(graph, node) {
    if (operatorOf(node) !== 'Gather' || intAttribute(node, 'axis', 0) !== 0) return undefined
    const weight = constantWeight(graph, node.input[0], false)
    if (weight === undefined) return undefined
    const { name, transposed, dataType, tensor } = weight
    const [k, d] = transposed ? dimsOf(tensor).reverse() : dimsOf(tensor)
    const layout = dataTypeName(dataType).toLowerCase()
    return productOf(FLOATS, node, { weight: name, dataType, transposed, k, d, layout, input: node.input[1] })
  },

  openLines: openFloatLines,
}

/** Finds all lookups in constant matrices, including tables other than embeddings. */
export function findEmbeddings(graph: Graph): Linear[] {
  return graph.nodes.flatMap((node) => {
    const product = FLOATS.find(graph, node) ?? BLOCKS.find(graph, node) ?? INTEGERS.find(graph, node)
    if (product === undefined) return []
    // In a graph that is only an embedding, the lookup has no name.
    const isWhole = graph.outputs.some(({ name }) => name === EMBEDS) && graph.inputs.length === 1
    const name = nodeScope(node) ?? parameterModule(product.weight) ?? (isWhole ? EMBEDDING : node.name)
    return [{ ...product, name, isHead: false, fused: undefined }]
  })
}
