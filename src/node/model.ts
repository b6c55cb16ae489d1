// Models and adapters by path.

import path from 'node:path'
import type { Directory } from '../base/bytes.js'
import { FileError } from '../base/errors.js'
import type { Model } from '../graph/model-folder.js'
import * as deferred from '../index/deferred.js'
import { locate, NodeDirectory } from '../io/node/files.js'
import type { LoraAdapter } from '../lora/adapter.js'
import * as peft from '../peft/adapter-folder.js'
import type { RuntimeHost } from '../runtime/host.js'
import { nodeRuntime } from './runtime.js'

/** Files of models that ONNX Runtime does not run. */
const OTHER_FILES = /\.(gguf|safetensors|bin|pt|pth|ckpt|json)$/

/** Where a model runs, and where its graph is. */
export interface LoadModelOptions {
  /** Where sessions of the model run. Default: worker threads with the project's onnxruntime-node. */
  runtime?: RuntimeHost | undefined
  /** The graph's path inside the folder, if the first argument names a folder. */
  onnxPath?: string | undefined
}

/**
 * Opens a causal language model.
 *
 * @param target a folder as on the Hub for transformers.js (config.json, tokenizer.json, onnx/model.onnx), or its .onnx file
 * @throws FileError when a part is missing, FormatError when one cannot be read, RuntimeError without onnxruntime-node
 */
export async function loadModel(target: string | Directory, options: LoadModelOptions = {}): Promise<Model> {
  if (typeof target === 'string' && OTHER_FILES.test(target)) {
    const { file } = await locate(target)
    if (file !== undefined)
      throw new FileError({
        where: target,
        what: 'not a model that can be run',
        expected: 'a model folder or its .onnx file',
      })
  }
  const { directory, onnxPath } = typeof target === 'string' ? await locateModel(target) : { directory: target }
  return deferred.loadModel(directory, {
    runtime: options.runtime ?? nodeRuntime(),
    onnxPath: onnxPath ?? options.onnxPath,
  })
}

/** The model folder that a path means, and the graph's path in it if the path names the graph. */
export async function locateModel(target: string): Promise<{ directory: NodeDirectory; onnxPath?: string }> {
  const { directory, file } = await locate(target)
  if (file === undefined) return { directory }
  // The Hub's layout keeps graphs in onnx/, one folder below config.json.
  const parent = new NodeDirectory(path.join(directory.name, '..'))
  if (!(await directory.has('config.json')) && (await parent.has('config.json'))) {
    return { directory: parent, onnxPath: `${path.basename(path.resolve(directory.name))}/${file}` }
  }
  return { directory, onnxPath: file }
}

/**
 * Reads a PEFT adapter folder. Throws as the function of the same name in `lowrank` does.
 *
 * @param folder a path, or anything that holds files
 */
export function loadAdapter(folder: string | Directory, options: peft.LoadOptions = {}): Promise<LoraAdapter> {
  return peft.loadAdapter(asDirectory(folder), options)
}

/**
 * Writes a folder that PEFT loads. Throws as the function of the same name in `lowrank` does.
 *
 * @param folder a path, or anything that holds files
 */
export function saveAdapter(
  adapter: LoraAdapter,
  folder: string | Directory,
  options: peft.SaveOptions = {},
): Promise<void> {
  return peft.saveAdapter(adapter, asDirectory(folder), options)
}

/** A path as a folder; a folder as it is. */
export function asDirectory(folder: string | Directory): Directory {
  return typeof folder === 'string' ? new NodeDirectory(folder) : folder
}
