// Writes checkpoints and adapters for tests to disk.

import { createHash } from 'node:crypto'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import {
  type AdapterToMerge,
  MemoryDirectory,
  type MergeOptions,
  merge,
  planMerge,
  saveAdapter,
  type UnmergeOptions,
  unmerge,
} from '../../../src/api/node.js'
import { adapter, type BaseOptions, base, mergeCheckpoint, type TensorSketch } from '../toolkit.js'

/** The module that child processes merge with. */
export const MERGE = new URL('../../../src/api/node.js', import.meta.url).href

export async function toDisk(directory: MemoryDirectory, folder: string): Promise<string> {
  for (const [name, bytes] of directory.files) {
    const target = path.join(folder, name)
    await mkdir(path.dirname(target), { recursive: true })
    await writeFile(target, bytes)
  }
  return folder
}

export async function fromDisk(folder: string): Promise<MemoryDirectory> {
  const directory = new MemoryDirectory({}, folder)
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue
    const file = path.join(entry.parentPath, entry.name)
    directory.files.set(path.relative(folder, file).replaceAll('\\', '/'), await readFile(file))
  }
  return directory
}

/** Writes `base` and `adapter` below a folder. The adapter changes all weights named `*.proj.weight`. */
export async function layOutFiles(folder: string, sketches: readonly TensorSketch[], options: BaseOptions = {}) {
  const from = await base(sketches, options)
  const layers = sketches.flatMap(([name, , [d, k]]) =>
    name.endsWith('proj.weight') ? [[name.slice(0, -'.weight'.length), [d, k]] as const] : [],
  )
  const lora = adapter(Object.fromEntries(layers))
  const loraFolder = new MemoryDirectory({}, 'adapter')
  await saveAdapter(lora, loraFolder)
  return {
    memory: from,
    lora,
    base: await toDisk(from, path.join(folder, 'base')),
    adapter: await toDisk(loraFolder, path.join(folder, 'adapter')),
    out: path.join(folder, 'out'),
  }
}

/** Returns the digests of the files that the portable code writes for `layOutFiles`. */
export async function expected(setup: Awaited<ReturnType<typeof layOutFiles>>): Promise<Map<string, string>> {
  const out = new MemoryDirectory({}, 'out')
  await mergeCheckpoint(setup.memory, setup.lora, out)
  return digests(out.files)
}

/** Returns the digests of a folder's files, except the record of the merge. */
export async function weights(out: string): Promise<Map<string, string>> {
  const { files } = await fromDisk(out)
  files.delete('lowrank-merge.json')
  return digests(files)
}

/** Tests compare digests, because a matcher needs minutes for arrays of megabytes. */
function digests(files: ReadonlyMap<string, Uint8Array>): Map<string, string> {
  return new Map([...files].map(([name, bytes]): [string, string] => [name, digest(bytes)]).sort())
}

export function digest(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

export type PathAdapter = AdapterToMerge

/** Options of a merge by path, in either direction. */
export type MergeFilesOptions = Omit<MergeOptions, 'base' | 'adapters' | 'out'> & { sign?: 1 | -1 }

export function mergeFiles(base: string, adapters: PathAdapter[], out: string, options: MergeFilesOptions = {}) {
  const { sign = 1, outDtype, tied, ...rest } = options
  if (sign === 1) return merge({ base, adapters, out, outDtype, tied, ...rest })
  return unmerge({ merged: base, adapters, out, ...rest })
}

export function planFiles(base: string, adapters: PathAdapter[], out: string, options: MergeFilesOptions = {}) {
  return planMerge({ base, adapters, out, ...options })
}

export function unmergeFiles(
  merged: string,
  adapters: PathAdapter[],
  out: string,
  options: Omit<UnmergeOptions, 'merged' | 'adapters' | 'out'> = {},
) {
  return unmerge({ merged, adapters, out, ...options })
}

/** Lists the hidden files of unfinished work beside an output. */
export async function partialsOf(out: string): Promise<string[]> {
  const prefix = `.${path.basename(out)}.`
  const names = await readdir(path.dirname(out)).catch((): string[] => [])
  return names.filter((name) => name.startsWith(prefix)).map((name) => path.join(path.dirname(out), name))
}
