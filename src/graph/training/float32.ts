// Graphs in half precision, computed in float32 for training: gradients would leave the range of float16. The weights in the file stay as they
// are; each is cast where it is read.

import {
  TensorProto_DataType as DataType,
  type TensorProto,
  type ValueInfoProto,
} from '../../formats/onnx/gen/onnx_pb.js'
import { valueInfo } from '../inject/inject.js'
import { dimsOfInput } from '../inputs/roles.js'
import { constantTensor, intAttribute, makeAttribute } from '../view/attributes.js'
import { Builder } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

/** Lets a graph compute in float32 what it computes in float16. Graphs without float16 stay as they are. */
export function computeInFloat32(graph: Graph): void {
  const g = new Builder(graph, 'float32')
  const isHalf = (tensor: TensorProto | undefined) => tensor?.dataType === DataType.FLOAT16
  for (const node of [...graph.nodes]) {
    if (node.opType === 'Cast' && intAttribute(node, 'to', 0) === DataType.FLOAT16) {
      node.attribute = [...node.attribute.filter(({ name }) => name !== 'to'), makeAttribute('to', DataType.FLOAT)]
    } else if (['Constant', 'ConstantOfShape'].includes(node.opType) && isHalf(constantTensor(node))) {
      const output = node.output[0]
      const half = graph.freshName(`${output}/half`)
      graph.setOutput(node, 0, half)
      graph.setOutput(g.node('Cast', [half], { to: DataType.FLOAT }), 0, output)
    }
  }
  for (const [name, tensor] of [...graph.initializers]) {
    if (!isHalf(tensor)) continue
    const readers = [...graph.consumers(name)]
    const value = g.cast(name, DataType.FLOAT)
    for (const reader of readers) {
      graph.setInputs(
        reader,
        reader.input.map((input) => (input === name ? value : input)),
      )
    }
  }
  graph.inputs = graph.inputs.map(inFloat32)
  graph.outputs = graph.outputs.map(inFloat32)
  graph.valueInfo = graph.valueInfo.filter((info) => !isHalfValue(info))
}

function isHalfValue({ type }: ValueInfoProto): boolean {
  return type?.value.case === 'tensorType' && type.value.value.elemType === DataType.FLOAT16
}

function inFloat32(info: ValueInfoProto): ValueInfoProto {
  if (!isHalfValue(info)) return info
  const dims = dimsOfInput(info).map((dim, i) => dim ?? `${info.name} ${i}`)
  return valueInfo(info.name, DataType.FLOAT, dims)
}
