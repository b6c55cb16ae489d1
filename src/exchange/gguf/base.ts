// Reads the facts about a base that a GGUF adapter needs, from its config.json or from a GGUF file of the model.

import { type Directory, readJson, withSource } from '../../base/bytes.js'
import { ConfigError, FormatError, ShapeError, UnsupportedError } from '../../base/errors.js'
import { objectOf } from '../../base/options.js'
import type { FloatArray } from '../../base/tensor.js'
import { modelType } from '../../families/families.js'
import { type GgufFile, type GgufValue, parseGguf } from '../../formats/gguf/gguf.js'
import { type GgufNames, namesOfArchitecture, namesOfModel } from './names.js'

export interface GgufBase {
  readonly names: GgufNames
  heads(layer: number): number
  keyHeads(layer: number): number
  /** The width of a token's vector; undefined if the base does not tell it. */
  readonly hidden: number | undefined
  /** How many experts a layer has; undefined if it has none or the base does not tell it. */
  readonly experts: number | undefined
  /** True if the output layer uses the weights of the input embedding. */
  readonly isTied: boolean
  /** The shapes of the base's tensors; undefined if only the config is known. */
  readonly shapes: ReadonlyMap<string, readonly number[]> | undefined
}

export async function readBase(directory: Directory, file?: string): Promise<GgufBase> {
  if (file !== undefined && file !== 'config.json') return readGgufBase(directory, file)
  if (await directory.has('config.json')) return readConfigBase(directory)
  const files = (await directory.list()).filter((name) => name.endsWith('.gguf'))
  if (files.length === 1) return readGgufBase(directory, files[0])
  throw new ConfigError({
    where: 'base',
    what: `${directory.name} does not say what the model is`,
    expected: 'config.json, or one .gguf file',
    got: files.length === 0 ? 'neither' : `${files.length} .gguf files`,
  })
}

async function readConfigBase(directory: Directory): Promise<GgufBase> {
  const where = `${directory.name}/config.json`
  const whole = objectOf(await readJson(directory, 'config.json'))
  const config = { ...whole, ...objectOf(whole.text_config) }
  const [model] = Array.isArray(whole.architectures) ? whole.architectures : []
  if (typeof model !== 'string') {
    throw new FormatError({ where: `${where}: architectures`, what: 'missing', expected: 'the class of the model' })
  }
  const names = namesOfModel(model, where)
  const count = (...keys: string[]) => {
    const found = keys.map((key) => config[key]).find((value) => Number.isSafeInteger(value) && (value as number) > 0)
    return found as number | undefined
  }
  const heads = count('num_attention_heads', 'n_head')
  const keyHeads = count('num_key_value_heads') ?? heads
  const need = (value: number | undefined): number => {
    if (value !== undefined) return value
    throw new FormatError({
      where: `${where}: num_attention_heads`,
      what: 'missing: the order of q and k depends on it',
    })
  }
  const tied = config.tie_word_embeddings ?? whole.tie_word_embeddings
  return {
    names,
    heads: () => need(heads),
    keyHeads: () => need(keyHeads),
    hidden: count('hidden_size', 'n_embd'),
    experts: count('num_local_experts', 'num_experts', 'n_routed_experts'),
    isTied: typeof tied === 'boolean' ? tied : modelType(whole.model_type).isTied === true,
    shapes: undefined,
  }
}

function readGgufBase(directory: Directory, file: string): Promise<GgufBase> {
  return withSource(directory, file, async (source) => baseOf(await parseGguf(source)))
}

function baseOf({ source, metadata, tensors }: GgufFile): GgufBase {
  const where = source.name
  const type = metadata.get('general.type')
  if (type !== undefined && type !== 'model') {
    throw new UnsupportedError({
      where: `${where}: general.type`,
      what: 'not a model',
      expected: 'model',
      got: String(type),
    })
  }
  const architecture = metadata.get('general.architecture')
  if (typeof architecture !== 'string') {
    throw new FormatError({ where: `${where}: general.architecture`, what: 'missing, or no text' })
  }
  const names = namesOfArchitecture(architecture, where)
  const countAt = (key: string, layer: number, fallback?: string): number => {
    const name = `${architecture}.${key}`
    const value: GgufValue | undefined = metadata.get(name) ?? metadata.get(`${architecture}.${fallback}`)
    const count = Array.isArray(value) ? value[layer] : value
    if (typeof count === 'number' && Number.isSafeInteger(count) && count > 0) return count
    throw new FormatError({
      where: `${where}: ${name}`,
      what: 'missing, or no number of heads: the order of q and k depends on it',
    })
  }
  const hidden = metadata.get(`${architecture}.embedding_length`)
  return {
    names,
    heads: (layer) => countAt('attention.head_count', layer),
    keyHeads: (layer) => countAt('attention.head_count_kv', layer, 'attention.head_count'),
    hidden: typeof hidden === 'number' ? hidden : undefined,
    experts: undefined,
    isTied: !tensors.has('output.weight'),
    shapes: new Map([...tensors].map(([name, { shape }]) => [name, shape])),
  }
}

/**
 * Reorders the rows of q and k in a new array. transformers rotates pairs (i, i + hd/2) of a head, while Llama's own
 * code and llama.cpp rotate (2i, 2i + 1), so GGUF files have the rows in another order (LlamaModel.permute in
 * llama.cpp's conversion/llama.py): row 2i + h of a head there is row h·hd/2 + i here. Only B has these rows. `data`
 * has the `d` rows of B, as numbers or as bytes.
 */
export function toGgufOrder<T extends FloatArray | Uint8Array>(data: T, d: number, heads: number, where: string): T {
  return reordered(data, d, heads, where, (transformers, ggml) => [ggml, transformers])
}

export function fromGgufOrder(data: FloatArray, d: number, heads: number, where: string): FloatArray {
  return reordered(data, d, heads, where, (transformers, ggml) => [transformers, ggml])
}

function reordered<T extends FloatArray | Uint8Array>(
  data: T,
  d: number,
  heads: number,
  where: string,
  rows: (transformers: number, ggml: number) => [to: number, from: number],
): T {
  const [half, length] = [d / heads / 2, data.length / d]
  if (!Number.isInteger(half)) {
    throw new ShapeError({ where, what: `rows that are no ${heads} heads of an even size`, got: `${d} rows` })
  }
  // Bytes are copied by a constructor, because `slice` of Node's Buffer gives a view.
  const result = (data instanceof Uint8Array ? new Uint8Array(data) : data.slice()) as T
  for (let head = 0; head < heads; head++) {
    for (let part = 0; part < 2; part++) {
      for (let i = 0; i < half; i++) {
        const [to, from] = rows(head * 2 * half + part * half + i, head * 2 * half + 2 * i + part)
        result.set(data.subarray(from * length, (from + 1) * length), to * length)
      }
    }
  }
  return result
}
