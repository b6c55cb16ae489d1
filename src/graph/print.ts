// A graph as text, one line a node, for debugging and for tests: `y = MatMul(x, W) {transB: 1} # name`.

import { type AttributeProto, AttributeProto_AttributeType as AttributeType } from '../formats/onnx/gen/onnx_pb.js'
import { dataTypeName, dimsOf, floatsOf, integersOf, isExternal } from '../formats/onnx/tensors.js'
import type { Graph } from './graph.js'
import { operatorOf } from './operators.js'

/** Contents of more elements are left out. */
const MAX_ELEMENTS = 8

export function printGraph(graph: Graph): string {
  const lines = [`inputs ${graph.inputs.map(({ name }) => name).join(', ')}`]
  for (const tensor of graph.initializers.values()) lines.push(`${tensor.name} = ${printTensor(tensor)}`)
  for (const node of graph.nodes) {
    const attributes = node.attribute.map((entry) => `${entry.name}: ${printAttribute(entry)}`).join(', ')
    lines.push(
      `${node.output.join(', ')} = ${operatorOf(node)}(${node.input.join(', ')})` +
        (attributes === '' ? '' : ` {${attributes}}`) +
        (node.name === '' ? '' : ` # ${node.name}`),
    )
  }
  return [...lines, `outputs ${graph.outputs.map(({ name }) => name).join(', ')}`].join('\n')
}

function printTensor(tensor: Parameters<typeof dimsOf>[0]): string {
  const type = `${dataTypeName(tensor.dataType).toLowerCase()}[${dimsOf(tensor).join(', ')}]`
  if (isExternal(tensor)) return `${type} external`
  const elements = integersOf(tensor) ?? floatsOf(tensor)
  return elements === undefined || elements.length > MAX_ELEMENTS ? type : `${type} ${elements.join(' ')}`.trimEnd()
}

function printAttribute(attribute: AttributeProto): string {
  switch (attribute.type) {
    case AttributeType.INT:
      return `${attribute.i}`
    case AttributeType.FLOAT:
      return `${attribute.f}`
    case AttributeType.STRING:
      return JSON.stringify(new TextDecoder().decode(attribute.s))
    case AttributeType.INTS:
      return `[${attribute.ints.join(', ')}]`
    case AttributeType.FLOATS:
      return `[${attribute.floats.join(', ')}]`
    case AttributeType.TENSOR:
      return attribute.t === undefined ? '' : printTensor(attribute.t)
    default:
      return AttributeType[attribute.type]?.toLowerCase() ?? 'unknown'
  }
}
