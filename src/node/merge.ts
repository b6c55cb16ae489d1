// Merging by path, and what kind of model a path means.

import { locate, type NodeDirectory } from '../io/node/files.js'
import { locateModel } from './model.js'

export {
  type MergeToPath,
  merge,
  type PathAdapter,
  planMerge,
  type UnmergeToPath,
  unmerge,
} from '../merge/node/merge.js'

interface OnnxBase {
  directory: NodeDirectory
  file: string
}

/** The ONNX model that a path means; undefined when it means a checkpoint. */
export async function locateOnnx(target: string): Promise<OnnxBase | undefined> {
  const { directory, file } = await locate(target)
  if (file !== undefined) {
    if (/\.(safetensors|json|bin|pt|pth|ckpt)$/.test(file)) return undefined
    const model = await locateModel(target)
    return { directory: model.directory, file: model.onnxPath! }
  }
  const files = await directory.list()
  if (files.some((name) => /\.safetensors(\.index\.json)?$/.test(name))) return undefined
  for (const graph of ['onnx/model.onnx', 'model.onnx']) {
    if (await directory.has(graph)) return { directory, file: graph }
  }
  return undefined
}
