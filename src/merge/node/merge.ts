// Merges adapters into a checkpoint in Node, from paths to paths: with worker threads, resuming, and shares for the jobs of a
// cluster. What it computes is merge-checkpoint.ts's.

import path from 'node:path'
import { ConfigError, FileError, listed, MismatchError, NumericError } from '../../base/errors.js'
import { locate, NodeDirectory } from '../../io/node/files.js'
import { LoraAdapter } from '../../lora/adapter.js'
import type { CheckpointReport } from '../chunks/merge-checkpoint.js'
import { describePlan, type MergeCheckpointOptions, type OpenPlan, openPlan } from '../chunks/merge-checkpoint.js'
import type { OutputShard } from '../plan/layout.js'
import type { MergePlan } from '../plan/plan.js'
import type { AdapterInput } from '../weighted.js'
import { type Companions, findCompanions, NO_COMPANIONS, writeCompanions } from './companions.js'
import { baseStates, changesOf, hashPlan, isFromBase, type ShardNote } from './notes.js'
import { NOTHING_KEPT, PartialOutput } from './output.js'
import {
  checkSpace,
  looksMerged,
  type OutputPlace,
  partialFolder,
  realOutput,
  refuseEnding,
  refuseOutput,
} from './place.js'
import { Crew } from './threads.js'
import { sizeOfShards, threadsOf, type Work, type WriteOptions, writeShards } from './write.js'

/** What a merge by path takes. */
export interface MergeFilesOptions extends Omit<MergeCheckpointOptions, 'basePath' | 'path'>, WriteOptions {
  /** Keeps the finished shards of an interrupted merge whose checksums agree. Default: start over. */
  resume?: boolean | undefined
  /** Replaces an output that a merge wrote. */
  overwrite?: boolean | undefined
  /** Verifies the files that all shares have made, adds the others, and gives the output its name. */
  finish?: boolean | undefined
  /** Default 1; −1 takes the adapters out again. */
  sign?: 1 | -1 | undefined
}

/** What a merge by path wrote. */
export interface MergeFilesReport extends CheckpointReport {
  peakRssBytes: number
}

/** A path, or an adapter in memory. */
export type FileAdapter = string | LoraAdapter | { adapter: string | LoraAdapter; weight?: number | undefined }

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
      tensors: plan.tensors.size,
      changed: plan.changed.size,
      added: [...plan.added],
      renamed: [...plan.renamed],
      bytes: plan.bytes,
      shards: plan.shards.map(({ path: name, byteLength }) => ({ name, byteLength })),
      layers: plan.weights.map(({ name, layers }) => ({
        name: name.replace(/\.weight$/, ''),
        adapters: layers.map(({ name: module, rank, scale }) => ({ module, rank, scale })),
      })),
      copied: companions.copied,
      leftOut: companions.leftOut,
      warnings: opened.warnings,
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
  const crew = new Crew(threadsOf(options))
  const opened = await openFiles(base, adapters, out, options).catch((error) => {
    crew.dispose()
    throw error
  })
  const { plan, companions } = opened
  const { share } = options
  let work: Work | undefined
  try {
    await refusePlaces(opened, options)
    work = await beginWork(opened, options)
    const bytes = await completeWork(opened, work, crew, path.basename(path.resolve(base)), options)
    return {
      out: share === undefined ? out : work.partial.folder,
      ...describeDone(plan, work),
      bytes,
      seconds: (performance.now() - startedAt) / 1000,
      leftOut: companions.leftOut,
      warnings: opened.warnings,
      peakRssBytes: process.resourceUsage().maxRSS * 1024,
    }
  } finally {
    crew.dispose()
    work?.partial.close()
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
  refuseEnding(out, 'safetensors')
  const isFile = out.endsWith('.safetensors')
  const { directory, file } = await locate(base)
  const inputs: AdapterInput[] = adapters.map((input) => {
    const { adapter, weight = 1 } =
      typeof input === 'string' || input instanceof LoraAdapter ? { adapter: input } : input
    return { adapter: typeof adapter === 'string' ? new NodeDirectory(adapter) : adapter, weight }
  })
  const { tied, allowMissing, dtype, maxShardBytes, strict, sign = 1 } = options
  const name = isFile ? path.basename(out) : undefined
  const isWhole = file === undefined && !isFile
  const planOptions = { tied, allowMissing, dtype, maxShardBytes, strict, basePath: file, path: name, isWhole }
  const opened = await openPlan(directory, inputs, planOptions, sign).catch((error) => {
    const isMissing = error instanceof MismatchError && error.where === 'adapter'
    if (!isMissing || !/-\d{5}-of-\d{5}\.safetensors$/.test(base)) throw error
    const { where, what, expected } = error
    const hint = 'The base is one file of several: name their folder'
    throw new MismatchError({ where, what, expected, hint, cause: error })
  })
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
  await refuseOutput(place, inputs, overwrite, () => looksMerged(place, plan.tensors))
  await refuseOutput({ out: partialFolder(place.out), isFile: false }, inputs, true, async () => true)
}

function isContinued({ share, finish = false, resume = false }: MergeFilesOptions): boolean {
  return share !== undefined || finish || resume
}

/** Opens the folder in which the output is made, and finds out what of it is there already. */
async function beginWork(opened: OpenFiles, options: MergeFilesOptions): Promise<Work> {
  const { plan, place } = opened
  const { share, finish = false } = options
  // Reading all of the adapters pays where something may be continued: a single file starts over.
  const isKept = plan.shards.length > 1 || isContinued(options)
  const partial = new PartialOutput(place, isKept ? await hashPlan(opened, options) : NOTHING_KEPT)
  try {
    if (isContinued(options)) await partial.goOn()
    else await partial.startOver()
    const mine = plan.shards.filter((_, i) => share === undefined || i % share.count === share.index)
    const notes = isContinued(options) ? await finishedShards(mine, partial, opened) : new Map<string, ShardNote>()
    const missing = mine.filter((shard) => !notes.has(shard.path))
    if (finish && missing.length > 0) throw unfinishedError(missing, mine, partial.folder)
    return { mine, missing, partial, notes }
  } catch (error) {
    partial.close()
    throw error
  }
}

/**
 * Makes the missing files and, unless this is one of several jobs, gives the output its name. Returns the bytes written.
 *
 * @param base its name, for the record
 */
async function completeWork(
  opened: OpenFiles,
  work: Work,
  crew: Crew,
  base: string,
  options: MergeFilesOptions,
): Promise<number> {
  const { plan, companions } = opened
  const { missing, partial } = work
  const isShared = options.share !== undefined
  const bytes = sizeOfShards(missing)
  try {
    await partial.remove(missing)
    checkSpace(partial.folder, bytes + (isShared ? 0 : companions.bytes))
    await writeShards(opened, work, crew, options)
    if (isShared) return bytes
    const { layers } = describeDone(plan, work)
    return bytes + (await publish(opened, partial, { version: 1, base, layers }, options))
  } catch (error) {
    const isLeft = await partial.drop(missing, { isUseless: error instanceof NumericError, isShared })
    options.signal?.throwIfAborted()
    throw withHint(error, isLeft)
  }
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
    what: `${missing.length} of ${mine.length} files are missing, damaged or made from another base: ${listed(missing.map(({ path: name }) => name))}`,
    hint: 'Run their shares again, then finish',
  })
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

/** Adds the base's other files and gives the output its name. Returns the bytes written. */
async function publish(
  opened: OpenFiles,
  partial: PartialOutput,
  record: object,
  options: MergeFilesOptions,
): Promise<number> {
  const { plan, companions, place } = opened
  const { signal, fsync: isDurable = true } = options
  await partial.requireOwn()
  await partial.removeOthers(plan.shards)
  const bytes = place.isFile ? 0 : await writeCompanions(companions.copied, plan, { folder: partial.folder, isDurable })
  signal?.throwIfAborted()
  // Something may have come to these places while this merge ran.
  await refusePlaces(opened, options)
  await partial.publish(record, { file: plan.shards[0].path, isDurable })
  return bytes
}

/** What a report says of a job's own shards. */
function describeDone(plan: MergePlan, { mine, notes }: Work) {
  const own = new Set(mine.flatMap(({ tensors }) => tensors))
  const { layers, renamed } = describePlan(
    { ...plan, weights: plan.weights.filter(({ name }) => own.has(name)) },
    changesOf(notes),
  )
  const count = [...plan.changed].filter((name) => own.has(name)).length
  return { tensors: own.size, changed: count, added: plan.added.filter((name) => own.has(name)), renamed, layers }
}

/** The error, with what can be done about a full disk or is left to go on with. */
function withHint(error: unknown, isLeft: boolean): unknown {
  if (!(error instanceof FileError)) return error
  const { where, what, expected, got, hint, cause } = error
  const isFull = ['ENOSPC', 'EDQUOT'].includes((cause as NodeJS.ErrnoException | undefined)?.code ?? '')
  const room = isLeft ? 'The finished files are kept: make room, then resume' : 'Make room, or choose another disk'
  const advice = isFull ? room : (hint ?? (isLeft ? 'The finished files are kept for a resume' : undefined))
  return new FileError({
    what,
    ...(where !== undefined && { where }),
    ...(expected !== undefined && { expected }),
    ...(got !== undefined && { got }),
    ...(advice !== undefined && { hint: advice }),
    cause,
  })
}
