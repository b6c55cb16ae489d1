// Makes the files of a merge: opens what the threads share, and notes each file when it is complete and on disk.

import { closeSync, fstatSync, ftruncateSync, openSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { type ByteSource, readAll } from '../../base/bytes.js'
import { FileError } from '../../base/errors.js'
import type { MergeCheckpointOptions, OpenPlan } from '../chunks/merge-checkpoint.js'
import type { OutputShard } from '../plan/layout.js'
import { begunShards, type ChunkJob, createShared, type Readable, writeFully } from './chunks.js'
import { Flusher } from './flush.js'
import { baseStates, noteOf, type ShardNote } from './notes.js'
import type { PartialOutput } from './output.js'
import type { Crew } from './threads.js'

/** How the files of a merge are made. */
export interface WriteOptions extends Pick<MergeCheckpointOptions, 'reproducible' | 'signal' | 'onProgress'> {
  /** Threads, the calling one among them. Default: one a core, at most 4. */
  threads?: number | undefined
  /** Makes only every `count`-th output file, from `index` (from 0): one job's share. The last step is `finish`. */
  share?: { index: number; count: number } | undefined
  /** Waits until all is on disk. Default true. */
  fsync?: boolean | undefined
}

const MAX_THREADS = 4

/** What a merge works on: its shards, and of them those that are to be made. */
export interface Work {
  mine: readonly OutputShard[]
  missing: readonly OutputShard[]
  partial: PartialOutput
  notes: Map<string, ShardNote>
}

/**
 * Writes the missing files, and notes them.
 *
 * @throws FileError when one cannot be written, or somebody writes to the base or an adapter meanwhile; NumericError naming what is not
 *   finite
 */
export async function writeShards(opened: OpenPlan, work: Work, crew: Crew, options: WriteOptions): Promise<void> {
  const { mine, missing, partial, notes } = work
  if (missing.length === 0) return
  const { signal, onProgress, fsync: isDurable = true } = options
  const closers: (() => void)[] = []
  const flusher = isDurable ? new Flusher() : undefined
  let outputs: ChunkJob['outputs'] = []
  try {
    const states = await baseStates(opened.checkpoint)
    const job = await openJob(opened, work, crew.threads, options, closers)
    outputs = job.outputs
    missing.forEach(({ header }, i) => {
      if (header !== undefined) writeFully(outputs[i], header, 0)
    })
    const totalBytes = sizeOfShards(mine)
    const keptBytes = totalBytes - sizeOfShards(missing)
    const before = job.bases.map(stampOf)
    await crew.run(job, {
      signal,
      onProgress: (bytes) => {
        for (const shard of begunShards(job)) flusher?.send(outputs[shard])
        onProgress?.({ writtenBytes: keptBytes + bytes, totalBytes, keptBytes })
      },
      onShard: async (i) => {
        await flusher?.finish(outputs[i])
        const note = noteOf(job, i, states)
        if (job.isChecked) await partial.note(missing[i], note)
        notes.set(missing[i].path, note)
      },
    })
    const changed = job.bases.find((file, i) => stampOf(file) !== before[i])
    if (changed !== undefined) {
      throw new FileError({
        where: changed.name,
        what: 'was written to while it was being merged',
        hint: 'Merge again when nothing else writes there',
      })
    }
  } catch (error) {
    outputs.forEach(({ fd }, i) => {
      if (!notes.has(missing[i].path)) discard(fd)
    })
    throw error
  } finally {
    await flusher?.end()
    for (const close of closers) close()
  }
}

/** What goes anyway need not reach the disk before. */
function discard(fd: number): void {
  try {
    ftruncateSync(fd)
  } catch {
    // It takes longer then, but goes all the same.
  }
}

export function threadsOf({ threads }: WriteOptions): number {
  return threads ?? Math.min(availableParallelism(), MAX_THREADS)
}

/** @param closers gets what closes the files that are opened, also of those before an error */
async function openJob(
  { plan, checkpoint, adapters }: OpenPlan,
  { missing, partial }: Work,
  threads: number,
  { reproducible = false, share }: WriteOptions,
  closers: (() => void)[],
): Promise<ChunkJob> {
  const closedLater = (name: string, fd: number) => {
    closers.push(() => closeSync(fd))
    return { name, fd }
  }
  const readable = async (source: ByteSource): Promise<Readable> => {
    if (source.realPath !== undefined) return closedLater(source.realPath, openSync(source.realPath, 'r'))
    const bytes = new Uint8Array(new SharedArrayBuffer(source.byteLength))
    bytes.set(await readAll(source))
    return { name: source.name, bytes }
  }
  const factors = await Promise.all(adapters.sources.map(readable))
  return {
    shards: missing,
    outputs: missing.map((shard) => partial.create(shard)),
    bases: [...(await Promise.all(checkpoint.shards.map(({ file }) => readable(file.source)))), ...factors],
    factors,
    threads,
    isReproducible: reproducible,
    // A single file is kept by no resume: it has its name as soon as it is finished, unless others finish it.
    isChecked: plan.shards.length > 1 || share !== undefined,
    // Jobs on several machines may see copies of the base; one machine tells by its files whether it is the same.
    isBaseChecked: share !== undefined,
    shared: createShared(missing, threads),
  }
}

/** Another one, once somebody has written to the file. */
function stampOf(file: Readable): string {
  if ('bytes' in file) return ''
  const { size, mtimeNs } = fstatSync(file.fd, { bigint: true })
  return `${size} ${mtimeNs}`
}

export function sizeOfShards(shards: readonly OutputShard[]): number {
  return shards.reduce((sum, { byteLength }) => sum + byteLength, 0)
}
