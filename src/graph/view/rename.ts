// All names of a model at once: values, wherever they are made and read, and nodes.

import type { AttributeProto, GraphProto, ModelProto, NodeProto } from '../../formats/onnx/gen/onnx_pb.js'
import { copyMessage } from '../../formats/onnx/messages.js'

/** New names by old ones. No two values may get the same. */
export interface Renaming {
  value(name: string): string
  node(node: NodeProto): Partial<NodeProto>
}

/** The model under other names, in the bodies of its nodes too. */
export function renameAll(model: ModelProto, renaming: Renaming): ModelProto {
  return model.graph === undefined ? model : copyMessage(model, { graph: renamedGraph(model.graph, renaming) })
}

function renamedGraph(graph: GraphProto, renaming: Renaming): GraphProto {
  const { value } = renaming
  const named = <T extends { name: string }>(list: readonly T[]) =>
    list.map((entry) => copyMessage(entry, { name: value(entry.name) } as Partial<T>))
  return copyMessage(graph, {
    node: graph.node.map((node) => renamedNode(node, renaming)),
    initializer: named(graph.initializer),
    input: named(graph.input),
    output: named(graph.output),
    valueInfo: named(graph.valueInfo),
    quantizationAnnotation: [],
  })
}

function renamedNode(node: NodeProto, renaming: Renaming): NodeProto {
  const nameOf = (name: string) => (name === '' ? '' : renaming.value(name))
  const inside = (attribute: AttributeProto) => {
    const { g, graphs } = attribute
    if (g === undefined && graphs.length === 0) return attribute
    return copyMessage(attribute, {
      g: g && renamedGraph(g, renaming),
      graphs: graphs.map((one) => renamedGraph(one, renaming)),
    })
  }
  return copyMessage(node, {
    ...renaming.node(node),
    input: node.input.map(nameOf),
    output: node.output.map(nameOf),
    attribute: node.attribute.map(inside),
  })
}
