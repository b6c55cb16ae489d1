// Opens a safetensors checkpoint as tensors and byte ranges. It is one file, or shards with the index that transformers
// writes. Index and headers must agree. No weight is read here.

import { type ByteSource, closingOnError, type Directory, readAll, withSource } from '../core/base/bytes.js'
import { didYouMean, FileError, FormatError, listed, UnsupportedError } from '../core/base/errors.js'
import { type JsonObject, parseJson } from './json.js'
import { parseSafetensorsHeader, type SafetensorsFile, type TensorInfo } from './safetensors.js'

const SINGLE_FILE = 'model.safetensors'
const PICKLE = /\.(bin|pt|pth|ckpt)(\.index\.json)?$/
const INDEX_SUFFIX = '.safetensors.index.json'
/** A shard lies beside the index. The name may not lead elsewhere, on Windows either: no folder, drive or stream. */
const SHARD_NAME = /^[^/\\:\0]+\.safetensors$/
/** A weight map of 100,000 long names has about 15 MB, so a larger file is not an index. */
const MAX_INDEX_BYTES = 100_000_000

export interface CheckpointShard {
  readonly path: string
  readonly file: SafetensorsFile
  readonly dataStart: number
}

export interface CheckpointTensor {
  readonly info: TensorInfo
  readonly shard: number
}

export interface Checkpoint {
  readonly directory: Directory
  /** The weight files, sorted by name. */
  readonly shards: readonly CheckpointShard[]
  readonly tensors: ReadonlyMap<string, CheckpointTensor>
  /** The index file; undefined if the checkpoint is a single file. */
  readonly indexPath: string | undefined
  /** The index's own metadata, such as total_size, unchecked. Empty without an index. */
  readonly indexMetadata: JsonObject
  close(): Promise<void>
}

/**
 * Opens the file or index at `path`, by default model.safetensors, else the only index, else the only safetensors file.
 * Throws UnsupportedError for a pickle.
 */
export async function openCheckpoint(directory: Directory, path?: string): Promise<Checkpoint> {
  const found = path ?? (await findCheckpoint(directory))
  if (PICKLE.test(found)) throw pickleError(directory, found)
  const indexPath = found.endsWith('.json') ? found : undefined
  const { weightMap, metadata: indexMetadata } =
    indexPath === undefined ? { weightMap: undefined, metadata: new Map() } : await readIndex(directory, indexPath)
  const paths = weightMap === undefined ? [found] : [...new Set(weightMap.values())].sort()
  const shards: CheckpointShard[] = []
  const close = async () => {
    for (const { file } of shards) await file.source.close()
  }
  return closingOnError({ close }, async () => {
    const opened = await Promise.allSettled(paths.map((shard) => openShard(directory, shard, indexPath)))
    for (const shard of opened) if (shard.status === 'fulfilled') shards.push(shard.value)
    for (const shard of opened) if (shard.status === 'rejected') throw shard.reason
    const tensors = collectTensors(shards)
    if (weightMap !== undefined) checkIndex(weightMap, tensors, shards, `${directory.name}/${indexPath}`)
    return { directory, shards, tensors, indexPath, indexMetadata, close }
  })
}

async function findCheckpoint(directory: Directory): Promise<string> {
  const files = await directory.list()
  if (files.includes(SINGLE_FILE)) return SINGLE_FILE
  const indexes = files.filter((name) => name.endsWith(INDEX_SUFFIX))
  const weights = files.filter((name) => name.endsWith('.safetensors') && !name.startsWith('adapter_'))
  const candidates = indexes.includes(`model${INDEX_SUFFIX}`) ? [`model${INDEX_SUFFIX}`] : indexes
  if (candidates.length === 1) return candidates[0]
  if (candidates.length === 0 && weights.length === 1) return weights[0]
  if (candidates.length > 1 || weights.length > 1) {
    throw new FileError({
      where: directory.name,
      what: indexes.length === 0 ? 'several safetensors files, but no index' : 'several checkpoints in one folder',
      expected: `${SINGLE_FILE} or model${INDEX_SUFFIX}`,
      got: (candidates.length > 1 ? candidates : weights).slice(0, 5).join(', '),
      hint: 'Name the file or the index itself, or download the index too',
    })
  }
  const pickle = files.find((name) => PICKLE.test(name) && !name.startsWith('adapter_'))
  if (pickle !== undefined) throw pickleError(directory, pickle)
  const hint = files.some((name) => name.startsWith('adapter_'))
    ? 'It contains an adapter: give the model that the adapter belongs to'
    : 'Only safetensors checkpoints and ONNX models are read'
  throw new FileError({
    where: directory.name,
    what: 'no checkpoint in this folder',
    expected: `${SINGLE_FILE} or model${INDEX_SUFFIX}`,
    got: files.length === 0 ? 'no files' : listed(files),
    hint,
  })
}

function pickleError(directory: Directory, path: string): UnsupportedError {
  return new UnsupportedError({
    where: `${directory.name}/${path}`,
    what: 'a pickle, which can run code when it is opened, is never read',
    expected: SINGLE_FILE,
    hint: 'Use a revision of the model with safetensors files, or write them with save_pretrained of transformers',
  })
}

function readIndex(directory: Directory, path: string) {
  return withSource(directory, path, async (source) => {
    const where = source.name
    const json = parseJson(await readAll(source, MAX_INDEX_BYTES, 'too large for an index'), where)
    const weightMap = json instanceof Map ? json.get('weight_map') : undefined
    if (!(weightMap instanceof Map) || weightMap.size === 0) {
      throw new FormatError({
        where,
        what: 'not an index of shards',
        expected: 'an object weight_map with tensors',
        hint: 'Give the folder of the model, a .safetensors file, or model.safetensors.index.json',
      })
    }
    for (const [name, file] of weightMap) {
      if (typeof file === 'string' && SHARD_NAME.test(file)) continue
      throw new FormatError({
        where: `${where}: ${name}`,
        what: 'not the name of a shard beside the index',
        expected: 'a name that ends in .safetensors',
        got: JSON.stringify(file)?.slice(0, 100) ?? 'nothing',
      })
    }
    const metadata = json instanceof Map ? json.get('metadata') : undefined
    return { weightMap: weightMap as Map<string, string>, metadata: metadata instanceof Map ? metadata : new Map() }
  })
}

async function openShard(directory: Directory, path: string, indexPath: string | undefined): Promise<CheckpointShard> {
  if (indexPath !== undefined && !(await directory.has(path))) {
    throw new FileError({
      where: `${directory.name}/${path}`,
      what: `a shard that ${indexPath} names is missing`,
      hint: 'Download it again',
    })
  }
  return closingOnError(await directory.open(path), async (source) => {
    const file = await parseSafetensorsHeader(source)
    // parseSafetensorsHeader has checked that the tensors fill the file from the end of the header.
    const bytes = [...file.tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0)
    return { path, file, dataStart: source.byteLength - bytes }
  })
}

function collectTensors(shards: readonly CheckpointShard[]): Map<string, CheckpointTensor> {
  const tensors = new Map<string, CheckpointTensor>()
  shards.forEach(({ file }, shard) => {
    for (const info of file.tensors.values()) {
      const existing = tensors.get(info.name)
      if (existing !== undefined) {
        throw new FormatError({
          where: `${file.source.name}: ${info.name}`,
          what: `a tensor of this name is in ${shards[existing.shard].path} too`,
        })
      }
      tensors.set(info.name, { info, shard })
    }
  })
  return tensors
}

function checkIndex(
  weightMap: ReadonlyMap<string, string>,
  tensors: ReadonlyMap<string, CheckpointTensor>,
  shards: readonly CheckpointShard[],
  where: string,
): void {
  for (const [name, path] of weightMap) {
    const tensor = tensors.get(name)
    const actual = tensor === undefined ? undefined : shards[tensor.shard].path
    if (actual === path) continue
    throw new FormatError({
      where: `${where}: ${name}`,
      what: 'the tensor is not in the shard that the index names',
      expected: path,
      got: actual ?? 'no shard with it',
      hint: actual === undefined ? didYouMean(name, tensors.keys(), 3) : undefined,
    })
  }
  for (const [name, { shard }] of tensors) {
    if (weightMap.has(name)) continue
    throw new FormatError({
      where: `${where}: ${name}`,
      what: `the index leaves out a tensor of ${shards[shard].path}`,
    })
  }
}

export function shardSource(checkpoint: Checkpoint, shard: number): ByteSource {
  return checkpoint.shards[shard].file.source
}
