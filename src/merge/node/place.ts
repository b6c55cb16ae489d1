// Checks of a merge's places: its output, before writing and again before renaming, and links among what is copied.

import { readdir, realpath, stat } from 'node:fs/promises'
import path from 'node:path'
import { readLeniently } from '../../core/base/bytes.js'
import { FileError, listed } from '../../core/base/errors.js'
import { withFileErrors } from '../../files/io/node/errors.js'
import { NodeDirectory } from '../../files/io/node/files.js'
import { freeBytes } from '../../files/io/node/folders.js'
import { RECORD_FILE, type ResultFile } from '../base-files.js'
import type { MergeFormat } from '../merge-report.js'

export function refuseEnding(out: string, format: MergeFormat): void {
  const [, ending] = /\.(safetensors|onnx|gguf|bin|pt|pth|ckpt)$/i.exec(out) ?? []
  if (ending === undefined || ending === format) return
  throw new FileError({
    where: out,
    what: `the result cannot be written as .${ending}`,
    expected: `a folder, or a file name that ends in .${format}`,
  })
}

export function checkSpace(folder: string, bytes: number): void {
  const free = freeBytes(folder)
  if (bytes <= free) return
  throw new FileError({
    where: folder,
    what: 'not enough free space for the output',
    expected: `${Math.ceil(bytes / 1e6)} MB`,
    got: `${Math.floor(free / 1e6)} MB`,
    hint: 'Free some, or choose another disk; nothing was written',
  })
}

/** Refuses to write where the inputs are, or over a folder with files that no merge wrote. */
export async function refuseOutput(
  { out, isFile, given }: { readonly out: string; readonly isFile: boolean; readonly given: string },
  inputs: readonly string[],
  overwrite: boolean,
): Promise<void> {
  const status = await stat(out).catch(() => undefined)
  if (status === undefined) return
  if (isFile ? !status.isFile() : !status.isDirectory()) {
    const what = !isFile ? 'is not a folder' : status.isDirectory() ? 'is a folder' : 'is a device, a pipe or a socket'
    throw new FileError({ where: given, what, hint: 'Choose another place' })
  }
  const real = await realpath(out)
  for (const input of inputs) {
    const target = await realpath(input).catch(() => undefined)
    if (target === undefined || !isInside(target, real)) continue
    const what = `${target === real ? 'it is' : `it holds ${path.relative(real, target)}, which is`} being read`
    throw new FileError({ where: given, what, hint: 'Choose another place' })
  }
  if (!isFile && (await readdir(out)).length === 0) return
  if (overwrite) return isFile ? undefined : refuseForeignFiles(out, given)
  const foreign = isFile ? [] : await foreignFiles(out)
  throw new FileError({
    where: given,
    what: isFile ? 'exists already' : 'exists already and is not empty',
    hint:
      foreign.length === 0
        ? 'Choose another place for the result, or replace it with `overwrite`'
        : 'Choose another place',
  })
}

/** Throws FileError for a folder with files that no merge wrote. `given` is its name for messages. */
export async function refuseForeignFiles(folder: string, given: string): Promise<void> {
  const foreign = await foreignFiles(folder)
  if (foreign.length === 0) return
  const what = `not overwritten, because no merge wrote ${listed(foreign)}`
  throw new FileError({ where: given, what, hint: 'Choose another place' })
}

/** Files that the record of a merge does not name. */
async function foreignFiles(folder: string): Promise<string[]> {
  const files = (await readLeniently(new NodeDirectory(folder), RECORD_FILE))?.files
  const written = new Set<unknown>([RECORD_FILE, ...(Array.isArray(files) ? files : [])])
  return (await filesIn(folder)).filter((name) => !written.has(name))
}

export async function filesIn(folder: string): Promise<string[]> {
  const list = () => readdir(folder, { recursive: true, withFileTypes: true })
  const entries = await withFileErrors(folder, 'cannot be listed', list)
  const files = entries.filter((entry) => !entry.isDirectory())
  return files.map((entry) => path.relative(folder, path.join(entry.parentPath, entry.name)).replaceAll('\\', '/'))
}

/**
 * Refuses links that lead out of the folder that a file is copied from, because people upload the copies. In the Hub's
 * cache all files are links to blobs beside the folder.
 */
export async function refuseForeignLinks(files: readonly ResultFile[]): Promise<void> {
  for (const { path: name, from, realPath } of files) {
    if (realPath === undefined || !(from instanceof NodeDirectory)) continue
    const real = await realpath(from.name)
    if (isInside(realPath, real) || isInside(realPath, blobsOf(real))) continue
    throw new FileError({
      where: path.join(from.name, name),
      what: 'a link that leads out of its folder',
      got: realPath,
      hint: 'Put the file itself there, or merge the weights alone: `weightsOnly: true`',
    })
  }
}

function blobsOf(real: string): string | undefined {
  const parts = real.split(path.sep)
  const at = parts.lastIndexOf('snapshots')
  return at > 0 && at < parts.length - 1 ? [...parts.slice(0, at), 'blobs'].join(path.sep) : undefined
}

function isInside(target: string, folder: string | undefined): boolean {
  if (folder === undefined) return false
  const relative = path.relative(folder, target)
  return !relative.startsWith('..') && !path.isAbsolute(relative)
}
