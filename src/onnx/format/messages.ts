// Copies of protobuf messages and walks over the tensors of a model.

import type { AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto } from './gen/onnx_pb.js'

/** Copies a message with its prototype, which has the defaults of unset fields. A spread would lose it. */
export function copyMessage<T extends object>(message: T, changes: Partial<T> = {}): T {
  return Object.assign(Object.create(Object.getPrototypeOf(message) as object) as T, message, changes)
}

/**
 * Changes the tensors of initializers, attributes, subgraphs and functions. The result shares all else with `model`.
 */
export function mapTensors(model: ModelProto, change: (tensor: TensorProto) => TensorProto): ModelProto {
  const graph = model.graph === undefined ? undefined : mapGraph(model.graph, change)
  const functions = mapList(model.functions, (entry) => {
    const node = mapList(entry.node, (item) => mapNode(item, change))
    return node === entry.node ? entry : copyMessage(entry, { node })
  })
  if (graph === model.graph && functions === model.functions) return model
  return copyMessage(model, { graph, functions })
}

/** All tensors of a model, in the order of {@link mapTensors}. */
export function tensorsOf(model: ModelProto): TensorProto[] {
  const tensors: TensorProto[] = []
  mapTensors(model, (tensor) => {
    tensors.push(tensor)
    return tensor
  })
  return tensors
}

function mapGraph(graph: GraphProto, change: (tensor: TensorProto) => TensorProto): GraphProto {
  const initializer = mapList(graph.initializer, change)
  const node = mapList(graph.node, (item) => mapNode(item, change))
  return initializer === graph.initializer && node === graph.node ? graph : copyMessage(graph, { initializer, node })
}

function mapNode(node: NodeProto, change: (tensor: TensorProto) => TensorProto): NodeProto {
  const attribute = mapList(node.attribute, (item) => mapAttribute(item, change))
  return attribute === node.attribute ? node : copyMessage(node, { attribute })
}

function mapAttribute(attribute: AttributeProto, change: (tensor: TensorProto) => TensorProto): AttributeProto {
  const t = attribute.t && change(attribute.t)
  const g = attribute.g && mapGraph(attribute.g, change)
  const tensors = mapList(attribute.tensors, change)
  const graphs = mapList(attribute.graphs, (graph) => mapGraph(graph, change))
  const isSame = t === attribute.t && g === attribute.g && tensors === attribute.tensors && graphs === attribute.graphs
  return isSame ? attribute : copyMessage(attribute, { ...(t && { t }), ...(g && { g }), tensors, graphs })
}

/** Returns the same array if no item changes. */
function mapList<T>(items: T[], change: (item: T) => T): T[] {
  let result = items
  items.forEach((item, i) => {
    const changed = change(item)
    if (changed === item) return
    if (result === items) result = items.slice()
    result[i] = changed
  })
  return result
}
