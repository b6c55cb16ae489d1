// Merges adapters into a checkpoint in Node, from paths to paths: with worker threads, resuming, and shares for the jobs of a
// cluster. What it computes is merge-checkpoint.ts's.

import { closeSync, fsync, openSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { type ByteSource, readAll } from '../../base/bytes.js'
import { ConfigError, FileError, NumericError } from '../../base/errors.js'
import { fileError, locate, NodeDirectory } from '../../io/node-files.js'
import { LoraAdapter } from '../../lora/adapter.js'
import type { AdapterInput } from '../weighted.js'
import type { OutputShard } from './layout.js'
import type { CheckpointReport } from './merge-checkpoint.js'
import { describePlan, type MergeCheckpointOptions, type OpenPlan, openPlan } from './merge-checkpoint.js'
import { type ChunkJob, createShared, type Readable, shardChunks, writeFully } from './node-chunks.js'
import { type Companions, findCompanions, NO_COMPANIONS, writeCompanions } from './node-companions.js'
import { baseStates, changesOf, hashPlan, isFromBase, noteOf, type ShardNote } from './node-notes.js'
import { NOTHING_KEPT, PartialOutput } from './node-output.js'
import { checkSpace, looksMerged, type OutputPlace, partialFolder, realOutput, refuseOutput } from './node-place.js'
import { runChunks } from './node-threads.js'
import type { MergePlan } from './plan.js'

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

/**
 * What a merge would do, for `--dry-run`; nothing is written. Throws as {@link mergeCheckpointFiles}, but for values that are not
 * finite, which only computing shows.
 */
export async function planCheckpointFiles(
  base: string,
  adapters: readonly FileAdapter[],
  out: string,
  options: MergeFilesOptions = {},
) {
  checkOptions(options)
  const opened = await openFiles(base, adapters, out, options)
  try {
    const { plan, companions, place } = opened
    await refusePlaces(opened, options)
    checkSpace(partialFolder(place.out), plan.bytes + companions.bytes)
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
      copied: companions.copied,
      leftOut: companions.leftOut,
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
  checkOptions(options)
  const opened = await openFiles(base, adapters, out, options)
  const { plan, companions } = opened
  const { share, finish = false } = options
  let partial: PartialOutput | undefined
  try {
    await refusePlaces(opened, options)
    partial = await openPartial(opened, options)
    const mine = plan.shards.filter((_, i) => share === undefined || i % share.count === share.index)
    const notes = isContinued(options) ? await finishedShards(mine, partial, opened) : new Map<string, ShardNote>()
    const missing = mine.filter((shard) => !notes.has(shard.path))
    if (finish && missing.length > 0) throw unfinishedError(missing, mine, partial.folder)
    let bytes = sizeOfShards(missing)
    try {
      await partial.remove(missing)
      checkSpace(partial.folder, bytes + (share === undefined ? companions.bytes : 0))
      await writeShards(opened, { mine, missing, partial, notes }, options)
      if (share === undefined) {
        const { layers } = describeDone(plan, notes)
        const record = { version: 1, base: path.basename(path.resolve(base)), layers }
        bytes += await publish(opened, partial, record, options)
      }
    } catch (error) {
      const isUseless = error instanceof NumericError
      const isLeft = await partial.drop(missing, { isUseless, isShared: share !== undefined })
      options.signal?.throwIfAborted()
      throw isLeft && error instanceof FileError ? withHint(error) : error
    }
    return {
      out: share === undefined ? out : partial.folder,
      ...describeDone(plan, notes),
      bytes,
      seconds: (performance.now() - startedAt) / 1000,
      leftOut: companions.leftOut,
      peakRssBytes: process.resourceUsage().maxRSS * 1024,
    }
  } finally {
    partial?.close()
    await opened.close()
  }
}

interface OpenFiles extends OpenPlan {
  place: OutputPlace
  /** All files and folders that are read. */
  inputs: string[]
  /** The base's other files, when the base and the output are folders. */
  companions: Companions
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
  try {
    const { plan, checkpoint } = opened
    if (isFile && plan.shards.length > 1) {
      throw new ConfigError({
        where: out,
        what: `the output has ${plan.shards.length} files, so that it needs a folder`,
        hint: 'Name a folder, or raise the size of a shard',
      })
    }
    const place = { out: await realOutput(out), isFile }
    const isWhole = file === undefined && !isFile
    const companions = isWhole ? await findCompanions(base, plan, [place.out, partialFolder(place.out)]) : NO_COMPANIONS
    const sources = [...checkpoint.shards.map((shard) => shard.file.source), ...opened.adapters.sources]
    const folders = adapters
      .flatMap((input) => (typeof input === 'object' && 'adapter' in input ? input.adapter : input))
      .filter((input) => typeof input === 'string')
    return {
      ...opened,
      place,
      inputs: [...(file === undefined ? [base] : []), ...sources.flatMap(({ realPath }) => realPath ?? []), ...folders],
      companions,
    }
  } catch (error) {
    await opened.close()
    throw error
  }
}

/** Throws FileError when the output, or the folder in which it is made, is what is being read or must not go. */
async function refusePlaces({ place, inputs, plan }: OpenFiles, { overwrite = false }: MergeFilesOptions) {
  await refuseOutput(place, inputs, async () => overwrite && looksMerged(place, plan.tensors))
  await refuseOutput({ out: partialFolder(place.out), isFile: false }, inputs, async () => true)
}

function isContinued({ share, finish = false, resume = false }: MergeFilesOptions): boolean {
  return share !== undefined || finish || resume
}

async function openPartial(opened: OpenFiles, options: MergeFilesOptions): Promise<PartialOutput> {
  // Reading all of the adapters pays where something may be continued: a single file starts over.
  const isKept = opened.plan.shards.length > 1 || isContinued(options)
  const partial = new PartialOutput(opened.place, isKept ? await hashPlan(opened, options) : NOTHING_KEPT)
  if (isContinued(options)) await partial.goOn()
  else await partial.startOver()
  return partial
}

/** The notes of those shards that are whole and made from what the base holds now. */
async function finishedShards(
  shards: readonly OutputShard[],
  partial: PartialOutput,
  opened: OpenFiles,
): Promise<Map<string, ShardNote>> {
  const notes = new Map<string, ShardNote>()
  const states = await baseStates(opened.checkpoint)
  for (const shard of shards) {
    const note = await partial.verified(shard)
    if (note !== undefined && (await isFromBase(note, shard, opened, states))) notes.set(shard.path, note)
  }
  return notes
}

function unfinishedError(missing: readonly OutputShard[], mine: readonly OutputShard[], folder: string): FileError {
  return new FileError({
    where: folder,
    what: `${missing.length} of ${mine.length} files are missing, damaged or made from another base`,
    got: missing
      .slice(0, 5)
      .map(({ path: name }) => name)
      .join(', '),
    hint: 'Run their shares again, then finish',
  })
}

/** Adds the base's other files and gives the output its name. Returns the bytes written. */
async function publish(
  opened: OpenFiles,
  partial: PartialOutput,
  record: object,
  options: MergeFilesOptions,
): Promise<number> {
  const { plan, companions, place } = opened
  const { signal, fsync: isDurable = true } = options
  await partial.removeOthers(plan.shards)
  const bytes = place.isFile ? 0 : await writeCompanions(companions.copied, plan, partial.folder, isDurable)
  signal?.throwIfAborted()
  // Something may have come there while this merge ran.
  await refusePlaces(opened, options)
  await partial.publish(record, plan.shards[0].path, isDurable)
  return bytes
}

/** What a report says of the shards that have notes. */
function describeDone(plan: MergePlan, notes: ReadonlyMap<string, ShardNote>) {
  const weights = plan.weights.filter(({ name }) => [...notes.values()].some(({ squares }) => name in squares))
  return describePlan({ ...plan, weights }, changesOf(notes))
}

function sizeOfShards(shards: readonly OutputShard[]): number {
  return shards.reduce((sum, { byteLength }) => sum + byteLength, 0)
}

/** What a merge works on: its shards, and of them those that are to be made. */
interface Work {
  mine: readonly OutputShard[]
  missing: readonly OutputShard[]
  partial: PartialOutput
  notes: Map<string, ShardNote>
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

/** Writes the missing output files, and notes each when it is complete and on disk. */
async function writeShards(opened: OpenFiles, work: Work, options: MergeFilesOptions): Promise<void> {
  const { mine, missing, partial, notes } = work
  if (missing.length === 0) return
  const { signal, onProgress, fsync: isDurable = true } = options
  const closers: (() => void)[] = []
  try {
    const states = await baseStates(opened.checkpoint)
    const job = await openJob(opened, work, options, closers)
    missing.forEach(({ header }, i) => {
      if (header !== undefined) writeFully(job.outputs[i], header, 0)
    })
    const totalBytes = sizeOfShards(mine)
    const keptBytes = totalBytes - sizeOfShards(missing)
    await runChunks(job, {
      signal,
      onProgress: onProgress && ((bytes) => onProgress({ writtenBytes: keptBytes + bytes, totalBytes, keptBytes })),
      onShard: async (i) => {
        if (isDurable) await syncShard(job.outputs[i])
        const note = noteOf(job, i, states)
        if (job.isChecked) await partial.note(missing[i], note)
        notes.set(missing[i].path, note)
      },
    })
  } finally {
    for (const close of closers) close()
  }
}

/** @param closers gets what closes the files that are opened, also of those before an error */
async function openJob(
  { plan, checkpoint, adapters }: OpenFiles,
  { missing, partial }: Work,
  { threads, reproducible = false, share }: MergeFilesOptions,
  closers: (() => void)[],
): Promise<ChunkJob> {
  const chunks = missing.reduce((sum, shard) => sum + shardChunks(shard), 0)
  const count = Math.max(1, Math.min(threads ?? Math.min(availableParallelism(), MAX_THREADS), chunks))
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
    threads: count,
    isReproducible: reproducible,
    // A single file is kept by no resume: it has its name as soon as it is finished, unless others finish it.
    isChecked: plan.shards.length > 1 || share !== undefined,
    // Jobs on several machines may see copies of the base; one machine tells by its files whether it is the same.
    isBaseChecked: share !== undefined,
    shared: createShared(missing, count),
  }
}

async function syncShard({ name, fd }: { name: string; fd: number }): Promise<void> {
  try {
    await sync(fd)
  } catch (error) {
    throw fileError(name, 'cannot be written', error)
  }
}

function withHint({ where, what, expected, got, cause }: FileError): FileError {
  return new FileError({
    what,
    ...(where !== undefined && { where }),
    ...(expected !== undefined && { expected }),
    ...(got !== undefined && { got }),
    hint: 'The finished files are kept: make room, then resume, or run the same share again',
    cause,
  })
}
