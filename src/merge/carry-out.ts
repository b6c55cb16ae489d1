// Carries out the plan of a merge, file after file, in one or several threads. Large models need no more memory.

import { type ByteSink, type ByteSource, type Directory, writeThrough, writeTogether } from '../core/base/bytes.js'
import { FileError } from '../core/base/errors.js'
import { mergeChunks } from './chunk-loop.js'
import { ChangeSums, type MergeReport } from './merge-report.js'
import { type OpenMerge, sizeOf } from './open.js'
import type { OutputFile, Segment } from './plan/layout.js'
import type { MergeSettings } from './settings.js'
import { ChunkMerger, type ChunkSource } from './weight.js'

/** Threads that share the chunks of a merge. The sources and the output must be files of this machine. */
export interface MergeThreads {
  open(sources: readonly ByteSource[]): Promise<ChunkSource[]>
  /** Runs the loop in this thread and the others, which share a counter. Returns the changes of the other threads. */
  run(segments: readonly Segment[], sink: ByteSink, loop: (counter: Int32Array) => Promise<void>): Promise<ChangeSums>
  write(sink: ByteSink, bytes: Uint8Array, offset: number): Promise<void>
}

/**
 * Writes all files of a plan. If the folder can, they appear together; else files that name other files are written
 * last.
 */
export async function carryOut(
  merge: OpenMerge,
  out: Directory,
  { signal, on }: Pick<MergeSettings, 'signal' | 'on'>,
  threads?: MergeThreads,
): Promise<MergeReport> {
  const startedAt = performance.now()
  if (out === merge.base || (await out.isSame?.(merge.base)) === true) {
    throw new FileError({ where: out.name, what: 'the output is the base itself', hint: 'Choose another place for it' })
  }
  const { files, sources, others } = merge
  await merge.prepare()
  const readers = (await threads?.open(sources)) ?? sources
  const merger = new ChunkMerger(readers)
  const sums = new ChangeSums()
  const totalBytes = sizeOf(files)
  let writtenBytes = 0

  const writeWeights = async ({ literals, segments, byteLength }: OutputFile, sink: ByteSink) => {
    const write = async (bytes: Uint8Array, offset: number) => {
      signal?.throwIfAborted()
      await (threads === undefined ? sink.write(bytes) : threads.write(sink, bytes, offset))
      on?.progress?.({ writtenBytes: writtenBytes + offset + bytes.byteLength, totalBytes })
    }
    const waiting = [...literals].sort((a, b) => b.offset - a.offset)
    const writeLiterals = async (end: number) => {
      while (waiting.length > 0 && waiting[waiting.length - 1].offset < end) {
        const { offset, bytes } = waiting.pop()!
        await write(bytes, offset)
      }
    }
    const loop = (counter: Int32Array) =>
      mergeChunks(segments, merger, counter, async (bytes, offset, changes) => {
        await writeLiterals(offset)
        await write(bytes, offset)
        for (const change of changes) sums.add(change)
      })
    if (threads === undefined) await loop(new Int32Array(1))
    else sums.addAll((await threads.run(segments, sink, loop)).byName)
    await writeLiterals(byteLength)
    writtenBytes += byteLength
    on?.progress?.({ writtenBytes, totalBytes })
  }

  const added: string[] = []
  const write = async (folder: Directory) => {
    const begin = async (path: string) => {
      if (!(await folder.has(path))) added.push(path)
    }
    for (const file of files) {
      await begin(file.path)
      await writeThrough(folder, file.path, (sink) => writeWeights(file, sink))
    }
    for (const file of others) {
      await begin(file.path)
      await file.write(folder)
    }
    signal?.throwIfAborted()
    return merge.layers.map(({ name }) => ({ name, relativeChange: sums.relativeChange(name) }))
  }
  try {
    const layers = await writeTogether(out, write)
    const seconds = (performance.now() - startedAt) / 1000
    return {
      ...merge.summary,
      out: out.name,
      format: merge.format,
      bytes: totalBytes + sizeOf(others),
      seconds,
      layers,
    }
  } catch (error) {
    for (const path of added) await out.remove(path)
    throw error
  }
}
