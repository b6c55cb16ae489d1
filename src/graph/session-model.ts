// A graph over a model's weights in the form that a runtime opens: the weights stay in their files.

import { readAll } from '../base/bytes.js'
import { copyMessage, mapTensors, tensorsOf } from '../formats/onnx/messages.js'
import { type OnnxModel, serializeModel } from '../formats/onnx/model.js'
import {
  byteLengthOf,
  DataType,
  dimsOf,
  externalTensor,
  isExternal,
  type ModelProto,
  type TensorProto,
  weightRange,
} from '../formats/onnx/tensors.js'
import type { SessionModel } from '../runtime/runtime.js'
import { valueInfo } from './inject/inject.js'
import { intAttribute } from './view/attributes.js'
import { Graph } from './view/graph.js'

/**
 * On a file system weights stay in their folder, by real paths: ONNX Runtime refuses symbolic links (as in Hugging
 * Face's cache). Elsewhere their content goes along.
 */
export async function sessionModel(model: OnnxModel, proto: ModelProto): Promise<SessionModel> {
  const used = new Set<string>()
  for (const tensor of tensorsOf(proto)) if (isExternal(tensor)) used.add(weightRange(tensor, model.name).location)
  if (used.size === 0) return { graph: serializeModel(proto) }
  const realPaths = new Map<string, string>()
  for (const location of used) {
    const path = model.file(location).realPath
    if (path === undefined) return { graph: serializeModel(proto), weights: await contentOf(model, used) }
    realPaths.set(location, path)
  }
  const folder = commonFolder([...realPaths.values()])
  const relocated = mapTensors(proto, (tensor) => {
    if (!isExternal(tensor)) return tensor
    const range = weightRange(tensor, model.name)
    const location = (realPaths.get(range.location) as string).slice(folder.length + 1).replaceAll('\\', '/')
    return location === range.location ? tensor : externalTensor(tensor, { ...range, location })
  })
  return { graph: serializeModel(relocated), weightsFolder: folder }
}

function contentOf(model: OnnxModel, locations: Iterable<string>): Promise<NonNullable<SessionModel['weights']>> {
  return Promise.all(
    Array.from(locations, async (location) => {
      const file = model.file(location)
      return { location, data: file.blob ?? (await readAll(file)) }
    }),
  )
}

/** Smaller ones are not worth a choice. */
const LEAST_BYTES = 2 ** 16

/**
 * The model with at most `bytes` of weights that ONNX Runtime repacks, and holds as copies: a weight that is an input
 * too is never repacked. The first products by weights as they are stored gain most, and read weights of their own.
 */
export function packWithin(model: ModelProto, bytes: number): ModelProto {
  const graph = new Graph(model)
  let left = bytes
  const sizeOf = (tensor: TensorProto) => byteLengthOf(tensor.dataType, dimsOf(tensor)) ?? 0
  // Products by quantized weights need more memory where these are not repacked.
  const isFloat = ({ dataType }: TensorProto) => dataType === DataType.FLOAT || dataType === DataType.FLOAT16
  const isChosen = (tensor: TensorProto) => isFloat(tensor) && sizeOf(tensor) >= LEAST_BYTES
  const weights = new Map([...graph.initializers].filter(([, tensor]) => isChosen(tensor)))
  for (const node of graph.nodes) {
    const weight = node.opType === 'Gemm' && intAttribute(node, 'transB', 0) === 0 && weights.get(node.input[1])
    if (!weight || sizeOf(weight) > left) continue
    left -= sizeOf(weight)
    const name = graph.freshName(`${weight.name}/repacked`)
    graph.setInput(node, 1, graph.addInitializer(copyMessage(weight, { name })))
  }
  graph.prune()
  const mapped = [...weights.values()].filter(({ name }) => graph.initializers.has(name))
  graph.inputs.push(...mapped.map((tensor) => valueInfo(tensor.name, tensor.dataType, dimsOf(tensor))))
  return graph.toModel()
}

/** Without a separator at its end. */
function commonFolder(paths: readonly string[]): string {
  const folders = paths.map((path) => path.split(/[\\/]/).slice(0, -1))
  let depth = 0
  while (folders.every((parts) => depth < parts.length && parts[depth] === folders[0][depth])) depth++
  return paths[0].slice(0, folders[0].slice(0, depth).join('/').length)
}
