// Carries out a merge's plan in this thread, over Directory and ByteSink. Memory does not depend on sizes.

import { type Directory, writeThrough, writeTogether } from '../base/bytes.js'
import { FileError } from '../base/errors.js'
import { type OpenMerge, sizeOf, summaryOf } from './open.js'
import { chunksOf, type OutputFile } from './plan/layout.js'
import { ChangeSums, type MergeReport } from './report.js'
import type { MergeSettings } from './settings.js'
import { ChunkMerger } from './weight.js'

/** Writes all files of a plan, together where the folder can do that; else those that name others come last. */
export async function carryOut(
  merge: OpenMerge,
  out: Directory,
  { signal, onProgress }: Pick<MergeSettings, 'signal' | 'onProgress'>,
): Promise<MergeReport> {
  const startedAt = performance.now()
  if (out === merge.base || (await out.isSame?.(merge.base)) === true) {
    throw new FileError({ where: out.name, what: 'the output is the base itself', hint: 'Choose another place for it' })
  }
  await merge.prepare()
  const { files, sources, others, isReproducible } = merge
  const sums = new ChangeSums()
  const merger = new ChunkMerger(sources, isReproducible)
  const totalBytes = sizeOf(files)
  let writtenBytes = 0
  const added: string[] = []
  const write = async (folder: Directory) => {
    const begin = async (path: string) => {
      if (!(await folder.has(path))) added.push(path)
    }
    for (const file of files) {
      await begin(file.path)
      await writeThrough(folder, file.path, async (sink) => {
        for await (const bytes of bytesOf(file, merger, sums)) {
          signal?.throwIfAborted()
          await sink.write(bytes)
          writtenBytes += bytes.byteLength
          onProgress?.({ writtenBytes, totalBytes })
        }
      })
    }
    for (const file of others) {
      await begin(file.path)
      await file.write(folder)
    }
    signal?.throwIfAborted()
    return merge.changes(sums)
  }
  try {
    const layers = await writeTogether(out, write)
    const seconds = (performance.now() - startedAt) / 1000
    const result = { out: out.name, format: merge.format, seconds, layers }
    return { ...summaryOf(merge, files), ...result, bytes: writtenBytes + sizeOf(others) }
  } catch (error) {
    for (const path of added) await out.remove(path)
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
      const chunks = chunksOf(piece)
      for (let i = 0; i < chunks.count; i++) {
        const { bytes, changes } = await merger.merge(chunks.at(i))
        for (const change of changes) sums.add(change)
        yield bytes
      }
    }
  }
}
