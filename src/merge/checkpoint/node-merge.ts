// Merges adapters into a checkpoint in Node, from paths to paths: with worker threads, resuming, and shares for the jobs of a
// cluster. What it computes is merge-checkpoint.ts's.

import { closeSync, fsync, openSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { type ByteSource, readAll } from '../../base/bytes.js'
import { ConfigError, FileError, LowrankError, NumericError } from '../../base/errors.js'
import { openCheckpoint } from '../../formats/checkpoint.js'
import { fileError, locate, NodeDirectory } from '../../io/node-files.js'
import { LoraAdapter } from '../../lora/adapter.js'
import type { AdapterInput } from '../weighted.js'
import type { OutputShard } from './layout.js'
import type { CheckpointReport } from './merge-checkpoint.js'
import { describePlan, type MergeCheckpointOptions, type OpenPlan, openPlan } from './merge-checkpoint.js'
import { type ChunkJob, createShared, type Readable, shardChunks, writeFully } from './node-chunks.js'
import { findCompanions, writeCompanions } from './node-companions.js'
import { baseStates, changesOf, hashPlan, isFromBase, noteOf, type ShardNote } from './node-notes.js'
import { NOTHING_KEPT, PartialOutput, RECORD_FILE, refuseOutput } from './node-output.js'
import { runChunks } from './node-threads.js'

export interface MergeFilesOptions extends Omit<MergeCheckpointOptions, 'basePath' | 'path'> {
  /** Threads, the calling one among them. Default: one a core, at most 4. */
  threads?: number | undefined
  /** Keeps the finished shards of an interrupted merge whose checksums agree. Default: start over. */
  resume?: boolean | undefined
  /** Replaces an output that a merge wrote. */
  overwrite?: boolean | undefined
  /** Makes only every `count`-th output file, from `index` (from 0): one job's share. The last step is `finish`. */
  share?: { index: number; count: number } | undefined
  /** Verifies the files that all shares have made, adds the others, and gives the output its name. */
  finish?: boolean | undefined
  /** Waits until all is on disk. Default true. */
  fsync?: boolean | undefined
  /** Default 1; −1 takes the adapters out again. */
  sign?: 1 | -1 | undefined
}

export interface MergeFilesReport extends CheckpointReport {
  peakRssBytes: number
}

/** A path, or an adapter in memory. */
export type FileAdapter = string | LoraAdapter | { adapter: string | LoraAdapter; weight?: number | undefined }

const MAX_THREADS = 4
const sync = promisify(fsync)

/** What a merge would do, for `--dry-run`; nothing is written. Throws as {@link mergeCheckpointFiles}. */
export async function planCheckpointFiles(
  base: string,
  adapters: readonly FileAdapter[],
  out: string,
  options: MergeFilesOptions = {},
) {
  const opened = await openFiles(base, adapters, out, options)
  try {
    const { plan, folder } = opened
    const companions = folder === undefined ? undefined : await findCompanions(folder, plan, [out])
    return {
      out,
      tensors: plan.tensors,
      changed: plan.changed,
      bytes: plan.bytes,
      shards: plan.shards.map(({ path: name, byteLength }) => ({ name, byteLength })),
      layers: plan.weights.map(({ name, layers }) => ({
        name: name.replace(/\.weight$/, ''),
        adapters: layers.map(({ name: module, rank, scale }) => ({ module, rank, scale })),
      })),
      copied: companions?.copied ?? [],
      leftOut: companions?.leftOut ?? [],
    }
  } finally {
    await opened.close()
  }
}

/**
 * Merges into `out`, a folder, or a safetensors file when its name ends so. It works in `OUT.partial` and renames at the end; an
 * interrupted merge leaves base and `out` as they were.
 *
 * @param base a folder with a checkpoint, a safetensors file or an index
 * @param adapters folders of adapters, with weights
 * @throws what mergeCheckpoint throws; FileError also when `out` is there already, is what is being read, or has no room
 */
export async function mergeCheckpointFiles(
  base: string,
  adapters: readonly FileAdapter[],
  out: string,
  options: MergeFilesOptions = {},
): Promise<MergeFilesReport> {
  const startedAt = performance.now()
  const { share, finish = false, resume = false, fsync: isDurable = true } = options
  checkOptions(options)
  const opened = await openFiles(base, adapters, out, options)
  const { plan, isFile, folder } = opened
  try {
    const inputs = [...(folder === undefined ? [] : [folder]), ...opened.inputs]
    const isReplaceable = (target: string) => canReplace(target, isFile, plan.tensors, options.overwrite ?? false)
    await refuseOutput(out, isFile, isReplaceable, inputs)
    // Reading all of the adapters pays where something may be continued: a single file starts over.
    const isKept = plan.shards.length > 1 || share !== undefined || finish || resume
    const partial = new PartialOutput(out, isFile, isKept ? await hashPlan(opened, options) : NOTHING_KEPT)
    if (finish || share !== undefined || resume) await partial.open(true)
    else await partial.open(false)
    await refuseOutput(partial.folder, false, async () => true, inputs)

    const mine = plan.shards.filter((_, i) => share === undefined || i % share.count === share.index)
    const notes = new Map<string, ShardNote>()
    if (finish || share !== undefined || resume) {
      const states = await baseStates(opened.checkpoint)
      for (const shard of mine) {
        const note = await partial.verified(shard)
        if (note !== undefined && (await isFromBase(note, shard, opened, states))) notes.set(shard.path, note)
      }
    }
    const missing = mine.filter((shard) => !notes.has(shard.path))
    if (finish && missing.length > 0) {
      throw new FileError({
        where: partial.folder,
        what: `${missing.length} of ${mine.length} files are missing, damaged or made from another base`,
        got: missing
          .slice(0, 5)
          .map(({ path: name }) => name)
          .join(', '),
        hint: 'Run their shares again, then finish',
      })
    }
    const bytes = missing.reduce((sum, { byteLength }) => sum + byteLength, 0)
    try {
      partial.checkSpace(bytes)
    } catch (error) {
      await partial.drop([], notes.size > 0 || share !== undefined)
      throw error
    }
    await writeShards(opened, missing, partial, notes, options)

    const companions = folder === undefined ? undefined : await findCompanions(folder, plan, [out, partial.folder])
    const done = plan.weights.filter(({ name }) => [...notes.values()].some(({ squares }) => name in squares))
    const report: MergeFilesReport = {
      out: share === undefined ? out : partial.folder,
      ...describePlan({ ...plan, weights: done }, changesOf(notes)),
      bytes,
      seconds: 0,
      leftOut: companions?.leftOut ?? [],
      peakRssBytes: 0,
    }
    if (share === undefined) {
      report.bytes += await writeCompanions(folder, companions?.copied ?? [], plan, partial.folder, isDurable)
      await partial.publish(
        { version: 1, base: path.basename(path.resolve(base)), layers: report.layers },
        plan.shards[0].path,
        isDurable,
      )
    }
    report.seconds = (performance.now() - startedAt) / 1000
    report.peakRssBytes = process.resourceUsage().maxRSS * 1024
    return report
  } finally {
    await opened.close()
  }
}

interface OpenFiles extends OpenPlan {
  isFile: boolean
  /** The base's folder, when the base is a folder: its other files go along. */
  folder: string | undefined
  /** All files and folders that are read. */
  inputs: string[]
}

async function openFiles(
  base: string,
  adapters: readonly FileAdapter[],
  out: string,
  options: MergeFilesOptions,
): Promise<OpenFiles> {
  const isFile = out.endsWith('.safetensors')
  const { directory, file } = await locate(base)
  const inputs: AdapterInput[] = adapters.map((input) => {
    const { adapter, weight = 1 } =
      typeof input === 'string' || input instanceof LoraAdapter ? { adapter: input } : input
    return { adapter: typeof adapter === 'string' ? new NodeDirectory(adapter) : adapter, weight }
  })
  const { tied, dtype, maxShardBytes, strict, sign = 1 } = options
  const name = isFile ? path.basename(out) : undefined
  const planOptions = { tied, dtype, maxShardBytes, strict, basePath: file, path: name }
  const opened = await openPlan(directory, inputs, planOptions, sign)
  if (isFile && opened.plan.shards.length > 1) {
    await opened.close()
    throw new ConfigError({
      where: out,
      what: `the output has ${opened.plan.shards.length} files, so that it needs a folder`,
      hint: 'Name a folder, or raise the size of a shard',
    })
  }
  const sources = [...opened.checkpoint.shards.map((shard) => shard.file.source), ...opened.adapters.sources]
  const folders = adapters
    .flatMap((input) => (typeof input === 'object' && 'adapter' in input ? input.adapter : input))
    .filter((input) => typeof input === 'string')
  return {
    ...opened,
    isFile,
    folder: file === undefined ? base : undefined,
    inputs: [...sources.flatMap(({ realPath }) => realPath ?? []), ...folders],
  }
}

function checkOptions({ threads, share, finish }: MergeFilesOptions): void {
  if (threads !== undefined && !(Number.isSafeInteger(threads) && threads >= 1)) {
    throw new ConfigError({
      where: 'threads',
      what: 'not usable',
      expected: 'a whole number above 0',
      got: String(threads),
    })
  }
  if (share === undefined) return
  const { index, count } = share
  if (!(Number.isSafeInteger(index) && Number.isSafeInteger(count) && index >= 0 && index < count)) {
    throw new ConfigError({
      where: 'share',
      what: 'not usable',
      expected: 'i/n with 0 ≤ i < n',
      got: `${index}/${count}`,
    })
  }
  if (finish) throw new ConfigError({ where: 'share', what: 'goes with making files, not with finishing' })
}

/** Writes the given output files, and notes each when it is complete and on disk. */
async function writeShards(
  { plan, checkpoint, adapters }: OpenFiles,
  shards: readonly OutputShard[],
  partial: PartialOutput,
  notes: Map<string, ShardNote>,
  { threads, reproducible = false, signal, onProgress, share, fsync: isDurable = true }: MergeFilesOptions,
): Promise<void> {
  if (shards.length === 0) return
  const totalBytes = plan.bytes
  const doneBytes = plan.shards.reduce((sum, { path: name, byteLength }) => sum + (notes.has(name) ? byteLength : 0), 0)
  const total = shards.reduce((sum, shard) => sum + shardChunks(shard), 0)
  const count = Math.max(1, Math.min(threads ?? Math.min(availableParallelism(), MAX_THREADS), total))
  const closers: (() => void)[] = []
  const openShared = (file: string, flags: string) => {
    const fd = openSync(file, flags)
    closers.push(() => closeSync(fd))
    return { name: file, fd }
  }
  let isFailed = true
  try {
    const readable = async (source: ByteSource): Promise<Readable> => {
      if (source.realPath !== undefined) return openShared(source.realPath, 'r')
      const shared = new Uint8Array(new SharedArrayBuffer(source.byteLength))
      shared.set(await readAll(source))
      return { name: source.name, bytes: shared }
    }
    const states = await baseStates(checkpoint)
    const shared = createShared(shards, count)
    const factors = await Promise.all(adapters.sources.map(readable))
    const job: ChunkJob = {
      shards,
      outputs: shards.map(({ path: name }) => openShared(partial.pathOf(name), 'w')),
      bases: [...(await Promise.all(checkpoint.shards.map(({ file }) => readable(file.source)))), ...factors],
      factors,
      threads: count,
      isReproducible: reproducible,
      // A single file is kept by no resume: it has its name as soon as it is finished, unless others finish it.
      isChecked: plan.shards.length > 1 || share !== undefined,
      // Jobs on several machines may see copies of the base; one machine tells by its files whether it is the same.
      isBaseChecked: share !== undefined,
      shared,
    }
    shards.forEach(({ header }, i) => {
      if (header !== undefined) writeFully(job.outputs[i], header, 0)
    })
    await runChunks(job, {
      signal,
      onProgress: onProgress && ((bytes) => onProgress({ writtenBytes: doneBytes + bytes, totalBytes })),
      onShard: async (i) => {
        if (isDurable)
          await sync(job.outputs[i].fd).catch((error) =>
            Promise.reject(fileError(job.outputs[i].name, 'cannot be written', error)),
          )
        const note = noteOf(job, i, states)
        if (job.isChecked) await partial.note(shards[i], note)
        notes.set(shards[i].path, note)
      },
    })
    isFailed = false
  } catch (error) {
    const unfinished = shards.filter(({ path: name }) => !notes.has(name))
    const isUseless = notes.size === 0 || error instanceof NumericError
    const isLeft = await partial.drop(unfinished, !isUseless)
    throw isLeft && error instanceof FileError ? withHint(error) : error
  } finally {
    for (const close of closers) close()
    if (isFailed) signal?.throwIfAborted()
  }
}

function withHint({ where, what, expected, got, cause }: FileError): FileError {
  return new FileError({
    what,
    ...(where !== undefined && { where }),
    ...(expected !== undefined && { expected }),
    ...(got !== undefined && { got }),
    hint: 'The finished files are kept: make room, then resume',
    cause,
  })
}

/** Whether a merge wrote what is there, and it may go. */
async function canReplace(out: string, isFile: boolean, tensors: number, overwrite: boolean): Promise<boolean> {
  if (!overwrite) return false
  if (!isFile) return (await readdir(out)).includes(RECORD_FILE)
  try {
    const { directory, file } = await locate(out)
    const existing = await openCheckpoint(directory, file)
    await existing.close()
    return existing.tensors.size === tensors
  } catch (error) {
    if (error instanceof LowrankError) return false
    throw error
  }
}
