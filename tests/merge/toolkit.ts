// Small checkpoints and adapters for tests of merging.

import {
  type ByteSource,
  type Directory,
  type FloatArray,
  type FloatDtype,
  LoraAdapter,
  type LoraConfigInput,
  MemoryDirectory,
  type MergeReport,
  type OnnxModel,
  type TensorDtype,
  type WeightDtype,
} from '../../src/api/node.js'
import { closing, concatBytes, readAll } from '../../src/core/base/bytes.js'
import { decodeWeights, encodeFloats, encodeWeights } from '../../src/core/base/dtype.js'
import { Random } from '../../src/core/base/random.js'
import { elementCount } from '../../src/core/base/tensor.js'
import { parseSafetensorsHeader, type TensorBytes, writeSafetensors } from '../../src/files/safetensors.js'
import { carryOut } from '../../src/merge/carry-out.js'
import { type MergeRequest, merge } from '../../src/merge/merge.js'
import { openMerge } from '../../src/merge/open.js'
import type { MergeInput } from '../../src/merge/parts.js'

export type TensorSketch = readonly [name: string, dtype: TensorDtype, shape: readonly number[]]

export function normals(random: Random, count: number, std = 1): Float32Array {
  return Float32Array.from({ length: count }, () => std * random.normal())
}

/** Tensors with normally distributed values, or bytes that count up if the type is not a float. */
export function tensors(sketches: readonly TensorSketch[], seed = 1): TensorBytes[] {
  const random = new Random(seed, 'tensors')
  return sketches.map(([name, dtype, shape]) => {
    const count = elementCount(shape)
    if (dtype === 'fp32' || dtype === 'fp16' || dtype === 'bf16') {
      return { name, dtype, shape, data: encodeFloats(normals(random, count, 0.1), dtype) }
    }
    if (dtype === 'fp64') {
      const data = encodeWeights(
        Float64Array.from({ length: count }, () => 0.1 * random.normal()),
        dtype,
      )
      return { name, dtype, shape, data }
    }
    const size = { I64: 8, U8: 1, I8: 1, I32: 4, F8_E4M3: 1, BOOL: 1 }[dtype as string]!
    return { name, dtype, shape, data: Uint8Array.from({ length: count * size }, (_, i) => i) }
  })
}

export async function safetensors(list: readonly TensorBytes[], metadata = { format: 'pt' }): Promise<Uint8Array> {
  const parts: Uint8Array[] = []
  await writeSafetensors(
    {
      name: 'memory',
      write: async (bytes) => void parts.push(bytes.slice()),
      commit: async () => {},
      abort: async () => {},
    },
    list,
    metadata,
  )
  return concatBytes(parts)
}

export interface BaseOptions {
  seed?: number
  config?: Record<string, unknown>
  files?: Record<string, string>
  /** Tensors with the same values as another tensor. */
  copies?: Record<string, string>
  /** The number of shards, which get the tensors in turn. Default: a single file. */
  shards?: number
}

/** Makes a model folder in memory. */
export async function base(sketches: readonly TensorSketch[], options: BaseOptions = {}): Promise<MemoryDirectory> {
  const {
    seed,
    config = { model_type: 'llama', tie_word_embeddings: false },
    files = {},
    shards = 1,
    copies = {},
  } = options
  const own = tensors(sketches, seed)
  const list = own.map((tensor) => ({
    ...tensor,
    data: (own.find(({ name }) => name === copies[tensor.name]) ?? tensor).data,
  }))
  const directory = new MemoryDirectory({ 'config.json': JSON.stringify(config), ...files }, 'base')
  if (shards === 1) {
    directory.files.set('model.safetensors', await safetensors(list))
    return directory
  }
  const weight_map: Record<string, string> = {}
  for (let i = 0; i < shards; i++) {
    const path = `model-0000${i + 1}-of-0000${shards}.safetensors`
    const own = list.filter((_, j) => j % shards === i)
    for (const { name } of own) weight_map[name] = path
    directory.files.set(path, await safetensors(own))
  }
  const index = JSON.stringify({ metadata: { total_size: 1 }, weight_map })
  directory.files.set('model.safetensors.index.json', new TextEncoder().encode(index))
  return directory
}

/** Makes an adapter with normally distributed factors. */
export function adapter(
  layers: Readonly<Record<string, readonly [d: number, k: number]>>,
  config: LoraConfigInput = {},
  seed = 2,
): LoraAdapter {
  const random = new Random(seed, 'adapter')
  const result = new LoraAdapter({ rank: 4, alpha: 6, targetModules: 'all-linear', ...config })
  for (const [name, [d, k]] of Object.entries(layers)) {
    const r = result.config.rank
    result.addFactors(
      name,
      { data: normals(random, r * k, 0.2), shape: [r, k] },
      { data: normals(random, d * r, 0.2), shape: [d, r] },
    )
  }
  return result
}

export interface ReadTensor {
  dtype: TensorDtype
  shape: readonly number[]
  bytes: Uint8Array
}

/** Reads all tensors in the safetensors files of a folder. */
export async function readTensors(directory: MemoryDirectory): Promise<Map<string, ReadTensor>> {
  const result = new Map<string, ReadTensor>()
  for (const path of await directory.list()) {
    if (!path.endsWith('.safetensors')) continue
    const source: ByteSource = await directory.open(path)
    const { tensors: infos } = await parseSafetensorsHeader(source)
    const all = await readAll(source)
    for (const { name, dtype, shape, offset, byteLength } of infos.values()) {
      result.set(name, { dtype, shape, bytes: all.slice(offset, offset + byteLength) })
    }
  }
  return result
}

export function floats({ bytes, dtype }: ReadTensor): FloatArray {
  return decodeWeights(bytes, dtype as WeightDtype)
}

/** W + Σ weight · s·B·A in f64, rounded once to `dtype`. */
export function expectedWeight(
  tensor: ReadTensor,
  adapters: readonly (readonly [adapter: LoraAdapter, layer: string, weight?: number])[],
  dtype = tensor.dtype as WeightDtype,
): Uint8Array {
  const [rows, columns] = tensor.shape
  const sum = Float64Array.from(floats(tensor))
  for (const [owner, name, weight = 1] of adapters) {
    const layer = owner.layer(name)
    const { weightA: a, weightB: b, rank, d, k, scaling } = layer
    const isInputMajor = d === k ? layer.config.fanInFanOut : rows === k
    for (let i = 0; i < d; i++) {
      for (let j = 0; j < k; j++) {
        let product = 0
        for (let p = 0; p < rank; p++) product += b.data[i * rank + p] * a.data[p * k + j]
        sum[isInputMajor ? j * columns + i : i * columns + j] += weight * scaling * product
      }
    }
  }
  if (sum.length !== rows * columns) throw new Error('shapes')
  return encodeWeights(sum, dtype)
}

/** Returns how many stored values differ, and the largest distance in steps of the type. */
export function compareStored(a: Uint8Array, b: Uint8Array, dtype: FloatDtype): { differing: number; ulps: number } {
  const view = (bytes: Uint8Array) => {
    const copy = bytes.slice().buffer
    return dtype === 'fp32' ? new Int32Array(copy) : new Int16Array(copy)
  }
  const [x, y] = [view(a), view(b)]
  const min = dtype === 'fp32' ? -(2 ** 31) : -(2 ** 15)
  const order = (value: number) => (value < 0 ? min - value : value)
  let differing = 0
  let ulps = 0
  for (let i = 0; i < x.length; i++) {
    if (x[i] === y[i]) continue
    differing++
    ulps = Math.max(ulps, Math.abs(order(x[i]) - order(y[i])))
  }
  return { differing, ulps }
}

/** Options of {@link mergeCheckpoint}. */
export type CheckpointOptions = Omit<Partial<MergeRequest>, 'base' | 'adapters' | 'out' | 'sign'> & {
  /** The base's file in its folder. */
  file?: string
}

/** Merges into a checkpoint, from folder to folder. */
export async function mergeCheckpoint(
  directory: Directory,
  adapters: MergeRequest['adapters'],
  out: Directory,
  { file, ...options }: CheckpointOptions = {},
): Promise<MergeReport> {
  return merge({ ...options, format: 'safetensors', base: { directory, file }, adapters, out })
}

/** Unmerges from a checkpoint, from folder to folder. */
export async function unmergeCheckpoint(
  directory: Directory,
  adapters: MergeRequest['adapters'],
  out: Directory,
  { file, ...options }: Omit<CheckpointOptions, 'outDtype' | 'tied'> = {},
): Promise<MergeReport> {
  return merge({ ...options, format: 'safetensors', base: { directory, file }, sign: -1, adapters, out })
}

/** Options of {@link mergeOnnx}. */
export type OnnxOptions = Omit<MergeInput, 'base' | 'adapters'> & {
  /** The path of the merged graph. */
  path?: string
  /** The folder from which configuration and tokenizer are copied. */
  baseFiles?: Directory
}

/** Merges into an open graph, which need not come from a file. */
export async function mergeOnnx(
  model: OnnxModel,
  adapters: MergeRequest['adapters'],
  out: Directory,
  { path = model.fileName, baseFiles, ...options }: OnnxOptions = {},
): Promise<MergeReport> {
  const base = { directory: baseFiles ?? new MemoryDirectory({}, 'no folder') }
  const chosen = { format: 'onnx', graphs: [path], checkpoint: undefined } as const
  const input = { weightsOnly: baseFiles === undefined, ...options, base, adapters }
  return closing(await openMerge(input, chosen, [model]), (merge) => carryOut(merge, out, options))
}
