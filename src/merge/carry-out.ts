// Carries out a merge's plan in this thread, over Directory and ByteSink, in Node and in browsers. Memory depends
// neither on the model nor on a tensor. Node's way with threads, in merge/node, shares all but reading and writing.

import type { ByteSink, ByteSource, Directory } from '../base/bytes.js'
import { FileError } from '../base/errors.js'
import { type OpenMerge, summaryOf } from './open.js'
import { Chunks, type OutputFile } from './plan/layout.js'
import { ChangeSums, type MergeReport } from './report.js'
import type { RunSettings } from './settings.js'
import { ChunkMerger } from './weight.js'

/**
 * Writes all files of a plan. They appear together, and those that name others come last.
 *
 * @throws FileError when the output is the base itself, or cannot be written; NumericError naming the tensor when a
 *   value is not finite
 */
export async function carryOut(merge: OpenMerge, out: Directory, options: RunSettings): Promise<MergeReport> {
  const startedAt = performance.now()
  await refuseBaseAsOutput(merge, out)
  await merge.prepare()
  const { files, sources, others, isReproducible } = merge
  const sums = new ChangeSums()
  const merger = new ChunkMerger(sources, isReproducible)
  const warnings = [...merge.summary.warnings]
  const totalBytes = files.reduce((sum, { byteLength }) => sum + byteLength, 0)
  const staged = new StagedFiles(out, totalBytes, options)
  try {
    for (const file of files) {
      const reason = file.link === undefined ? '' : await tryLink(staged, file.path, sources[file.link])
      if (reason === undefined) continue
      if (reason !== '') warnings.push(`${file.path} is a copy, not a hard link: ${reason}`)
      const sink = await staged.create(file.path)
      for await (const bytes of bytesOf(file, merger, sums)) await sink.write(bytes)
    }
    for (const file of others) await file.write(staged)
    const layers = await merge.changes(sums)
    await staged.commit()
    const seconds = (performance.now() - startedAt) / 1000
    const result = { out: merge.outName(out.name), format: merge.format, warnings, seconds, layers }
    return { ...summaryOf(merge, files), ...result, bytes: staged.writtenBytes }
  } catch (error) {
    await staged.abort()
    throw error
  }
}

async function* bytesOf(
  { literals, segments }: OutputFile,
  merger: ChunkMerger,
  sums: ChangeSums,
): AsyncGenerator<Uint8Array> {
  for (const piece of [...literals, ...segments].sort((a, b) => a.offset - b.offset)) {
    if ('bytes' in piece) yield typeof piece.bytes === 'function' ? await piece.bytes() : piece.bytes
    else {
      const chunks = new Chunks(piece)
      for (let i = 0; i < chunks.count; i++) {
        const { bytes, changes } = await merger.merge(chunks.at(i))
        for (const change of changes) sums.add(change)
        yield bytes
      }
    }
  }
}

/** Undefined if the file became a link; else the reason why it did not. */
export async function tryLink(
  directory: Pick<Directory, 'link'>,
  path: string,
  source: ByteSource,
): Promise<string | undefined> {
  if (source.realPath === undefined) return 'only files of one disk can be linked'
  try {
    await directory.link?.(path, source.realPath)
    return undefined
  } catch (error) {
    return error instanceof FileError ? error.message : 'only files of one disk can be linked'
  }
}

async function refuseBaseAsOutput({ base, format, files, sources }: OpenMerge, out: Directory): Promise<void> {
  const isSame = out === base || (await out.isSame?.(base)) === true
  if (isSame && format !== 'onnx') throw baseAsOutputError(out.name)
  const read = new Set(sources.flatMap(({ realPath }) => realPath ?? []))
  for (const { path } of files) {
    if (!(await out.has(path))) continue
    if (isSame) throw baseAsOutputError(`${out.name}/${path}`)
    const existing = await out.open(path)
    await existing.close()
    if (existing.realPath !== undefined && read.has(existing.realPath)) throw baseAsOutputError(existing.name)
  }
}

function baseAsOutputError(where: string): FileError {
  return new FileError({ where, what: 'the output is the base itself', hint: 'Choose another place for it' })
}

/** New files of a folder that get their names when `commit` is called, in the order in which they were made. */
class StagedFiles implements Pick<Directory, 'create' | 'link'> {
  readonly #target: Directory
  readonly #options: RunSettings
  readonly #totalBytes: number
  readonly #files: { path: string; sink: ByteSink }[] = []
  readonly #links: string[] = []
  writtenBytes = 0

  constructor(target: Directory, totalBytes: number, options: RunSettings) {
    this.#target = target
    this.#totalBytes = totalBytes
    this.#options = options
  }

  async create(path: string): Promise<ByteSink> {
    const sink = await this.#target.create(path)
    this.#files.push({ path, sink })
    return {
      name: sink.name,
      write: async (bytes) => {
        this.#options.signal?.throwIfAborted()
        await sink.write(bytes)
        this.writtenBytes += bytes.byteLength
        this.#options.onProgress?.({ writtenBytes: this.writtenBytes, totalBytes: this.#totalBytes })
      },
      commit: async () => {},
      abort: () => sink.abort(),
    }
  }

  /** The link has its name at once; `abort` takes it away. */
  async link(path: string, realPath: string): Promise<void> {
    if (this.#target.link === undefined) throw new FileError({ where: path, what: 'no hard links can be made here' })
    await this.#target.link(path, realPath)
    this.#links.push(path)
  }

  async commit(): Promise<void> {
    this.#options.signal?.throwIfAborted()
    const named: string[] = []
    try {
      for (const { path, sink } of this.#files) {
        await sink.commit()
        named.push(path)
      }
    } catch (error) {
      for (const path of named) await this.#target.remove(path)
      throw error
    }
  }

  /** Drops what has not got its name yet. */
  async abort(): Promise<void> {
    // The first file may have made the folder, which goes only when it is empty.
    for (const { sink } of this.#files.toReversed()) await sink.abort()
    for (const path of this.#links) await this.#target.remove(path)
  }
}
