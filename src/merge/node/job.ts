// A merge into a path: planned, made in a folder beside it, by several threads where it is a checkpoint, and renamed when it is
// whole. A job may also make a share of the files alone, for others to finish, or go on where one was interrupted.

import { closeSync } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { type ByteSource, readAll } from '../../base/bytes.js'
import { FileError, NumericError } from '../../base/errors.js'
import { NodeDirectory } from '../../io/node/files.js'
import { findCompanions } from '../chunks/companions.js'
import { writeCompanions, writeIndex } from '../chunks/merge-checkpoint.js'
import { describePlan, type OpenPlan, openPlan, reportPlan } from '../chunks/open-plan.js'
import { type ChosenFormat, chooseFormat, type MergeBase } from '../format.js'
import {
  checkpointOptions,
  joinPlans,
  joinReports,
  type MergeRequest,
  type OpenOnnx,
  openOnnx,
  planOnnx,
} from '../merge.js'
import type { OutputFile } from '../plan/layout.js'
import type { MergeFormat, MergePlanReport, MergeReport } from '../report.js'
import { checkPathSettings, type PathSettings, refuseForFormat } from '../settings.js'
import {
  begunShards,
  type ChunkJob,
  createShared,
  discard,
  openForReading,
  type Readable,
  stampOf,
  writeFully,
} from './chunks.js'
import { Flusher } from './flush.js'
import { severalFilesError, unfinishedError, withHint, withShardHint } from './job-errors.js'
import { refuseForeignLinks } from './links.js'
import { baseStates, changesOf, hashPlan, isFromBase, noteOf, type ShardNote } from './notes.js'
import { checkSpace, looksMerged, type OutputPlace, realOutput, refuseEnding, refuseOutput } from './place.js'
import { recoverOutput } from './recover.js'
import { Staging } from './staging.js'
import { NOTES_FOLDER } from './staging-notes.js'
import { Crew, threadsOf } from './threads.js'

/** A merge into a path. */
export interface PathRequest extends Omit<MergeRequest, 'out' | 'outFile'>, PathSettings {
  base: MergeBase
  out: string
  /** Files and folders that are read besides the base, for a look whether the output would replace them. */
  inputs: readonly string[]
  /** −1 to unmerge. */
  sign: 1 | -1
}

/** A merge into a path, from its plan to its result. `close` ends it. */
export class MergeJob {
  readonly #request: PathRequest
  readonly #chosen: ChosenFormat
  readonly #place: OutputPlace
  /** Of the checkpoint; undefined for an .onnx alone. */
  readonly #opened: OpenPlan | undefined
  /** Of the .onnx. */
  readonly #onnx: OpenOnnx | undefined
  readonly #inputs: readonly string[]
  readonly #crew: Crew | undefined
  #staging: Staging | undefined
  /** The output was there and only lacked its last steps. */
  #isTaken = false
  /** The shards of the checkpoint that are this job's. */
  #own: readonly OutputFile[] = []
  /** Of the finished ones, by name. */
  #notes = new Map<string, ShardNote>()

  private constructor(
    request: PathRequest,
    chosen: ChosenFormat,
    parts: { place: OutputPlace; opened?: OpenPlan; onnx?: OpenOnnx; crew?: Crew | undefined },
  ) {
    this.#request = request
    this.#chosen = chosen
    this.#place = parts.place
    this.#opened = parts.opened
    this.#onnx = parts.onnx
    this.#crew = parts.crew
    const { base, inputs } = request
    const sources = [
      ...(parts.opened?.checkpoint.shards.map(({ file }) => file.source) ?? []),
      ...(parts.opened?.adapters.sources ?? []),
    ]
    const folder = base.directory instanceof NodeDirectory ? base.directory.name : undefined
    const graphs = folder === undefined ? [] : chosen.graphs.map((graph) => path.join(folder, graph))
    this.#inputs = [
      ...(base.file === undefined ? [folder] : []),
      ...graphs,
      ...sources.map(({ realPath }) => realPath),
      ...inputs,
    ].filter((input) => input !== undefined)
  }

  /**
   * Opens what is read and plans the merge; nothing is written.
   *
   * @param runs the merge is to follow: its threads start meanwhile
   */
  static async open(request: PathRequest, runs: boolean): Promise<MergeJob> {
    checkPathSettings(request)
    const { base, adapters, out, threads, sign } = request
    const chosen = await chooseFormat(base, out, request)
    refuseForFormat(request, chosen.format)
    refuseEnding(out, chosen.format)
    const isFile = /\.(safetensors|onnx)$/.test(out)
    const place = { out: await realOutput(out), isFile }
    const weightsOnly = isFile || request.weightsOnly === true
    if (base.directory instanceof NodeDirectory && !weightsOnly) {
      const { copied } = await findCompanions(base.directory, new Set())
      await refuseForeignLinks(base.directory.name, copied)
    }
    const own = { ...request, weightsOnly, outFile: isFile ? path.basename(out) : undefined }
    const hasCheckpoint = chosen.format !== 'onnx'
    const crew = runs && hasCheckpoint ? new Crew(threadsOf(threads)) : undefined
    const parts: { opened?: OpenPlan; onnx?: OpenOnnx } = {}
    try {
      if (hasCheckpoint) {
        const planning = openPlan(base.directory, adapters, checkpointOptions(own, chosen), sign)
        parts.opened = await planning.catch((error) => {
          throw withShardHint(error, base)
        })
        const files = parts.opened.plan.shards.length
        if (isFile && files > 1) throw severalFilesError(out, files)
      }
      if (chosen.graphs.length > 0) parts.onnx = await openOnnx(own, chosen, sign)
      return new MergeJob(request, chosen, { place, crew, ...parts })
    } catch (error) {
      crew?.dispose()
      await parts.opened?.close()
      throw error
    }
  }

  get format(): MergeFormat {
    return this.#chosen.format
  }

  /** What {@link run} would do. */
  async plan(): Promise<MergePlanReport> {
    await this.#refusePlaces()
    const parts: Omit<MergePlanReport, 'out' | 'format'>[] = []
    if (this.#opened !== undefined) {
      checkSpace(this.#place.out, this.#opened.plan.bytes + this.#opened.companions.bytes)
      parts.push(reportPlan(this.#opened))
    }
    if (this.#onnx !== undefined) parts.push(await planOnnx(this.#onnx))
    return { out: this.#request.out, format: this.#chosen.format, ...joinPlans(parts) }
  }

  /** Makes the output, or this job's share of it. */
  async run(): Promise<MergeReport> {
    const startedAt = performance.now()
    const { out, share, signal } = this.#request
    const planHash = await this.#hashOfPlan()
    const isOwn = async (plan: string) => plan === '' || plan === (planHash ?? (await this.#readPlan()))
    this.#isTaken = await recoverOutput(this.#place, isOwn)
    await this.#refusePlaces()
    const staging = await Staging.enter(this.#place, {
      planHash,
      isContinued: this.#isContinued,
      isShare: share !== undefined,
      isFinish: this.#request.finish === true,
    })
    this.#staging = staging
    try {
      const missing = await this.#begin(staging)
      const bytes = sizeOf(missing)
      checkSpace(staging.folder, bytes + (share === undefined ? (this.#opened?.companions.bytes ?? 0) : 0))
      await this.#writeShards(staging, missing)
      const onnx = this.#onnx && (await this.#writeOnnx(staging, this.#onnx))
      const checkpoint = this.#opened && this.#reportCheckpoint(this.#opened)
      const report = checkpoint && onnx ? joinReports(out, checkpoint, onnx) : (checkpoint ?? onnx)!
      const added = share === undefined ? await this.#publish(staging, report, onnx?.files ?? []) : 0
      return {
        ...report,
        out: share === undefined ? out : staging.folder,
        bytes: bytes + (onnx?.bytes ?? 0) + added,
        seconds: (performance.now() - startedAt) / 1000,
      }
    } catch (error) {
      const isLeft = await staging.drop(error instanceof NumericError)
      signal?.throwIfAborted()
      throw withHint(error, isLeft)
    }
  }

  async close(): Promise<void> {
    this.#crew?.dispose()
    await this.#staging?.leave()
    await this.#opened?.close()
    await this.#onnx?.close()
  }

  get #isContinued(): boolean {
    const { share, finish = false, resume = false } = this.#request
    return share !== undefined || finish || resume || this.#isTaken
  }

  /** Throws FileError when the output is what is being read, or must not be replaced. */
  async #refusePlaces(): Promise<void> {
    const { overwrite = false } = this.#request
    const tensors = this.#opened?.plan.tensors
    await refuseOutput(this.#place, this.#inputs, overwrite, () => looksMerged(this.#place, tensors))
  }

  /** Undefined for a result of which no part is ever kept: reading all of the adapters pays where something may be continued. */
  async #hashOfPlan(): Promise<string | undefined> {
    const isKept = this.#opened !== undefined && (this.#opened.plan.shards.length > 1 || this.#isContinued)
    return isKept ? this.#readPlan() : undefined
  }

  async #readPlan(): Promise<string | undefined> {
    return this.#opened && hashPlan(this.#opened, this.#request)
  }

  /** Finds out what is there already, and makes room. Returns the shards that are to be made. */
  async #begin(staging: Staging): Promise<readonly OutputFile[]> {
    if (this.#opened === undefined) return []
    const { share, finish } = this.#request
    const { shards } = this.#opened.plan
    this.#own = shards.filter((_, i) => share === undefined || i % share.count === share.index)
    if (this.#isContinued) {
      const states = await baseStates(this.#opened.checkpoint)
      for (const shard of this.#own) {
        const note = await staging.verified(shard)
        if (note !== undefined && (await isFromBase(note, shard, this.#opened, states)))
          this.#notes.set(shard.path, note)
      }
    }
    const missing = this.#own.filter((shard) => !this.#notes.has(shard.path))
    if (finish && missing.length > 0) throw unfinishedError(missing, this.#own, staging.folder)
    staging.forget(missing)
    if (!finish) await staging.removeUnfinished(this.#own)
    return missing
  }

  /**
   * Writes the missing files of the checkpoint, and notes them.
   *
   * @throws FileError when one cannot be written, or somebody writes to the base or an adapter meanwhile; NumericError naming what
   *   is not finite
   */
  async #writeShards(staging: Staging, missing: readonly OutputFile[]): Promise<void> {
    const [opened, crew] = [this.#opened, this.#crew]
    if (opened === undefined || crew === undefined || missing.length === 0) return
    const { signal, onProgress, fsync: isDurable = true } = this.#request
    const closers: (() => void)[] = []
    const flusher = isDurable ? new Flusher() : undefined
    let outputs: ChunkJob['outputs'] = []
    try {
      const states = await baseStates(opened.checkpoint)
      const job = await this.#openChunkJob(opened, staging, missing, crew.threads, closers)
      outputs = job.outputs
      missing.forEach(({ header }, i) => {
        if (header !== undefined) writeFully(outputs[i], header, 0)
      })
      const totalBytes = sizeOf(this.#own)
      const keptBytes = totalBytes - sizeOf(missing)
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
          if (job.isChecked) await staging.note(missing[i], note)
          this.#notes.set(missing[i].path, note)
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
        if (!this.#notes.has(missing[i].path)) discard(fd)
      })
      throw error
    } finally {
      await flusher?.end()
      for (const close of closers) close()
    }
  }

  /** @param closers gets what closes the files that are opened, also of those before an error */
  async #openChunkJob(
    { plan, checkpoint, adapters }: OpenPlan,
    staging: Staging,
    missing: readonly OutputFile[],
    threads: number,
    closers: (() => void)[],
  ): Promise<ChunkJob> {
    const { reproducible = false, share } = this.#request
    const readable = async (source: ByteSource): Promise<Readable> => {
      if (source.realPath !== undefined) {
        const fd = openForReading(source.realPath)
        closers.push(() => closeSync(fd))
        return { name: source.realPath, fd }
      }
      const bytes = new Uint8Array(new SharedArrayBuffer(source.byteLength))
      bytes.set(await readAll(source))
      return { name: source.name, bytes }
    }
    const factors: Readable[] = []
    for (const source of adapters.sources) factors.push(await readable(source))
    const bases: Readable[] = []
    for (const { file } of checkpoint.shards) bases.push(await readable(file.source))
    return {
      shards: missing,
      outputs: missing.map((shard) => staging.create(shard)),
      bases: [...bases, ...factors],
      factors,
      threads,
      isReproducible: reproducible,
      // A result of one file is never resumed, so it needs no checksums. With jobs, --finish checks it.
      isChecked: plan.shards.length > 1 || share !== undefined,
      // Jobs on several machines may see copies of the base; one machine tells by its files whether it is the same.
      isBaseChecked: share !== undefined,
      shared: createShared(missing, threads),
    }
  }

  /** Adds an .onnx to what is being made. */
  async #writeOnnx(staging: Staging, opened: OpenOnnx): Promise<MergeReport & { files: string[] }> {
    const { fsync = true } = this.#request
    const before = new Set(await readdir(staging.folder))
    const target = staging.directory(fsync)
    const report = await opened.write(target)
    const files = (await readdir(staging.folder)).filter((name) => !before.has(name) && name !== NOTES_FOLDER)
    return { ...report, files }
  }

  /** Adds the base's other files and gives the output its name. Returns the bytes written. */
  async #publish(staging: Staging, report: MergeReport, others: readonly string[]): Promise<number> {
    const { base, signal, overwrite = false, fsync: isDurable = true } = this.#request
    await staging.claim(this.#own, others)
    const folder = staging.directory(isDurable)
    const added: string[] = []
    if (this.#opened !== undefined && !this.#place.isFile) {
      added.push(...(await writeCompanions(this.#opened, folder)), ...(await writeIndex(this.#opened.plan, folder)))
    }
    let bytes = 0
    for (const name of added) bytes += (await stat(path.join(folder.name, name))).size
    signal?.throwIfAborted()
    // Something may have come to this place while this merge ran.
    await this.#refusePlaces()
    if (this.#place.isFile) {
      const own = path.basename(this.#place.out)
      const files = [...this.#own.map(({ path: shard }) => shard), ...others]
      await staging.publishFiles([...files.filter((name) => name !== own), own], { overwrite, isDurable })
    } else {
      const record = {
        version: 1,
        base: base.file ?? path.basename(path.resolve(base.directory.name)),
        layers: report.layers,
      }
      await staging.publishFolder(record, { overwrite, isDurable })
    }
    return bytes
  }

  /** What a report says of this job's own shards. */
  #reportCheckpoint({ plan, companions, warnings }: OpenPlan): MergeReport {
    const own = new Set(this.#own.flatMap(({ tensors }) => tensors))
    const weights = plan.weights.filter(({ name }) => own.has(name))
    return {
      ...describePlan({ ...plan, weights }, changesOf(this.#notes)),
      out: this.#request.out,
      format: 'safetensors',
      tensors: own.size,
      changed: [...plan.changed].filter((name) => own.has(name)).length,
      added: plan.added.filter((name) => own.has(name)),
      bytes: sizeOf(this.#own),
      seconds: 0,
      copied: [...companions.copied],
      leftOut: [...companions.leftOut],
      warnings,
    }
  }
}

function sizeOf(shards: readonly OutputFile[]): number {
  return shards.reduce((sum, { byteLength }) => sum + byteLength, 0)
}
