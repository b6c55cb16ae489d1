// The float matrix behind a value, through the nodes that only hand it on.

import { TensorProto_DataType as DataType, type TensorProto } from '../../../formats/onnx/gen/onnx_pb.js'
import { intAttribute, intsAttribute } from '../../view/attributes.js'
import type { Value } from '../../view/builder.js'
import type { Graph } from '../../view/graph.js'

/** A stored matrix. */
export interface ConstantWeight {
  readonly name: string
  readonly tensor: TensorProto
  readonly transposed: boolean
  /** After any Cast. */
  readonly dataType: DataType
}

const FLOATS: readonly number[] = [DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16, DataType.DOUBLE]

/** The 2-D float initializer behind a value, through Transpose, Cast and Identity. */
export function constantWeight(
  graph: Graph,
  value: Value,
  transposed: boolean,
  castTo?: DataType,
): ConstantWeight | undefined {
  const node = graph.producer(value)
  if (node?.opType === 'Transpose') {
    const perm = intsAttribute(node, 'perm')
    const isSwap = perm === undefined || (perm[0] === 1 && perm[1] === 0)
    return isSwap ? constantWeight(graph, node.input[0], !transposed, castTo) : undefined
  }
  if (node?.opType === 'Cast') {
    return constantWeight(graph, node.input[0], transposed, castTo ?? intAttribute(node, 'to', DataType.FLOAT))
  }
  const tensor = graph.constant(value)
  if (tensor === undefined || !FLOATS.includes(tensor.dataType) || tensor.dims.length !== 2) return undefined
  const name = tensor.name !== '' && graph.initializers.has(tensor.name) ? tensor.name : value
  return { name, tensor, transposed, dataType: castTo ?? tensor.dataType }
}
