// What continuing a merge relies on: a hash of the plan with the adapters, and for each finished file a note with checksums of what
// was written and of what was read of the base, so that neither a damaged file nor a changed base goes unnoticed.

import { createHash } from 'node:crypto'
import { open, stat } from 'node:fs/promises'
import { crc32 } from 'node:zlib'
import type { ByteSource } from '../../base/bytes.js'
import type { OpenMerge } from '../open.js'
import type { Factor } from '../plan/adapters.js'
import { CHUNK_BYTES, Chunks, type OutputFile } from '../plan/layout.js'
import { type ChunkJob, readFully, shardChunks, squaresOf } from './chunks.js'

const READ_BYTES = 4 << 20
/** Then the event loop gets a turn, for signals and this process's beat. */
const CHUNKS_A_TURN = 16

/** What is noted when a shard is finished. */
export interface ShardNote {
  /** Of the file. */
  checksum: string
  /** Of what was read for it; null outside of jobs. */
  baseChecksum: string | null
  /** The base's files that it was read from, with their states before. */
  base: Record<string, string>
  /** Σ w² and Σ δ² of each changed tensor. */
  squares: Record<string, [base: number, delta: number]>
}

/** Of a note's content; undefined for what is none. The checksums inside tell of damaged files, not of a damaged note. */
export function parseShardNote(content: Record<string, unknown>): ShardNote | undefined {
  const { checksum, baseChecksum, base, squares } = content
  const isNote =
    typeof checksum === 'string' &&
    (baseChecksum === null || typeof baseChecksum === 'string') &&
    isRecordOf(base, (state) => typeof state === 'string') &&
    isRecordOf(squares, (pair) => Array.isArray(pair) && pair.length === 2 && pair.every(Number.isFinite))
  return isNote ? (content as unknown as ShardNote) : undefined
}

function isRecordOf(value: unknown, isMember: (member: unknown) => boolean): boolean {
  return typeof value === 'object' && value !== null && Object.values(value).every(isMember)
}

/**
 * Of the options' effects, the base's headers and all of the adapters. The base's weights are not in it: notes say what was read
 * of them. Where files lie and when they were written does not count, so that jobs on several machines agree.
 */
export async function hashPlan(
  { plan, checkpoint, adapters }: OpenPlan,
  options: { sign?: number | undefined; reproducible?: boolean | undefined },
): Promise<string> {
  const { sign = 1, reproducible = false } = options
  const hash = createHash('sha256')
  const shards = plan.shards.map(({ header: _, ...shard }) => shard)
  const what = { version: 3, shards, index: plan.index, config: plan.configEdit, sign, reproducible }
  hash.update(JSON.stringify(what, (_, value) => (isFactor(value) ? { ...value, name: '' } : value)))
  for (const { header } of plan.shards) hash.update(header ?? '')
  // One buffer for all: garbage of an adapter's size would count as memory that the merge needs.
  const buffer = new Uint8Array(READ_BYTES)
  const add = async (source: ByteSource, byteLength: number) => {
    hash.update(`${source.byteLength} `)
    const file = source.realPath === undefined ? undefined : await open(source.realPath)
    try {
      for (let at = 0; at < byteLength; at += READ_BYTES) {
        const length = Math.min(READ_BYTES, byteLength - at)
        const { bytesRead } = (await file?.read(buffer, 0, length, at)) ?? { bytesRead: 0 }
        const bytes = bytesRead === length ? buffer.subarray(0, length) : await source.read(at, length)
        // Three times as fast as hashing the bytes, and sure to tell any change by accident.
        hash.update(`${crc32(bytes)} `)
      }
    } finally {
      await file?.close()
    }
  }
  for (const { file, dataStart } of checkpoint.shards) await add(file.source, dataStart)
  for (const source of adapters.sources) await add(source, source.byteLength)
  return hash.digest('hex')
}

/** Its name is where it lies. */
function isFactor(value: unknown): value is Factor {
  return typeof value === 'object' && value !== null && 'source' in value && 'offset' in value
}

/** A state for each of the base's files, by name: while it stays, so does the content. */
export async function baseStates({ shards }: Checkpoint): Promise<Map<string, string>> {
  const states = await Promise.all(shards.map(({ file }) => stateOf(file.source)))
  return new Map(shards.map(({ path }, i) => [path, states[i]]))
}

/** No one can set a file's time of change, so that it tells what the time of writing does not. Empty for what is no file. */
async function stateOf({ realPath }: ByteSource): Promise<string> {
  const status = realPath === undefined ? undefined : await stat(realPath, { bigint: true }).catch(() => undefined)
  return status === undefined ? '' : [status.size, status.mtimeNs, status.ctimeNs, status.ino].join(' ')
}

/**
 * Whether what was read for a finished shard is what the base holds now. Where its files have another state, and the shard was
 * a job's, reads them again.
 *
 * @param states of the base's files now
 */
export async function isFromBase(
  note: ShardNote,
  shard: OutputFile,
  { checkpoint, adapters }: OpenPlan,
  states: ReadonlyMap<string, string>,
): Promise<boolean> {
  const names = baseFiles(shard, checkpoint.shards)
  if (names.every((name) => states.get(name) !== '' && states.get(name) === note.base[name])) return true
  if (note.baseChecksum === null) return false
  const checksums: number[] = []
  for (const segment of shard.segments) {
    const source = segmentSource(checkpoint, adapters.sources, segment.shard)
    const chunks = new Chunks(segment)
    for (let i = 0; i < chunks.count; i++) {
      const { baseOffset, baseBytes } = chunks.at(i)
      checksums.push(crc32(await source.read(baseOffset, baseBytes)))
    }
  }
  return digestOf(undefined, Uint32Array.from(checksums)) === note.baseChecksum
}

function baseFiles({ segments }: OutputFile, shards: readonly { path: string }[]): string[] {
  return [...new Set(segments.flatMap(({ shard }) => shards[shard]?.path ?? []))]
}

/** @param states of the base's files before they were read */
export function noteOf(job: ChunkJob, index: number, states: ReadonlyMap<string, string>): ShardNote {
  const { shards, shared, threads } = job
  const before = shards.slice(0, index)
  const firstChunk = before.reduce((sum, shard) => sum + shardChunks(shard), 0)
  const firstSegment = before.reduce((sum, { segments }) => sum + segments.length, 0)
  const shard = shards[index]
  const own = (checksums: Uint32Array) => checksums.subarray(firstChunk, firstChunk + shardChunks(shard))
  const squares: Record<string, [base: number, delta: number]> = {}
  for (const [i, { weight }] of shard.segments.entries()) {
    if (weight === undefined || weight.layers.length === 0) continue
    const [base, delta] = squaresOf(shared, threads, firstSegment + i)
    const [baseBefore, deltaBefore] = squares[weight.name] ?? [0, 0]
    squares[weight.name] = [baseBefore + base, deltaBefore + delta]
  }
  const files = baseFiles(
    shard,
    [...states.keys()].map((path) => ({ path })),
  )
  return {
    checksum: digestOf(shard.header, own(shared.checksums)),
    baseChecksum: job.isBaseChecked ? digestOf(undefined, own(shared.baseChecksums)) : null,
    base: Object.fromEntries(files.map((name) => [name, states.get(name)!])),
    squares,
  }
}

/** The relative changes that notes tell of. */
export function changesOf(notes: ReadonlyMap<string, ShardNote>) {
  const all = new Map([...notes.values()].flatMap(({ squares }) => Object.entries(squares)))
  return {
    relativeChange(weight: string): number {
      const [base, delta] = all.get(weight) ?? [0, 0]
      return delta === 0 ? 0 : Math.sqrt(delta / base)
    },
  }
}

/** One number of all chunks: their CRC-32s, hashed. Chunks follow from the plan, so that it can be computed again. */
function digestOf(header: Uint8Array | undefined, checksums: Uint32Array): string {
  const hash = createHash('sha256')
  hash.update(header ?? new Uint8Array())
  return hash.update(new Uint8Array(checksums.slice().buffer)).digest('hex')
}

/** Of a shard on disk, as its note has it. */
export async function checksumOfFile({ header, segments }: OutputFile, file: string): Promise<string> {
  const handle = await open(file, 'r')
  try {
    const source = { name: file, fd: handle.fd }
    const buffer = new Uint8Array(CHUNK_BYTES)
    const headerBytes = new Uint8Array(header?.byteLength ?? 0)
    readFully(source, headerBytes, 0)
    const checksums: number[] = []
    for (const segment of segments) {
      const chunks = new Chunks(segment)
      for (let i = 0; i < chunks.count; i++) {
        const { offset, byteLength } = chunks.at(i)
        const bytes = buffer.subarray(0, byteLength)
        readFully(source, bytes, offset)
        checksums.push(crc32(bytes))
        if (checksums.length % CHUNKS_A_TURN === 0) await new Promise((resolve) => setImmediate(resolve))
      }
    }
    return digestOf(headerBytes, Uint32Array.from(checksums))
  } finally {
    await handle.close()
  }
}
