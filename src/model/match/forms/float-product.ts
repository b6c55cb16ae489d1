// MatMul and Gemm with a float weight, which exporters write for nn.Linear.

import { decodeFloats, type FloatDtype } from '../../../core/base/dtype.js'
import { UnsupportedError } from '../../../core/base/errors.js'
import type { OnnxModel } from '../../../onnx/format/model.js'
import { DataType, dataTypeName, dimsOf } from '../../../onnx/format/tensors.js'
import { floatAttribute, intAttribute } from '../../../onnx/view/attributes.js'
import type { Value } from '../../../onnx/view/builder.js'
import type { Graph } from '../../../onnx/view/graph.js'
import { operatorOf } from '../../../onnx/view/operators.js'
import { sourceOf } from '../../../onnx/view/patterns.js'
import { type Form, type FormName, type Product, productOf, type ReadLines } from './form.js'

export const FLOAT_DTYPES: Partial<Record<number, FloatDtype>> = {
  [DataType.FLOAT]: 'fp32',
  [DataType.FLOAT16]: 'fp16',
  [DataType.BFLOAT16]: 'bf16',
}

function floatProduct(name: FormName & ('MatMul' | 'Gemm')): Form {
  const form: Form = {
    name,
    isQuantized: false,

    find(graph, node) {
      if (operatorOf(node) !== name) return undefined
      const isGemm = name === 'Gemm'
      if (isGemm && intAttribute(node, 'transA', 0) === 1) return undefined
      const weight = constantWeight(graph, node.input[1], isGemm && intAttribute(node, 'transB', 0) === 1)
      if (weight === undefined) return undefined
      const dims = dimsOf(weight.tensor)
      const { transposed, dataType } = weight
      const [k, d] = transposed ? [dims[1], dims[0]] : dims
      const layout = dataTypeName(weight.tensor.dataType).toLowerCase()
      const alpha = isGemm ? floatAttribute(node, 'alpha', 1) : 1
      const problem = alpha === 1 ? undefined : `alpha ${alpha}`
      return productOf(form, node, { weight: weight.name, dataType, transposed, k, d, layout, problem })
    },

    openLines: openFloatLines,
  }
  return form
}

export async function openFloatLines(
  model: OnnxModel,
  graph: Graph,
  { node, weight, problem }: Pick<Product, 'node' | 'weight' | 'problem'>,
): Promise<ReadLines> {
  const tensor = graph.constant(weight)
  const dtype = tensor && FLOAT_DTYPES[tensor.dataType]
  if (tensor === undefined || dtype === undefined || problem !== undefined) {
    throw new UnsupportedError({
      where: `node ${node.name}`,
      what: 'its weight cannot be read',
      expected: 'a weight in f32, f16 or bf16, which its node does not multiply',
      got: problem ?? (tensor === undefined ? 'no constant' : dataTypeName(tensor.dataType)),
    })
  }
  const lineBytes = dimsOf(tensor)[1] * (dtype === 'fp32' ? 4 : 2)
  return async (first, count) =>
    decodeFloats(await model.readTensor(tensor, first * lineBytes, count * lineBytes), dtype)
}

export const MATMUL: Form = floatProduct('MatMul')
export const GEMM: Form = floatProduct('Gemm')

const FLOATS: readonly number[] = [DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16, DataType.DOUBLE]

/** Finds the 2-D float initializer of a value, through Transpose, Cast and Identity. `dataType`: after any Cast. */
export function constantWeight(graph: Graph, from: Value, transposed: boolean) {
  const { value, isSwapped, castTo } = sourceOf(graph, from)
  const tensor = graph.constant(value)
  if (tensor === undefined || !FLOATS.includes(tensor.dataType) || tensor.dims.length !== 2) return undefined
  return { name: value, tensor, transposed: transposed !== isSwapped, dataType: castTo ?? tensor.dataType }
}
