// Checks of a merge's places: its output, before writing and again before renaming, and links in the base's folder.

import { readdir, realpath, stat } from 'node:fs/promises'
import path from 'node:path'
import { readLeniently } from '../../base/bytes.js'
import { FileError, LowrankError, listed } from '../../base/errors.js'
import { formatShape } from '../../base/tensor.js'
import { openCheckpoint } from '../../formats/checkpoint.js'
import { locate, NodeDirectory } from '../../io/node/files.js'
import { freeBytes } from '../../io/node/folders.js'
import { isCompanion, isCompanionFolder, RECORD_FILE } from '../companions.js'
import type { MergeFormat } from '../report.js'

export interface OutputPlace {
  /** The path without links. */
  readonly out: string
  readonly isFile: boolean
}

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

/**
 * Refuses to write where the inputs are, or over something that is not a merge's output. `tensors` of the new output
 * tell whether a merge wrote a single file; an .onnx file never tells.
 */
export async function refuseOutput(
  place: OutputPlace,
  inputs: readonly string[],
  overwrite: boolean,
  tensors: ReadonlyMap<string, readonly number[]> | undefined,
): Promise<void> {
  const { out, isFile } = place
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
    const target = await realpath(input)
    if (!isInside(target, real)) continue
    const inside = path.relative(real, target)
    throw new FileError({ where: out, what: `it holds ${inside}, which is being read`, hint: 'Choose another place' })
  }
  const foreign = await foreignFiles(place, tensors)
  if (foreign.length === 0 && overwrite) return
  const there = isFile ? 'exists already' : 'exists already and is not empty'
  throw new FileError({
    where: out,
    what: overwrite ? `not overwritten, because no merge wrote ${listed(foreign)}` : there,
    hint:
      foreign.length === 0
        ? 'Choose another place for the result, or replace it with `overwrite`'
        : 'Choose another place',
  })
}

/**
 * Files that the record of a merge does not name. A single file is a merge's if it has the names and shapes of the new
 * one.
 */
async function foreignFiles(
  { out, isFile }: OutputPlace,
  tensors: ReadonlyMap<string, readonly number[]> | undefined,
): Promise<string[]> {
  if (isFile) return (await looksMerged(out, tensors)) ? [] : [path.basename(out)]
  const { files } = await readRecord(out)
  const own = new Set<unknown>([RECORD_FILE, ...(Array.isArray(files) ? files : [])])
  return (await filesIn(out)).filter((name) => !own.has(name))
}

/** The record that a merge left about its output; empty where none did. */
export async function readRecord(out: string): Promise<{ plan?: unknown; files?: unknown }> {
  return (await readLeniently(new NodeDirectory(out), RECORD_FILE)) ?? {}
}

export async function filesIn(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  const files = entries.filter((entry) => !entry.isDirectory())
  return files.map((entry) => path.relative(folder, path.join(entry.parentPath, entry.name)).replaceAll('\\', '/'))
}

async function looksMerged(out: string, tensors: ReadonlyMap<string, readonly number[]> | undefined): Promise<boolean> {
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

/**
 * Refuses links in a base's folder that lead out of it: people upload the copies. In the Hub's cache all files are
 * links to blobs beside the folder.
 */
export async function refuseForeignLinks(folder: string, copied: readonly string[]): Promise<void> {
  const real = await realpath(folder)
  const present = (await readdir(real)).filter((name) => isCompanion(name) || isCompanionFolder(name))
  for (const name of new Set([...present, ...copied])) {
    const where = path.join(folder, name)
    const target = await realpath(path.join(real, name)).catch(() => undefined)
    if (target === undefined) {
      throw new FileError({
        where,
        what: 'this link points to a place that does not exist',
        expected: 'a file that goes along with the weights',
        hint: 'Download it again, or remove the link',
      })
    }
    if (isInside(target, real) || isInside(target, blobsOf(real))) continue
    throw new FileError({
      where,
      what: 'a link that leads out of the folder of the base',
      got: target,
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
