// Opens models. The code that reads graphs and tokenizers is loaded with the first call.

import type { Place, Source } from '../core/base/bytes.js'
import { FileError, type FormatError } from '../core/base/errors.js'
import type { SignalLike } from '../core/base/globals.js'
import { checkOptions } from '../core/base/options.js'
import type { RemoteOptions } from '../files/io/hub/directory.js'
import type { DtypeChoice } from '../model/graph-file.js'
import type { Model, TextModel } from '../model/model-folder.js'
import type { RuntimeHost } from '../onnx/runtime/host.js'
import { LOAD_MODEL_OPTIONS } from './gen/run-options.js'
import { type DownloadEvents, hearing } from './hub.js'
import { platform } from './platform/platform.js'
import { openSource } from './sources.js'

/** Options of {@link loadModel}. */
export interface LoadModelOptions {
  /**
   * The runtime in which sessions of the model run: `nodeRuntime()`, `webRuntime(url)`, or `{ module }` with the
   * imported ONNX Runtime for the calling thread. Default in Node: worker threads with the onnxruntime-node of your
   * project. In a browser you must set it.
   */
  runtime?: RuntimeHost | undefined
  /**
   * Type of the weights, which chooses the .onnx file: onnx/model_q4.onnx for `q4`. Default `auto`: the type in
   * config.json, or fp32 if it has none.
   * @flag TYPE
   */
  dtype?: DtypeChoice | undefined
  /** If the source is a folder: path of the .onnx file in that folder. Default: by `dtype`. */
  onnxPath?: string | undefined
  /** Callbacks. Default: the ones of {@link configureHub}. `{}` is silent. */
  on?: DownloadEvents | undefined
  /** Stops the downloads. Finished parts stay in the cache. */
  signal?: SignalLike | undefined
}

const OTHER_FILES = /\.(gguf|safetensors|bin|pt|pth|ckpt|json)$/

/** Throws unless a model has a chat template. Loads only the template, because the weights may be large and remote. */
export async function requireChatTemplate(source: Source, error?: (model: string) => FormatError): Promise<void> {
  const { directory } = await openSource(source, 'source')
  const { loadChatTemplate } = await import('../model/text/chat-template.js')
  if ((await loadChatTemplate(directory)) !== undefined) return
  throw (error ?? (await import('../run/generate/messages.js')).noTemplate)(directory.name)
}

export async function loadModel(source: Source, options: LoadModelOptions = {}): Promise<Model> {
  checkOptions(options, 'loadModel', LOAD_MODEL_OPTIONS)
  const { on, signal } = options
  const { directory, file } = await openModel(source, { signal, ...(on && hearing(on)) })
  const folder = await import('../model/model-folder.js')
  const { runtime = platform().defaultRuntime(), dtype } = options
  return folder.loadModel(directory, { runtime, dtype, onnxPath: file ?? options.onnxPath })
}

/** Reads what encoding records needs. A model that reads pictures beside texts is opened whole, as it measures them. */
export async function loadForRecords(source: Source, options: LoadModelOptions): Promise<Model | TextModel> {
  const { directory } = await openModel(source, options)
  const texts = await (await import('../model/model-folder.js')).loadTexts(directory)
  const readsPictures = texts.preprocessorConfig !== undefined && texts.tokenizer !== undefined
  return readsPictures ? loadModel(directory, options) : texts
}

async function openModel(source: Source, options: RemoteOptions): Promise<Place> {
  const place = await openSource(source, 'source', options)
  const { directory, file } = place
  if (file === undefined || !OTHER_FILES.test(file)) return place
  throw new FileError({
    where: `${directory.name}/${file}`,
    what: 'not a model that can be run',
    expected: 'a model folder or its .onnx file',
  })
}
