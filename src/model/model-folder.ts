// Reads a model from a folder with the layout of transformers.js.

// The files of src/model/, in reading order:
//   model-folder.ts     a folder with a model
//   families/           what is special about a family of models, a file for each
//   match/              the names of a graph’s layers
//   inputs/             the meaning of a graph’s inputs
//   place/              where each part of an adapter goes, as data
//   inject/             LoRA branches in a graph
//   fuse/               faster operators in a graph
//   text/               tokenizer and chat templates
//   images/, pictures/  pictures as numbers, and their places in a text
//   heads/              the last layers of classifiers

import { type Directory, readJsonIfThere } from '../core/base/bytes.js'
import { ConfigError, FileError, FormatError } from '../core/base/errors.js'
import { isObject, objectOf } from '../core/base/options.js'
import { loadOnnx, type OnnxModel } from '../onnx/format/model.js'
import type { RuntimeHost } from '../onnx/runtime/host.js'
import { modelType } from './families/families.js'
import { type DtypeChoice, findGraphs, type GraphRole, roleOf } from './graph-file.js'
import { readSentenceModules, type SentenceModules } from './sentence-modules.js'
import { loadTokenizer, noTokenizer, type Tokenizer } from './text/tokenizer.js'

/** A model as `loadModel` reads it. Weights stay in their files, and on the Hub until something reads them. */
export interface Model {
  /** The id on the Hub, else the path or the name of the folder. */
  readonly name: string
  readonly directory: Directory
  /**
   * Paths of its graphs, relative to `directory`, by role: `model` alone, or `decoder`, `encoder`, `embed_tokens`, …
   */
  readonly graphs: Readonly<Partial<Record<GraphRole, string>>>
  /** Path of the graph of `onnx`, relative to `directory`. */
  readonly onnxPath: string
  /** The contents of config.json. */
  readonly config: Readonly<Record<string, unknown>>
  /** generation_config.json; empty if the folder has none. */
  readonly generationConfig: Readonly<Record<string, unknown>>
  /** preprocessor_config.json, about pictures or sounds. Undefined if the folder has none. */
  readonly preprocessorConfig?: Readonly<Record<string, unknown>> | undefined
  /** The graph, and where each weight is in its file. If the model has several graphs, this is the decoder. */
  readonly onnx: OnnxModel
  /** The tokenizer from tokenizer.json. Undefined if the folder has none, as for image models. */
  readonly tokenizer: Tokenizer | undefined
  /** How to make one vector of a text. Default: the mean of its tokens' vectors. */
  readonly sentence: SentenceModules
  /** Number of tokens that the model knows, if config.json tells. */
  readonly vocabularySize: number | undefined
  /** The largest number of tokens of a text. Undefined if config.json does not contain it. */
  readonly contextLength: number | undefined
  /** Tokens that end a generated text, the tokenizer's first; empty if no file names one. */
  readonly eosTokenIds: readonly number[]
  /** The token that pads batches; it does not change results. Default: the eos token, else 0. */
  readonly padTokenId: number
  /** The runtime that runs sessions of this model. */
  readonly runtime: RuntimeHost
  /** Reads another graph, which is closed with the model. Throws FileError if the model has none of that role. */
  openGraph(role: GraphRole): Promise<OnnxModel>
  /** Closes the files of graphs and weights. Dispose sessions of the model before. */
  close(): Promise<void>
}

/** What encoding texts needs of a model: everything but its graphs. */
export type TextModel = Omit<Model, 'graphs' | 'onnxPath' | 'onnx' | 'runtime' | 'openGraph' | 'close'>

/** Keys of config.json for the context length, the most common first. */
const CONTEXT_KEYS = ['max_position_embeddings', 'n_positions', 'n_ctx', 'max_seq_len', 'seq_length']

export async function loadModel(
  directory: Directory,
  {
    runtime,
    onnxPath,
    dtype,
  }: { runtime: RuntimeHost; onnxPath?: string | undefined; dtype?: DtypeChoice | undefined },
): Promise<Model> {
  if (onnxPath !== undefined && dtype !== undefined) {
    throw new ConfigError({ where: 'dtype', what: 'not together with the path of a graph', got: onnxPath })
  }
  const config = await readObject(directory, 'config.json')
  const graphs =
    onnxPath === undefined ? await findGraphs(directory, { dtype, config }) : { [roleOf(onnxPath)]: onnxPath }
  const [path] = Object.values(graphs)
  const texts = await loadTexts(directory, config)
  const opened = new Map<string, OnnxModel>()
  const onnx = await loadOnnx(directory, path)
  opened.set(path, onnx)
  return {
    ...texts,
    graphs,
    onnxPath: path,
    onnx,
    runtime,
    async openGraph(role) {
      const wanted = (graphs as Model['graphs'])[role]
      if (wanted === undefined) {
        const [what, got] = [`the model has no ${role}`, Object.keys(graphs).join(', ')]
        throw new FileError({ where: directory.name, what, got })
      }
      const graph = opened.get(wanted) ?? (await loadOnnx(directory, wanted))
      opened.set(wanted, graph)
      return graph
    },
    close: async () => void (await Promise.all([...opened.values()].map((graph) => graph.close()))),
  }
}

/** Reads what texts need, and no graph. Throws FileError without a config.json. */
export async function loadTexts(
  directory: Directory,
  given?: Readonly<Record<string, unknown>> | undefined,
): Promise<TextModel> {
  const config = given ?? (await readObject(directory, 'config.json'))
  if (config === undefined) {
    throw new FileError({
      where: directory.name,
      what: 'no config.json in this folder',
      expected: 'config.json, tokenizer.json and onnx/model.onnx',
      hint: 'Copy config.json from where the model came from',
    })
  }
  const readTokenizer = async () => {
    const sentence = await readSentenceModules(directory)
    const hasTokenizer = await directory.has('tokenizer.json')
    return { sentence, tokenizer: hasTokenizer ? await loadTokenizer(directory, sentence.lowersCase) : undefined }
  }
  const [generationConfig = {}, preprocessorConfig, { sentence, tokenizer }] = await Promise.all([
    readObject(directory, 'generation_config.json'),
    readObject(directory, 'preprocessor_config.json'),
    readTokenizer(),
  ])
  const ends = [tokenizer?.eosTokenId, generationConfig.eos_token_id, config.eos_token_id]
  const eosTokenIds = [...new Set(ends.flatMap(tokenIds))]
  const vocabularySize = positiveInteger(config, ['vocab_size'])
  // A tokenizer may have a padding token that the model does not know.
  const padTokenIds = [tokenizer?.padTokenId, generationConfig.pad_token_id, config.pad_token_id]
    .flatMap(tokenIds)
    .filter((id) => id < (vocabularySize ?? Number.POSITIVE_INFINITY))
  return {
    name: directory.hubId ?? directory.name,
    directory,
    config,
    generationConfig,
    preprocessorConfig,
    tokenizer,
    sentence,
    vocabularySize,
    contextLength: contextLengthOf(config),
    eosTokenIds,
    padTokenId: padTokenIds[0] ?? eosTokenIds[0] ?? 0,
  }
}

export function requireTokenizer({ tokenizer, directory }: Pick<Model, 'tokenizer' | 'directory'>): Tokenizer {
  if (tokenizer !== undefined) return tokenizer
  throw noTokenizer(directory)
}

function contextLengthOf(config: Record<string, unknown>): number | undefined {
  const length = positiveInteger(config, CONTEXT_KEYS)
  const { model_type: type, pad_token_id: pad } = config
  const isShifted = modelType(type).hasShiftedPositions && typeof pad === 'number'
  return length !== undefined && isShifted ? length - pad - 1 : length
}

/** Fields of a config that hold numbers; ids of tokens may also be lists. */
const NUMBERS = /^((eos|pad|bos|decoder_start|forced_bos)_token_id|temperature|top_k|top_p|min_p|repetition_penalty)$/

async function readObject(directory: Directory, path: string): Promise<Record<string, unknown> | undefined> {
  const value = await readJsonIfThere(directory, path)
  if (value === undefined) return undefined
  if (isObject(value)) {
    const [key, got] =
      Object.entries(value).find(([key, entry]) => {
        return NUMBERS.test(key) && [entry].flat().some((item) => item !== null && typeof item !== 'number')
      }) ?? []
    if (key === undefined) return value
    throw new FormatError({
      where: `${directory.name}/${path}`,
      what: `${key} is not a number`,
      expected: key.endsWith('_id') ? 'the id of a token, a list of ids, or null' : 'a number, or null',
      got: JSON.stringify(got),
    })
  }
  throw new FormatError({
    where: `${directory.name}/${path}`,
    what: 'not a model configuration',
    expected: 'a JSON object',
  })
}

function tokenIds(value: unknown): number[] {
  return (Array.isArray(value) ? value : [value]).filter((id) => Number.isSafeInteger(id) && id >= 0)
}

/** Reads a field of config.json, or of its `text_config`. */
function positiveInteger(config: Record<string, unknown>, keys: readonly string[]): number | undefined {
  for (const source of [config, objectOf(config.text_config)]) {
    for (const key of keys) {
      const value = source[key]
      if (Number.isSafeInteger(value) && (value as number) > 0) return value as number
    }
  }
  return undefined
}

/** Returns the token that the decoder of an encoder-decoder begins with. */
export function startToken(model: Pick<Model, 'generationConfig' | 'config' | 'directory'>): number {
  const { generationConfig, config, directory } = model
  for (const key of ['decoder_start_token_id', 'bos_token_id']) {
    const id = [generationConfig[key], config[key]].find(Number.isSafeInteger)
    if (id !== undefined) return id as number
  }
  throw new FormatError({
    where: directory.name,
    what: 'no file names the token that a decoder begins with',
    hint: 'Add decoder_start_token_id to generation_config.json',
  })
}
