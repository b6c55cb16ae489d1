// Makes the form of a graph that a runtime opens, while weights stay in their files.

import { readAll } from '../core/base/bytes.js'
import { UnsupportedError } from '../core/base/errors.js'
import { groupBy } from '../core/base/group.js'
import { copyMessage, mapTensors, tensorsOf } from '../onnx/format/messages.js'
import { type OnnxModel, serializeModel } from '../onnx/format/model.js'
import {
  byteLengthOf,
  DataType,
  dimsOf,
  externalTensor,
  type GraphProto,
  isExternal,
  type ModelProto,
  type TensorProto,
  type ValueInfoProto,
  weightRange,
} from '../onnx/format/tensors.js'
import type { SessionModel } from '../onnx/runtime/runtime.js'
import { type Graph, subgraphs } from '../onnx/view/graph.js'
import { operatorOf } from '../onnx/view/operators.js'
import { valueInfo } from '../onnx/view/value-info.js'

/**
 * On a file system, names the weights by real paths, because ONNX Runtime refuses symbolic links (as in Hugging Face's
 * cache). Elsewhere, passes their content.
 */
export async function sessionModel(model: OnnxModel, proto: ModelProto): Promise<SessionModel> {
  const external = tensorsOf(proto).filter(isExternal)
  const used = [...new Set(external.map((tensor) => weightRange(tensor, model.name).location))]
  if (used.length === 0) return { graph: serializeModel(proto) }
  await model.fetch()
  const paths = used.flatMap((location) => model.file(location).realPath ?? [])
  if (paths.length < used.length) return { graph: serializeModel(proto), weights: await contentOf(model, used) }
  const folder = commonFolder(paths)
  const relocated = mapTensors(proto, (tensor) => {
    if (!isExternal(tensor)) return tensor
    const range = weightRange(tensor, model.name)
    const location = paths[used.indexOf(range.location)].slice(folder.length + 1).replaceAll('\\', '/')
    return location === range.location ? tensor : externalTensor(tensor, { ...range, location })
  })
  return { graph: serializeModel(relocated), weightsFolder: folder }
}

/**
 * Writes the graph with inputs in place of its weights. Opened without the weights, it shows whether a runtime has all
 * operators.
 */
export function withoutWeights(proto: ModelProto): Uint8Array {
  const inputs = new Map<string, ValueInfoProto>()
  const graph = takeWeights(proto.graph as GraphProto, inputs)
  return serializeModel(
    copyMessage(proto, { graph: copyMessage(graph, { input: [...graph.input, ...inputs.values()] }) }),
  )
}

function takeWeights(graph: GraphProto, inputs: Map<string, ValueInfoProto>): GraphProto {
  const take = (name: string, tensor: TensorProto | undefined): boolean => {
    if (tensor === undefined || !isExternal(tensor)) return false
    inputs.set(name, valueInfo(name, tensor.dataType, dimsOf(tensor)))
    return true
  }
  const node = graph.node.flatMap((node) => {
    if (node.opType === 'Constant' && take(node.output[0], node.attribute[0]?.t)) return []
    if (subgraphs(node).length === 0) return [node]
    const attribute = node.attribute.map((item) =>
      item.g ? copyMessage(item, { g: takeWeights(item.g, inputs) }) : item,
    )
    return [copyMessage(node, { attribute })]
  })
  return copyMessage(graph, { node, initializer: graph.initializer.filter((tensor) => !take(tensor.name, tensor)) })
}

/** ONNX Runtime names an operator that it does not know, but not the node. */
export function atNode(error: unknown, { nodes }: Graph): unknown {
  if (!(error instanceof UnsupportedError)) return error
  const all = nodes.flatMap((node) => [node, ...subgraphs(node).flatMap((branch) => branch.node)])
  const node = all.find((node) => error.what.endsWith(`the operator ${operatorOf(node)}`))
  if (node === undefined) return error
  return new UnsupportedError({
    ...error,
    where: `node ${node.name}`,
    what: `ONNX Runtime: ${error.what}`,
    cause: error,
  })
}

function contentOf(model: OnnxModel, locations: Iterable<string>): Promise<NonNullable<SessionModel['weights']>> {
  return Promise.all(
    Array.from(locations, async (location) => {
      const file = model.file(location)
      return { location, data: file.blob ?? (await readAll(file)) }
    }),
  )
}

/** Copies of smaller weights take little memory, so they are ignored. */
const LEAST_BYTES = 2 ** 16

/**
 * Keeps float weights in mapped pages of their file, except for copies of up to `copiedBytes`: ONNX Runtime does not
 * repack a weight that is also a graph input. Not quantized weights: their products need more memory if the weights are
 * not repacked.
 */
export function keepMapped(model: ModelProto, copiedBytes = Number.POSITIVE_INFINITY): ModelProto {
  if (copiedBytes === Number.POSITIVE_INFINITY) return model
  const graph = model.graph as GraphProto
  const copied = copiedBytes > 0 ? copiedWithin(graph, copiedBytes) : new Set()
  const mapped = graph.initializer.flatMap((tensor) => {
    const { name, dataType } = tensor
    const isFloat = dataType === DataType.FLOAT || dataType === DataType.FLOAT16
    const isMapped = isFloat && bytesOfWeight(tensor) >= LEAST_BYTES && !copied.has(name)
    return isMapped ? [valueInfo(name, dataType, dimsOf(tensor))] : []
  })
  return copyMessage(model, { graph: copyMessage(graph, { input: [...graph.input, ...mapped] }) })
}

/**
 * Chooses the largest weights whose copies fit, as layers of an MLP gain most. A shape that only one weight has, such
 * as an output layer's, is left out. Each product makes a copy; the first one replaces the mapped pages.
 */
function copiedWithin(graph: GraphProto, bytes: number): Set<string> {
  const uses = new Map<string, number>()
  for (const { opType, input } of graph.node) {
    if (opType === 'Gemm') uses.set(input[1], (uses.get(input[1]) ?? 0) + 1)
  }
  const weights = graph.initializer.filter(({ name, dataType }) => dataType === DataType.FLOAT && uses.has(name))
  const layers = [...groupBy(weights, ({ dims }) => dims.join()).values()].filter(({ length }) => length > 1).flat()
  const copied = new Set<string>()
  let room = bytes
  for (const tensor of layers.toSorted((a, b) => bytesOfWeight(b) - bytesOfWeight(a))) {
    const more = ((uses.get(tensor.name) ?? 1) - 1) * bytesOfWeight(tensor)
    if (more > room) continue
    room -= more
    copied.add(tensor.name)
  }
  return copied
}

function bytesOfWeight(tensor: TensorProto): number {
  return byteLengthOf(tensor.dataType, dimsOf(tensor)) ?? 0
}

/** Returns the common folder of paths, without a separator at its end. */
function commonFolder(paths: readonly string[]): string {
  const folders = paths.map((path) => path.split(/[\\/]/).slice(0, -1))
  let depth = 0
  while (folders.every((parts) => depth < parts.length && parts[depth] === folders[0][depth])) depth++
  return paths[0].slice(0, folders[0].slice(0, depth).join('/').length)
}
