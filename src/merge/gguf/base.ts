// A GGUF file as the base of a merge: its header, and which of its tensors belong to the modules of an adapter.

import { type ByteSource, type Directory, MemorySource } from '../../core/base/bytes.js'
import { decodeWeights, encodeWeights, requireWeightDtype, sizeOf } from '../../core/base/dtype.js'
import { FileError, FormatError, UnsupportedError } from '../../core/base/errors.js'
import { type GgufFile, type GgufTensor, readGguf } from '../../files/gguf/read.js'
import type { TensorInfo } from '../../files/safetensors.js'
import { EXPERT, stackedModule } from '../exchange/gguf/experts.js'
import { type GgufNames, namesOfArchitecture } from '../exchange/gguf/names.js'
import { toGgufOrder } from '../exchange/gguf/order.js'
import type { PlanInput } from '../parts.js'
import type { BaseReplacement, Factor, LayerFactors, LayerMagnitude, MergeParts } from '../plan/adapters.js'

/** Where a tensor of the adapter's model lies. */
export interface GgufPlace {
  readonly tensor: GgufTensor
  readonly file: number
  /** The number of the expert, if it is a slice of a tensor of all experts. */
  readonly expert?: number | undefined
}

export interface GgufModel {
  readonly files: readonly GgufFile[]
  readonly paths: readonly string[]
  readonly names: GgufNames
  readonly tensors: ReadonlyMap<string, GgufPlace>
  /** The number of heads of q or k; see {@link toGgufOrder}. */
  heads(tensor: string): number | undefined
}

const SPLIT = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/
const EMBEDDING = 'token_embd.weight'
export const OUTPUT = 'output.weight'

export async function openGguf({ base, chosen, sources, closers }: PlanInput): Promise<GgufModel> {
  const paths = await partsOf(base.directory, chosen.checkpoint!)
  const files: GgufFile[] = []
  for (const path of paths) {
    const source = await base.directory.open(path)
    closers.push(() => source.close())
    files.push(await readGguf(source))
  }
  sources.push(...files.map(({ source }) => source))
  const [first] = files
  const where = first.source.name
  const architecture = textOf(first, 'general.architecture')
  const type = first.metadata.get('general.type')?.value ?? 'model'
  if (type !== 'model') {
    throw new FormatError({ where, what: 'not a model', expected: 'general.type model', got: String(type) })
  }
  const tensors = new Map<string, GgufPlace>()
  for (const [file, { tensors: inFile }] of files.entries()) {
    for (const tensor of inFile) tensors.set(tensor.name, { tensor, file })
  }
  const names = namesOfArchitecture(architecture, where)
  /** A count of heads that all layers have, or undefined if the file has no such count. */
  const count = (key: string) => {
    const name = `${architecture}.attention.${key}`
    if (!first.metadata.has(name)) return undefined
    const value = first.metadata.get(name)!.value
    if (typeof value === 'number' && value > 0) return value
    const what = 'layers with different numbers of heads: the order of the rows of q and k depends on them'
    throw new UnsupportedError({ where: `${where}: ${name}`, what })
  }
  return {
    files,
    paths,
    names,
    tensors,
    heads(tensor) {
      const found = names.way === 'permuted' ? /^blk\.\d+\.attn_([qk])\.(weight|bias)$/.exec(tensor) : null
      if (found === null) return undefined
      const heads = (found[1] === 'k' ? count('head_count_kv') : undefined) ?? count('head_count')
      if (heads !== undefined) return heads
      const what = 'missing: the order of the rows of q and k depends on it'
      throw new FormatError({ where: `${where}: ${architecture}.attention.head_count`, what })
    },
  }
}

function textOf({ metadata, source }: GgufFile, key: string): string {
  const value = metadata.get(key)?.value
  if (typeof value === 'string') return value
  throw new FormatError({ where: `${source.name}: ${key}`, what: 'missing', expected: 'a text' })
}

/** Returns all parts of a model that lies in several files. */
async function partsOf(directory: Directory, path: string): Promise<string[]> {
  const split = SPLIT.exec(path)
  if (split === null) return [path]
  const [, start, , count] = split
  const paths = Array.from(
    { length: Number(count) },
    (_, i) => `${start}-${String(i + 1).padStart(5, '0')}-of-${count}.gguf`,
  )
  for (const part of paths) {
    if (await directory.has(part)) continue
    const where = `${directory.name}/${part}`
    throw new FileError({ where, what: `missing: the model has ${Number(count)} files`, hint: 'Download it too' })
  }
  return paths
}

/** The name of the result: that of the base, without the number of its part. */
export function resultName(path: string): string {
  return path.replace(SPLIT, '$1.gguf').replace(/^.*\//, '')
}

/** Parts of adapters whose values have the order that the GGUF file has, and the places that they name. */
export interface GgufParts extends MergeParts {
  readonly places: ReadonlyMap<string, GgufPlace>
  /** The names that the parts use for the input and the output embedding. */
  readonly embedding: string
  readonly head: string
}

/**
 * Reorders and cuts what the conversion to GGUF reorders and cuts: the rows of q and k, and rows of the vocabulary that
 * no token has. Tensors that it does not find are left out: the plan reports them as missing.
 */
export async function toGgufParts(
  model: GgufModel,
  { layers, replacements, magnitudes }: MergeParts & { readonly magnitudes: LayerMagnitude[] },
  sources: ByteSource[],
): Promise<GgufParts> {
  const places = new Map<string, GgufPlace>()
  const names = { embedding: 'model.embed_tokens.weight', head: 'lm_head.weight' }
  let hasHead = false
  const find = (name: string): GgufPlace | undefined => {
    const [, module, suffix] = /^(.*)\.(weight|bias)$/.exec(name) ?? [undefined, name, 'weight']
    const expert = model.names.tensorOf(module) === undefined ? EXPERT.exec(module) : null
    const found = model.names.tensorOf(expert === null ? module : stackedModule(expert))
    if (found === undefined) return undefined
    const tensor = `${found}.${suffix}`
    if (tensor === EMBEDDING) names.embedding = name
    if (tensor === OUTPUT) {
      names.head = name
      hasHead = true
    }
    const place = model.tensors.get(tensor)
    const stored = place && (expert === null ? place : { ...place, expert: Number(expert[2]) })
    if (stored !== undefined) places.set(name, stored)
    return stored
  }
  const valuesOf = async (source: number, offset: number, byteLength: number) => {
    return sources[source].read(offset, byteLength)
  }
  const inMemory = (bytes: Uint8Array, name: string) => ({
    source: sources.push(new MemorySource(bytes, name)) - 1,
    offset: 0,
  })
  /** A factor, or a vector, whose `d` rows are reordered. */
  const reordered = async <T extends Factor>(factor: T, d: number, heads: number): Promise<T> => {
    const bytes = await valuesOf(factor.source, factor.offset, factor.rows * factor.columns * sizeOf(factor.dtype))
    return { ...factor, ...inMemory(toGgufOrder(bytes, d, heads, factor.name), factor.name) }
  }
  /** A factor (r, k) with its first `columns` columns. */
  const cut = async (factor: Factor, columns: number): Promise<Factor> => {
    const size = sizeOf(factor.dtype)
    const bytes = await valuesOf(factor.source, factor.offset, factor.rows * factor.columns * size)
    const kept = new Uint8Array(factor.rows * columns * size)
    for (let row = 0; row < factor.rows; row++) {
      const start = row * factor.columns * size
      kept.set(bytes.subarray(start, start + columns * size), row * columns * size)
    }
    return { ...factor, ...inMemory(kept, factor.name), columns }
  }

  const changedLayer = async (layer: LayerFactors): Promise<LayerFactors> => {
    const place = find(`${layer.name}.${layer.tensor}`)
    // A GGUF file has all weights as (d, k), the embedding as (V, D).
    const isEmbedding = layer.isInputMajor && !layer.isLinear
    const plain = isEmbedding ? layer : { ...layer, isLinear: false, isInputMajor: false }
    const asRows = layer.isLinear ? { ...plain, shape: [layer.d, layer.k] } : plain
    if (place === undefined) return asRows
    const { tensor } = place
    const rows = tensor.shape[0]
    if (isEmbedding && isCut(model, tensor, layer.k)) {
      return { ...asRows, k: rows, shape: [rows, layer.d], a: await cut(layer.a, rows) }
    }
    const heads = model.heads(tensor.name)
    if (heads === undefined) return asRows
    if (layer.tensor === 'bias') return { ...asRows, a: await reordered(layer.a, layer.k, heads) }
    const index = magnitudes.findIndex((magnitude) => magnitude.layer === layer)
    const moved = { ...asRows, b: await reordered(layer.b, layer.d, heads) }
    if (index >= 0) {
      const magnitude = await reordered(magnitudes[index].magnitude, layer.d, heads)
      magnitudes[index] = { ...magnitudes[index], layer: moved, magnitude }
    }
    return moved
  }

  const changedReplacement = async (replacement: BaseReplacement): Promise<BaseReplacement> => {
    const place = find(replacement.tensor)
    if (place === undefined || replacement.rows !== undefined) return replacement
    const { info, source } = replacement
    const { name, shape } = place.tensor
    const [rows] = info.shape
    const rowBytes = info.byteLength / Math.max(1, rows)
    if (isCut(model, place.tensor, rows)) {
      const kept = { shape, byteLength: shape[0] * rowBytes }
      return { ...replacement, info: { ...info, ...kept } }
    }
    const heads = model.heads(name)
    const addsOne = model.names.architecture.match(/^gemma[23]?$/) !== null && name.endsWith('norm.weight')
    if (heads === undefined && !addsOne) return replacement
    const bytes = await valuesOf(source, info.offset, info.byteLength)
    const values = heads === undefined ? plusOne(bytes, info) : toGgufOrder(bytes, rows, heads, info.name)
    const placed = inMemory(values, info.name)
    return { ...replacement, source: placed.source, info: { ...info, offset: 0 } }
  }

  const changed = { layers: [] as LayerFactors[], replacements: [] as BaseReplacement[] }
  for (const layer of layers.flatMap((layer) => splitExperts(layer, model)))
    changed.layers.push(await changedLayer(layer))
  for (const replacement of replacements) changed.replacements.push(await changedReplacement(replacement))
  // The output embedding of a tied model is the input embedding, even if no adapter names that.
  const embedding = model.tensors.get(EMBEDDING)
  if (hasHead && embedding !== undefined) places.set(names.embedding, embedding)
  return { ...changed, places, ...names }
}

/** Gemma's norms multiply with 1 + w, and a GGUF file holds 1 + w. */
function plusOne(bytes: Uint8Array, { name, dtype }: TensorInfo): Uint8Array {
  const known = requireWeightDtype(dtype, name, 'a norm of this type cannot be merged')
  return encodeWeights(
    decodeWeights(bytes, known).map((value) => value + 1),
    known,
  )
}

/** The converter leaves out the rows of Gemma's embedding that no token has. */
function isCut({ names }: GgufModel, { name, shape }: GgufTensor, rows: number): boolean {
  return names.architecture.startsWith('gemma') && name === EMBEDDING && shape[0] < rows
}

/** Splits the experts' `gate_up_proj` into two layers if the file has two tensors for it. */
function splitExperts(layer: LayerFactors, { names, tensors }: GgufModel): LayerFactors[] {
  if (layer.experts === undefined || layer.tensor !== 'gate_up_proj') return [layer]
  const whole = names.tensorOf(`${layer.name}.gate_up_proj`)
  if (whole !== undefined && tensors.has(`${whole}.weight`)) return [layer]
  const { b, d, k, experts, name } = layer
  const rows = d / 2
  if (!Number.isInteger(rows)) {
    throw new UnsupportedError({ where: `${name}.gate_up_proj`, what: 'an odd number of rows', got: String(d) })
  }
  return ['gate_proj', 'up_proj'].map((tensor, i) => {
    const half = { ...b, offset: b.offset + i * rows * b.columns * sizeOf(b.dtype), rows }
    return { ...layer, tensor, d: rows, shape: [experts, rows, k], b: half }
  })
}
