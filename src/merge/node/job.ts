// A merge into a path: planned, made in a hidden folder beside it, by several threads where it is a checkpoint, and renamed when it is
// whole. A job may also make a share of the files alone. The files that a killed job has finished are not made again.

import { closeSync, openSync } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { type ByteSource, readAll, readJson, writeFile } from '../../base/bytes.js'
import { FileError, NumericError } from '../../base/errors.js'
import { fileError } from '../../io/node/errors.js'
import { NodeDirectory } from '../../io/node/files.js'
import { isMountPoint, realOutput, WholeOutput } from '../../io/node/whole-output.js'
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
import { RECORD_FILE } from '../plan/companions.js'
import type { OutputShard } from '../plan/layout.js'
import type { MergeFormat, MergePlanReport, MergeReport } from '../report.js'
import { checkPathSettings, type PathSettings, refuseForFormat } from '../settings.js'
import {
  begunShards,
  type ChunkJob,
  changesOf,
  createShared,
  discard,
  openForReading,
  type Readable,
  stampOf,
  writeFully,
} from './chunks.js'
import { Flusher } from './flush.js'
import { mountedError, severalFilesError, withHint, withShardHint } from './job-errors.js'
import { refuseForeignLinks } from './links.js'
import { checkSpace, filesIn, foreignFiles, type OutputPlace, refuseEnding, refuseOutput } from './place.js'
import { digestOfPlan } from './plan-digest.js'
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
  /** The shards of the checkpoint that are this job's. */
  readonly #own: readonly OutputShard[]
  /** ‖ΔW‖ / ‖W‖ by weight, of the shards that this job has made. */
  #changes = new Map<string, number>()

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
    const { base, inputs, share } = request
    const shards = parts.opened?.plan.shards ?? []
    this.#own = shards.filter((_, i) => share === undefined || i % share.count === share.index)
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
    const { base, adapters, out, threads, sign, share } = request
    const chosen = await chooseFormat(base, out, request)
    refuseForFormat(request, chosen.format)
    refuseEnding(out, chosen.format)
    const isFile = /\.(safetensors|onnx)$/.test(out)
    const place = { out: await realOutput(out), isFile }
    if (await isMountPoint(place.out)) throw mountedError(out)
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
        if (isFile && (files > 1 || share !== undefined)) throw severalFilesError(out, files)
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
    const { share, signal } = this.#request
    const fsync = this.#isDurable
    const plan = await this.#planDigest()
    const output = await WholeOutput.begin(this.#place.out, { isFile: this.#place.isFile, plan, fsync })
    const seconds = () => (performance.now() - startedAt) / 1000
    let isUseless = false
    try {
      // All shares may be given again at any time.
      const isDone = share !== undefined && (await this.#isPublished(plan))
      if (isDone) return { ...this.#report(), bytes: 0, seconds: seconds() }
      await this.#refusePlaces()
      const missing = await unfinishedShards(output, this.#own)
      const others = share === undefined ? (this.#opened?.companions.bytes ?? 0) : 0
      checkSpace(this.#place.out, sizeOf(missing) + others)
      try {
        await this.#writeShards(output, missing)
        const onnx = this.#onnx && (await this.#onnx.write(new NodeDirectory(output.folder, { fsync })))
        const report = this.#report(onnx)
        const unfinished = await unfinishedShards(output, this.#opened?.plan.shards ?? [], missing)
        const bytes = sizeOf(missing) + (onnx?.bytes ?? 0)
        if (unfinished.length > 0) {
          const names = unfinished.map(({ path: shard }) => shard)
          return { ...report, out: output.gathered!, missing: names, bytes, seconds: seconds() }
        }
        const added = await this.#publish(output, report, plan)
        return { ...report, bytes: bytes + added, seconds: seconds() }
      } catch (error) {
        // Another process may have published the same while this one worked.
        if (!(error instanceof FileError) || !(await this.#isPublished(plan))) throw error
        return { ...this.#report(), bytes: 0, seconds: seconds() }
      }
    } catch (error) {
      isUseless = error instanceof NumericError
      signal?.throwIfAborted()
      throw withHint(error, !isUseless && (await hasFiles(output.gathered)))
    } finally {
      await output.close(!isUseless)
    }
  }

  async close(): Promise<void> {
    this.#crew?.dispose()
    await this.#opened?.close()
    await this.#onnx?.close()
  }

  /** True if files are on the disk when they have their names: others rely on those of a share. */
  get #isDurable(): boolean {
    const { fsync = true, share } = this.#request
    return fsync || share !== undefined
  }

  /** True if all machines round alike: as shares must. */
  get #isReproducible(): boolean {
    const { reproducible = false, share } = this.#request
    return reproducible || share !== undefined
  }

  /** Undefined for a result of which nothing is kept: files, and what may be lost when the machine stops. */
  async #planDigest(): Promise<string | undefined> {
    const isKept = this.#opened !== undefined && this.#onnx === undefined && !this.#place.isFile && this.#isDurable
    if (!isKept) return undefined
    return digestOfPlan(this.#opened!, { sign: this.#request.sign, isReproducible: this.#isReproducible })
  }

  /** True if the output is there, and was made by this plan. */
  async #isPublished(plan: string | undefined): Promise<boolean> {
    const directory = new NodeDirectory(this.#place.out)
    if (plan === undefined || !(await directory.has(RECORD_FILE))) return false
    const record = (await readJson(directory, RECORD_FILE).catch(() => null)) as { plan?: unknown } | null
    return record?.plan === plan
  }

  /** Throws FileError when the output is what is being read, or must not be replaced. */
  async #refusePlaces(): Promise<void> {
    const { overwrite = false } = this.#request
    const tensors = this.#opened?.plan.tensors
    await refuseOutput(this.#place, this.#inputs, overwrite, () => foreignFiles(this.#place, tensors))
  }

  /**
   * Writes the missing files of the checkpoint.
   *
   * @throws FileError when one cannot be written, or somebody writes to the base or an adapter meanwhile; NumericError naming what
   *   is not finite
   */
  async #writeShards(output: WholeOutput, missing: readonly OutputShard[]): Promise<void> {
    const [opened, crew] = [this.#opened, this.#crew]
    if (opened === undefined || crew === undefined || missing.length === 0) return
    const { signal, onProgress } = this.#request
    const closers: (() => void)[] = []
    const flusher = this.#isDurable ? new Flusher() : undefined
    /** Descriptors of the files that are not finished. */
    const open = new Map<number, number>()
    try {
      const outputs = missing.map(({ path: shard, header }, i) => {
        const file = createShard(path.join(output.folder, shard))
        open.set(i, file.fd)
        if (header !== undefined) writeFully(file, header, 0)
        return file
      })
      const job = await this.#openChunkJob(opened, outputs, missing, crew.threads, closers)
      const totalBytes = sizeOf(this.#own)
      const keptBytes = totalBytes - sizeOf(missing)
      const stamps = job.bases.map(stampOf)
      const refuseChanges = () => {
        const changed = job.bases.find((file, i) => stampOf(file) !== stamps[i])
        if (changed === undefined) return
        throw new FileError({
          where: changed.name,
          what: 'was written to while it was being merged',
          hint: 'Merge again when nothing else writes there',
        })
      }
      await crew.run(job, {
        signal,
        onProgress: (bytes) => {
          for (const shard of begunShards(job)) flusher?.send(outputs[shard])
          onProgress?.({ writtenBytes: keptBytes + bytes, totalBytes, keptBytes })
        },
        onShard: async (i) => {
          await flusher?.finish(outputs[i])
          refuseChanges()
          closeSync(outputs[i].fd)
          open.delete(i)
          await output.finish(missing[i].path)
        },
      })
      this.#changes = changesOf(job)
    } catch (error) {
      for (const fd of open.values()) discard(fd)
      throw error
    } finally {
      await flusher?.end()
      for (const fd of open.values()) closeSync(fd)
      for (const close of closers) close()
    }
  }

  /** @param closers gets what closes the files that are opened, also of those before an error */
  async #openChunkJob(
    { checkpoint, adapters }: OpenPlan,
    outputs: ChunkJob['outputs'],
    missing: readonly OutputShard[],
    threads: number,
    closers: (() => void)[],
  ): Promise<ChunkJob> {
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
      outputs,
      bases: [...bases, ...factors],
      factors,
      threads,
      isReproducible: this.#isReproducible,
      shared: createShared(missing, threads),
    }
  }

  /** Adds the base's other files and gives the output its name. Returns the bytes written. */
  async #publish(output: WholeOutput, report: MergeReport, plan: string | undefined): Promise<number> {
    const { base, signal, overwrite = false } = this.#request
    const folder = new NodeDirectory(output.folder, { fsync: this.#isDurable })
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
      await output.publishFiles(overwrite)
      return bytes
    }
    const shards = (this.#opened?.plan.shards ?? []).map(({ path: shard }) => shard)
    const record = {
      version: 1,
      plan,
      base: base.file ?? path.basename(path.resolve(base.directory.name)),
      files: [...new Set([...shards, ...(await filesIn(folder.name))])].sort(),
      layers: report.layers,
    }
    await writeFile(folder, RECORD_FILE, `${JSON.stringify(record, null, 2)}\n`)
    for (const name of [...added, RECORD_FILE]) await output.finish(name)
    await output.publishFolder(overwrite)
    return bytes
  }

  /** The report on this job's part, without what it has written. */
  #report(onnx?: MergeReport): MergeReport {
    const { out } = this.#request
    const checkpoint = this.#opened && this.#reportCheckpoint(this.#opened)
    return { ...(checkpoint && onnx ? joinReports(out, checkpoint, onnx) : (checkpoint ?? onnx)!), out }
  }

  #reportCheckpoint({ plan, companions, warnings }: OpenPlan): MergeReport {
    const own = new Set(this.#own.flatMap(({ tensors }) => tensors))
    const weights = plan.weights.filter(({ name }) => own.has(name))
    return {
      ...describePlan({ ...plan, weights }, { relativeChange: (weight) => this.#changes.get(weight) ?? null }),
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

/** The shards that no process has finished, but for those that this one has just made. */
async function unfinishedShards(
  output: WholeOutput,
  shards: readonly OutputShard[],
  made: readonly OutputShard[] = [],
): Promise<OutputShard[]> {
  const result: OutputShard[] = []
  for (const shard of shards) {
    const isMade = made.includes(shard) || (await output.hasFinished(shard.path, shard.byteLength))
    if (!isMade) result.push(shard)
  }
  return result
}

function createShard(name: string): { name: string; fd: number } {
  try {
    return { name, fd: openSync(name, 'wx') }
  } catch (error) {
    throw fileError(name, 'cannot be written', error)
  }
}

async function hasFiles(folder: string | undefined): Promise<boolean> {
  return folder !== undefined && (await readdir(folder).catch(() => [])).length > 0
}

function sizeOf(shards: readonly OutputShard[]): number {
  return shards.reduce((sum, { byteLength }) => sum + byteLength, 0)
}
