// A merge into a path: made in a hidden folder beside it by several threads, and renamed when it is whole. The files
// that a killed job has finished are not made again.

import { createHash, type Hash } from 'node:crypto'
import { closeSync, mkdirSync, openSync, fsync as syncFile } from 'node:fs'
import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'
import { crc32 } from 'node:zlib'
import { type ByteSource, readAll, writeFile } from '../../base/bytes.js'
import { ConfigError, FileError, NumericError } from '../../base/errors.js'
import { codeOf, withFileErrors } from '../../io/node/errors.js'
import { localPath, NodeDirectory } from '../../io/node/files.js'
import { isMountPoint, realOutput, WholeOutput } from '../../io/node/whole-output.js'
import { RECORD_FILE } from '../companions.js'
import { chooseFormat } from '../format.js'
import type { MergeJob, MergeRequest } from '../merge.js'
import { type OpenMerge, openMerge, reportPlan, sizeOf, summaryOf } from '../open.js'
import { computedWeights, type OutputFile } from '../plan/layout.js'
import { ChangeSums, type MergePlanReport, type MergeReport } from '../report.js'
import { refuseForFormat } from '../settings.js'
import { changesOf, createShared, type OpenFile, type Readable, stampOf, writeFully } from './chunks.js'
import { checkSpace, filesIn, readRecord, refuseEnding, refuseForeignLinks, refuseOutput } from './place.js'
import { Crew, threadsOf } from './threads.js'

export function openPathJob(request: MergeRequest, runs: boolean): Promise<MergeJob> {
  return PathJob.open({ ...request, out: localPath(String(request.out), 'out') }, runs)
}

type PathRequest = MergeRequest & { readonly out: string }

class PathJob implements MergeJob {
  readonly #own: readonly OutputFile[]
  #changes = new ChangeSums()

  private constructor(
    private readonly request: PathRequest,
    /** The path without links. */
    private readonly place: { readonly out: string; readonly isFile: boolean },
    private readonly opened: OpenMerge,
    private readonly crew: Crew | undefined,
  ) {
    const { share } = request
    this.#own = opened.files.filter((_, i) => share === undefined || i % share.count === share.index)
  }

  /** `runs`: the merge is to follow, and its threads start meanwhile. */
  static async open(request: PathRequest, runs: boolean): Promise<PathJob> {
    const { base, out, threads, share } = request
    const chosen = await chooseFormat(base, out, request)
    refuseForFormat(request, chosen.format)
    refuseEnding(out, chosen.format)
    const isFile = /\.(safetensors|onnx)$/.test(out)
    const place = { out: await realOutput(out), isFile }
    if (await isMountPoint(place.out)) throw mountedError(out)
    const weightsOnly = isFile || request.weightsOnly === true
    // Machines round alike only in plain steps, and shares must.
    const reproducible = request.reproducible === true || share !== undefined
    const own = { ...request, weightsOnly, reproducible, outFile: isFile ? path.basename(out) : undefined }
    const crew = runs ? new Crew(threadsOf(threads)) : undefined
    let opened: OpenMerge | undefined
    try {
      opened = await openMerge(own, chosen)
      await refuseForeignLinks(opened.others)
      const isSplit = chosen.format === 'safetensors' && opened.files.length > 1
      if (isFile && (isSplit || share !== undefined)) {
        const what = 'the output has several files, or shares, so it needs a folder'
        const hint = 'Choose a folder, or a larger `maxShardBytes` without shares'
        throw new ConfigError({ where: out, what, hint })
      }
      return new PathJob(request, place, opened, crew)
    } catch (error) {
      crew?.dispose()
      await opened?.close()
      throw error
    }
  }

  async plan(): Promise<MergePlanReport> {
    await this.#refusePlaces()
    const { files, others } = this.opened
    checkSpace(this.place.out, sizeOf([...files, ...others]))
    return reportPlan(this.opened, this.request.out)
  }

  async run(): Promise<MergeReport> {
    const startedAt = performance.now()
    const { share, signal } = this.request
    const fsync = this.#isDurable
    // Nothing is kept of single files, and of what may be lost when the machine stops.
    const isKept = fsync && !this.place.isFile
    const plan = isKept ? await digestOfPlan(this.opened, this.request.sign ?? 1) : undefined
    const output = await WholeOutput.begin(this.place.out, { isFile: this.place.isFile, plan, fsync })
    const seconds = () => (performance.now() - startedAt) / 1000
    let isUseless = false
    try {
      // All shares may be given again at any time.
      if (share !== undefined && (await this.#isPublished(plan))) return { ...this.#report(), seconds: seconds() }
      await this.#refusePlaces()
      const missing = await unfinishedFiles(output, this.#own)
      checkSpace(this.place.out, sizeOf(share === undefined ? [...missing, ...this.opened.others] : missing))
      try {
        await this.#writeFiles(output, missing)
        const report = this.#report()
        const bytes = sizeOf(missing)
        const others = share === undefined ? [] : this.opened.files.filter((file) => !missing.includes(file))
        const unfinished = (await unfinishedFiles(output, others)).map((file) => file.path)
        if (unfinished.length > 0) {
          return { ...report, out: output.gathered!, missing: unfinished, bytes, seconds: seconds() }
        }
        const added = await this.#publish(output, report, plan)
        return { ...report, bytes: bytes + added, seconds: seconds() }
      } catch (error) {
        // Another process may have published the same while this one worked.
        if (!(error instanceof FileError) || !(await this.#isPublished(plan))) throw error
        return { ...this.#report(), seconds: seconds() }
      }
    } catch (error) {
      isUseless = error instanceof NumericError
      signal?.throwIfAborted()
      const kept = isUseless ? [] : await readdir(output.gathered ?? '').catch(() => [])
      throw withHint(error, kept.length > 0)
    } finally {
      await output.close(!isUseless)
    }
  }

  async close(): Promise<void> {
    this.crew?.dispose()
    await this.opened.close()
  }

  /** Others rely on the files of a share. */
  get #isDurable(): boolean {
    const { fsync = true, share } = this.request
    return fsync || share !== undefined
  }

  async #isPublished(plan: string | undefined): Promise<boolean> {
    return plan !== undefined && (await readRecord(this.place.out)).plan === plan
  }

  async #refusePlaces(): Promise<void> {
    const { out, overwrite = false } = this.request
    const inputs = inputsOf(this.request, this.opened)
    await withFileErrors(out, 'cannot be used', () => refuseOutput(this.place, inputs, overwrite))
  }

  /** Throws FileError when somebody writes to the base or an adapter meanwhile. */
  async #writeFiles(output: WholeOutput, missing: readonly OutputFile[]): Promise<void> {
    const [opened, crew] = [this.opened, this.crew]
    if (crew === undefined || missing.length === 0) return
    const { signal, onProgress } = this.request
    const closers: (() => void)[] = []
    const open = new Map<number, number>()
    try {
      const sources = openSources(opened.sources, closers)
      const stamps = sources.map(stampOf)
      const refuseChanges = () => {
        const changed = sources.find((file, i) => stampOf(file) !== stamps[i])
        if (changed === undefined) return
        throw new FileError({
          where: changed.name,
          what: 'was written to while it was being merged',
          hint: 'Merge again when nothing else writes there',
        })
      }
      await opened.prepare()
      const outputs = missing.map((file, i) => {
        const created = createFile(path.join(output.folder, file.path))
        open.set(i, created.fd)
        return created
      })
      const onFile = async (i: number) => {
        const { name, fd } = outputs[i]
        if (this.#isDurable) await withFileErrors(name, 'cannot be written', () => promisify(syncFile)(fd))
        refuseChanges()
        closeSync(fd)
        open.delete(i)
        await output.finish(missing[i].path)
      }
      for (const [i, { literals }] of missing.entries()) {
        for (const { offset, bytes } of literals) {
          signal?.throwIfAborted()
          writeFully(outputs[i], typeof bytes === 'function' ? await bytes() : bytes, offset)
        }
      }
      const totalBytes = sizeOf(this.#own)
      const keptBytes = totalBytes - sizeOf(missing)
      const segmented = missing.map(({ segments }) => ({ segments }))
      const shared = createShared(segmented, crew.threads)
      const { isReproducible } = opened
      for (const [i, one] of sources.entries()) if ('bytes' in one) one.bytes.set(await readAll(opened.sources[i]))
      const job = { files: segmented, outputs, sources, threads: crew.threads, isReproducible, shared }
      await crew.run(job, {
        signal,
        onProgress: (bytes) => onProgress?.({ writtenBytes: keptBytes + bytes, totalBytes, keptBytes }),
        onFile,
      })
      this.#changes = changesOf(job)
    } finally {
      for (const fd of open.values()) closeSync(fd)
      for (const close of closers) close()
    }
  }

  /** Adds the base's other files and gives the output its name. Returns the bytes written. */
  async #publish(output: WholeOutput, report: MergeReport, plan: string | undefined): Promise<number> {
    const { base, signal, overwrite = false } = this.request
    const { files, others } = this.opened
    const folder = new NodeDirectory(output.folder, { fsync: this.#isDurable })
    for (const file of others) await file.write(folder)
    const bytes = sizeOf(others)
    signal?.throwIfAborted()
    // Something may have come to this place while this merge ran.
    await this.#refusePlaces()
    if (this.place.isFile) {
      await output.publishFiles(overwrite)
      return bytes
    }
    const record = {
      version: 1,
      plan,
      base: base.file ?? path.basename(path.resolve(base.directory.name)),
      files: [...new Set([...files.map((file) => file.path), ...(await filesIn(folder.name))])].sort(),
      layers: report.layers,
    }
    await writeFile(folder, RECORD_FILE, `${JSON.stringify(record, null, 2)}\n`)
    for (const name of [...others.map((file) => file.path), RECORD_FILE]) await output.finish(name)
    await output.publishFolder(overwrite)
    return bytes
  }

  #report(): MergeReport {
    const { out, share } = this.request
    const own = new Set(computedWeights(this.#own).flatMap(({ reports }) => reports))
    const changes = this.opened.changes(this.#changes)
    const layers = share === undefined ? changes : changes.filter(({ name }) => own.has(name))
    return { ...summaryOf(this.opened, this.#own), out, format: this.opened.format, layers, bytes: 0, seconds: 0 }
  }
}

async function unfinishedFiles(output: WholeOutput, files: readonly OutputFile[]): Promise<OutputFile[]> {
  const result: OutputFile[] = []
  for (const file of files) if (!(await output.hasFinished(file.path, file.byteLength))) result.push(file)
  return result
}

/** The sources as threads read them: those without a file get shared memory, which is to be filled. */
function openSources(sources: readonly ByteSource[], closers: (() => void)[]): Readable[] {
  return sources.map(({ name, realPath, byteLength }): Readable => {
    if (realPath === undefined) return { name, bytes: new Uint8Array(new SharedArrayBuffer(byteLength)) }
    const fd = withFileErrors(realPath, 'cannot be read', () => openSync(realPath, 'r'))
    closers.push(() => closeSync(fd))
    return { name: realPath, fd }
  })
}

function createFile(name: string): OpenFile {
  return withFileErrors(name, 'cannot be written', () => {
    mkdirSync(path.dirname(name), { recursive: true })
    return { name, fd: openSync(name, 'wx') }
  })
}

/** Files and folders that are read. */
function inputsOf({ base, adapters }: PathRequest, { sources }: OpenMerge): string[] {
  const folders = [adapters].flat().map((one) => ('adapter' in one ? one.adapter : one))
  const read = base.file === undefined ? [base.directory, ...folders] : folders
  return [
    ...read.flatMap((folder) => (folder instanceof NodeDirectory ? [folder.name] : [])),
    ...sources.flatMap(({ realPath }) => realPath ?? []),
  ]
}

function mountedError(out: string): FileError {
  return new FileError({
    where: out,
    what: 'a file system is mounted here, so the finished output cannot get this name',
    hint: `Choose a folder in it, such as ${path.join(out, 'merged')}`,
  })
}

function withHint(error: unknown, isLeft: boolean): unknown {
  if (!(error instanceof FileError) || !isLeft) return error
  const { where, what, expected, got, hint, cause } = error
  const isFull = ['ENOSPC', 'EDQUOT'].includes(codeOf(cause) ?? '')
  const kept = 'The finished files are kept: give the same command again to go on'
  const advice = isFull ? `${hint}. ${kept}` : (hint ?? kept)
  return new FileError({ where, what, expected, got, hint: advice, cause })
}

const SAMPLES = 256
const SAMPLE_BYTES = 64 << 10
const WHOLE_BYTES = SAMPLES * SAMPLE_BYTES
const READ_BYTES = 4 << 20

/**
 * Processes with the same digest make the same files: it covers options, adapters, and the base's headers, sizes and
 * sampled bytes. Places and times do not count.
 */
async function digestOfPlan(
  { files, others, sources, baseFiles, isReproducible }: OpenMerge,
  sign: 1 | -1,
): Promise<string> {
  const hash = createHash('sha256')
  const segments = files.map(({ literals: _, ...file }) => file)
  const small = others.map(({ path, byteLength, text }) => ({ path, byteLength, text }))
  hash.update(JSON.stringify({ version: 5, segments, small, sign, isReproducible }, withoutPlace))
  for (const { bytes } of files.flatMap(({ literals }) => literals)) if (typeof bytes !== 'function') hash.update(bytes)
  for (const source of sources) {
    const headerBytes = baseFiles.get(source)
    const isWhole = headerBytes === undefined || source.byteLength <= WHOLE_BYTES
    await addRange(hash, source, 0, isWhole ? source.byteLength : headerBytes)
    for (let i = 0; !isWhole && i < SAMPLES; i++) {
      const at = Math.floor((i * (source.byteLength - SAMPLE_BYTES)) / (SAMPLES - 1))
      await addRange(hash, source, at, at + SAMPLE_BYTES)
    }
  }
  return hash.digest('hex').slice(0, 16)
}

/** Factors carry the name of the file that they are in. */
function withoutPlace(_key: string, value: unknown): unknown {
  const isFactor = typeof value === 'object' && value !== null && 'source' in value && 'offset' in value
  return isFactor ? { ...value, name: '' } : value
}

/** CRC-32s of a range: several times as fast as hashing its bytes, and sure to tell any change by accident. */
async function addRange(hash: Hash, source: ByteSource, start: number, end: number): Promise<void> {
  hash.update(`${source.byteLength} `)
  for (let at = start; at < end; at += READ_BYTES) {
    hash.update(`${crc32(await source.read(at, Math.min(READ_BYTES, end - at)))} `)
  }
}
