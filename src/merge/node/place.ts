// Where the output of a merge may go: looked at before anything is written, and again before it gets its name.

import { statfsSync } from 'node:fs'
import { lstat, readdir, readFile, realpath, stat } from 'node:fs/promises'
import path from 'node:path'
import { FileError, LowrankError } from '../../base/errors.js'
import { formatShape } from '../../base/tensor.js'
import { openCheckpoint } from '../../formats/checkpoint.js'
import { fileError } from '../../io/node/errors.js'
import { locate } from '../../io/node/files.js'
import { RECORD_FILE } from '../plan/companions.js'
import type { MergeFormat } from '../report.js'

/** Where a merge's result goes. */
export interface OutputPlace {
  /** As {@link realOutput} gives it. */
  readonly out: string
  /** The output is one safetensors file, not a folder. */
  readonly isFile: boolean
}

/** @throws FileError for a name whose ending is another format's than the result's */
export function refuseEnding(out: string, format: MergeFormat): void {
  const [, ending] = /\.(safetensors|onnx|gguf|bin|pt|pth|ckpt)$/i.exec(out) ?? []
  if (ending === undefined || ending === format) return
  throw new FileError({
    where: out,
    what: `the result cannot be written as .${ending}`,
    expected: format === 'both' ? 'a folder' : `a folder, or a file name that ends in .${format}`,
  })
}

/**
 * The path that a result at `out` has in the end: where a link leads, so that it is made on the file system on which it will be.
 *
 * @throws FileError for a link that leads nowhere, and for a folder that cannot be renamed because a file system is mounted on it
 */
export async function realOutput(out: string): Promise<string> {
  const target = path.resolve(out)
  const entry = await lstat(target).catch(() => undefined)
  if (entry === undefined) return target
  const real = await realpath(target).catch(() => undefined)
  if (real === undefined) {
    throw new FileError({
      where: out,
      what: 'this link points to a place that does not exist',
      hint: 'Remove the link, or make the folder',
    })
  }
  if (!(await isMountPoint(real))) return real
  throw new FileError({
    where: out,
    what: 'a file system is mounted here, so the finished output cannot get this name',
    hint: `Choose a folder in it, such as ${path.join(out, 'merged')}`,
  })
}

async function isMountPoint(real: string): Promise<boolean> {
  const [status, parent] = await Promise.all([stat(real), stat(path.dirname(real))])
  if (!status.isDirectory()) return false
  if (status.dev !== parent.dev) return true
  // A part of the same file system may be mounted: containers do that with folders of their host.
  const mounts = await readFile('/proc/self/mountinfo', 'utf8').catch(() => '')
  const escaped = real.replace(/[ \t\n\\]/g, (one) => `\\${one.charCodeAt(0).toString(8).padStart(3, '0')}`)
  return mounts.split('\n').some((line) => line.split(' ')[4] === escaped)
}

/** @throws FileError when the file system of `folder`, which need not exist, has less room than `bytes` */
export function checkSpace(folder: string, bytes: number): void {
  let free = Number.POSITIVE_INFINITY
  for (let existing = folder; ; existing = path.dirname(existing)) {
    try {
      const { bavail, bsize, blocks } = statfsSync(existing)
      // Some file systems of networks do not know.
      if (blocks > 0) free = bavail * bsize
      break
    } catch (error) {
      if (path.dirname(existing) === existing) throw fileError(folder, 'cannot be written', error)
    }
  }
  if (bytes <= free) return
  throw new FileError({
    where: folder,
    what: 'not enough free space for the output',
    expected: `${Math.ceil(bytes / 1e6)} MB`,
    got: `${Math.floor(free / 1e6)} MB`,
    hint: 'Free some, or choose another disk; nothing was written',
  })
}

/**
 * Refuses to write where the inputs are, or over something that is not a merge's output.
 *
 * @param inputs files and folders that are read
 * @param isMerged whether a merge may have written what is at `out`
 */
export async function refuseOutput(
  { out, isFile }: OutputPlace,
  inputs: readonly string[],
  overwrite: boolean,
  isMerged: () => Promise<boolean>,
): Promise<void> {
  const status = await stat(out).catch(() => undefined)
  for (const input of inputs) {
    const other = await stat(input).catch(() => undefined)
    if (status === undefined || other === undefined || status.dev !== other.dev || status.ino !== other.ino) continue
    throw new FileError({
      where: out,
      what: `the output is the ${other.isDirectory() ? 'folder' : 'file'} that is being read`,
      got: await realpath(input),
      hint: 'Choose another place for it',
    })
  }
  if (status === undefined) return
  if (status.isDirectory() === isFile) {
    throw new FileError({ where: out, what: isFile ? 'is a folder' : 'is not a folder', hint: 'Choose another place' })
  }
  if (!isFile && (await readdir(out)).length === 0) return
  const real = await realpath(out)
  for (const input of inputs) {
    const inside = path.relative(real, await realpath(input))
    if (!inside.startsWith('..') && !path.isAbsolute(inside)) {
      throw new FileError({ where: out, what: `it holds ${inside}, which is being read`, hint: 'Choose another place' })
    }
  }
  const mayGo = await isMerged()
  if (mayGo && overwrite) return
  const there = isFile ? 'exists already' : 'exists already and is not empty'
  throw new FileError({
    where: out,
    what: overwrite ? 'not overwritten, because no merge wrote it' : there,
    hint: mayGo
      ? 'Choose another place for the result, or replace it with overwrite (--overwrite)'
      : 'Choose another place',
  })
}

/**
 * Whether a merge may have written what is there: a folder says so itself, a file has the names and shapes of the new one.
 *
 * @param tensors of the new output; undefined for an .onnx file, which never tells
 */
export async function looksMerged(
  { out, isFile }: OutputPlace,
  tensors: ReadonlyMap<string, readonly number[]> | undefined,
): Promise<boolean> {
  if (!isFile) return (await readdir(out)).includes(RECORD_FILE)
  if (tensors === undefined) return false
  try {
    const { directory, file } = await locate(out)
    const existing = await openCheckpoint(directory, file)
    await existing.close()
    const isThere = ([name, shape]: readonly [string, readonly number[]]) => {
      const other = existing.tensors.get(name)
      return other !== undefined && formatShape(other.info.shape) === formatShape(shape)
    }
    return existing.tensors.size === tensors.size && [...tensors].every(isThere)
  } catch (error) {
    if (error instanceof LowrankError) return false
    throw error
  }
}
