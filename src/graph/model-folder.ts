// A causal language model in a folder as transformers.js reads it: config.json, tokenizer.json, onnx/model.onnx. Loading
// reads the graph and the tokenizer; weights stay in their file.

import { type Directory, readJson } from '../base/bytes.js'
import { FileError, FormatError } from '../base/errors.js'
import { loadOnnx, type OnnxModel } from '../formats/onnx/model.js'
import type { RuntimeHost } from '../runtime/host.js'
import { loadTokenizer, type Tokenizer } from '../text/tokenizer.js'

/** A causal language model with its tokenizer, as `loadModel` reads it; weights stay in their file. */
export interface CausalModel {
  /** For messages and for an adapter's `base_model_name_or_path`: config.json's name, else the folder's. */
  readonly name: string
  /** The folder that it was read from. */
  readonly directory: Directory
  /** Where the graph was found, relative to `directory`. */
  readonly onnxPath: string
  /** config.json */
  readonly config: Readonly<Record<string, unknown>>
  /** generation_config.json; empty if the folder has none. */
  readonly generationConfig: Readonly<Record<string, unknown>>
  /** The graph, and where each weight lies. */
  readonly onnx: OnnxModel
  /** Of tokenizer.json. */
  readonly tokenizer: Tokenizer
  /** Number of tokens that the model knows, as far as config.json tells. */
  readonly vocabularySize: number | undefined
  /** Most tokens that the positions of the model reach, as far as config.json tells. */
  readonly contextLength: number | undefined
  /** Tokens that end a generated text, the tokenizer's own first; empty if no file names one. */
  readonly eosTokenIds: readonly number[]
  /** The token that fills up batches; its value has no influence, so a folder that names none gets its eos, else 0. */
  readonly padTokenId: number
  /** Where sessions of this model run. */
  readonly runtime: RuntimeHost
  /** Closes the files of the graph and its weights. Sessions of the model are to be disposed before. */
  close(): Promise<void>
}

/** Where a model runs, and where its graph is. */
export interface LoadModelOptions {
  /** Where sessions of the model run: `webRuntime(url)`, `nodeRuntime()`, or `{ module }` for the caller's own thread. */
  runtime: RuntimeHost
  /** The graph's path inside the folder; default: onnx/model.onnx, else model.onnx. */
  onnxPath?: string | undefined
}

/** Where a folder's graph is looked for, first match first. */
const ONNX_PATHS = ['onnx/model.onnx', 'model.onnx']

/** Names under which configs give the context length, most common first. */
const CONTEXT_KEYS = ['max_position_embeddings', 'n_positions', 'n_ctx', 'max_seq_len', 'seq_length']

/**
 * Opens a model folder.
 *
 * @throws FileError when a part is missing, FormatError when one cannot be read
 */
export async function loadModel(directory: Directory, options: LoadModelOptions): Promise<CausalModel> {
  const path = options.onnxPath ?? (await findOnnx(directory))
  if (!(await directory.has('config.json'))) throw missing(directory, 'config.json')
  const config = await readObject(directory, 'config.json')
  const hasGenerationConfig = await directory.has('generation_config.json')
  const generationConfig = hasGenerationConfig ? await readObject(directory, 'generation_config.json') : {}
  const tokenizer = await loadTokenizer(directory)
  const onnx = await loadOnnx(directory, path)
  const eosTokenIds = [
    ...new Set([
      ...tokenIds(tokenizer.eosTokenId),
      ...tokenIds(generationConfig.eos_token_id),
      ...tokenIds(config.eos_token_id),
    ]),
  ]
  const vocabularySize = positiveInteger(config, ['vocab_size'])
  // Tokenizers name tokens for padding that were added to them alone, behind the last one that the model knows.
  const padTokenIds = [tokenizer.padTokenId, generationConfig.pad_token_id, config.pad_token_id]
    .flatMap(tokenIds)
    .filter((id) => id < (vocabularySize ?? Number.POSITIVE_INFINITY))
  return {
    name:
      typeof config._name_or_path === 'string' && config._name_or_path !== '' ? config._name_or_path : directory.name,
    directory,
    onnxPath: path,
    config,
    generationConfig,
    onnx,
    tokenizer,
    vocabularySize,
    contextLength: positiveInteger(config, CONTEXT_KEYS),
    eosTokenIds,
    padTokenId: padTokenIds[0] ?? eosTokenIds[0] ?? 0,
    runtime: options.runtime,
    close: () => onnx.close(),
  }
}

async function findOnnx(directory: Directory): Promise<string> {
  for (const path of ONNX_PATHS) if (await directory.has(path)) return path
  const files = await directory.list()
  const hasCheckpoint = files.some((file) => /^(?!adapter_).*\.safetensors(\.index\.json)?$/.test(file))
  throw new FileError({
    where: directory.name,
    what: 'no ONNX model in this folder',
    expected: ONNX_PATHS.join(' or '),
    hint: hasCheckpoint
      ? 'Its safetensors checkpoint can be merged, but not run: take an ONNX export, such as those of onnx-community on the Hub'
      : 'Name a folder as on the Hub for transformers.js, or the .onnx file itself',
  })
}

function missing(directory: Directory, path: string): FileError {
  return new FileError({
    where: directory.name,
    what: `no ${path} in this folder`,
    expected: 'config.json, tokenizer.json and onnx/model.onnx',
    hint: `Copy ${path} from where the model came from`,
  })
}

async function readObject(directory: Directory, path: string): Promise<Record<string, unknown>> {
  const value = await readJson(directory, path)
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>
  throw new FormatError({
    where: `${directory.name}/${path}`,
    what: 'not a model configuration',
    expected: 'a JSON object',
  })
}

function tokenIds(value: unknown): number[] {
  return (Array.isArray(value) ? value : [value]).filter((id) => Number.isSafeInteger(id) && id >= 0)
}

/** The first of the keys that has one, in config.json or in its part on text. */
function positiveInteger(config: Record<string, unknown>, keys: readonly string[]): number | undefined {
  const nested = config.text_config
  const sources = typeof nested === 'object' && nested !== null ? [config, nested as Record<string, unknown>] : [config]
  for (const source of sources) {
    for (const key of keys) {
      const value = source[key]
      if (Number.isSafeInteger(value) && (value as number) > 0) return value as number
    }
  }
  return undefined
}
