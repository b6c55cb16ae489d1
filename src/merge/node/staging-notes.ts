// Folders of unfinished output: what they are called, the notes in them, and what to say when another merge is there.

import { readFile, rename, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { FileError } from '../../base/errors.js'
import type { OtherOwner } from '../../io/node/owners.js'

/** The folder of notes in one of unfinished output. */
export const NOTES_FOLDER = '.merge'
/** In it: which plan they are of. */
export const PLAN_FILE = 'plan.json'

/** What the folders of unfinished output are called, up to their ID. */
export function partialPrefix(out: string): string {
  return `${out}.partial-`
}

/** What the folders of outputs that are being replaced are called, up to their ID. */
export function oldPrefix(out: string): string {
  return `${out}.old-`
}

/** Whether something of a plan may be finished there. */
export async function holdsPlan(folder: string): Promise<boolean> {
  const note = await readNote(folder, PLAN_FILE)
  return typeof note?.plan === 'string' && note.plan !== ''
}

export function busyError(out: string, { host, process: pid }: OtherOwner): FileError {
  return new FileError({
    where: out,
    what: `another merge is making it: process ${pid} on ${host}`,
    hint: 'Wait until that one ends, or choose another place',
  })
}

export function takenError(where: string, cause?: unknown): FileError {
  return new FileError({
    where,
    what: 'another merge has taken over the unfinished output',
    hint: 'Run one merge at a time for an output',
    cause,
  })
}

/** Whether a note's file is the shard, or one made for it. */
export function isNameOf(file: string, shard: string): boolean {
  return file === shard || (file.startsWith(`${shard}.`) && /^[0-9a-f]{12}$/.test(file.slice(shard.length + 1)))
}

/** Undefined for one that is not there, or damaged. */
export async function readNote(folder: string, name: string): Promise<Record<string, unknown> | undefined> {
  try {
    return JSON.parse(await readFile(path.join(folder, NOTES_FOLDER, name), 'utf8')) ?? undefined
  } catch {
    return undefined
  }
}

/**
 * By renaming, so that a note is whole or absent, and jobs that share the folder do not meet half of one.
 *
 * @param token of this process alone
 */
export async function writeNote(folder: string, name: string, note: object, token: string): Promise<void> {
  const target = path.join(folder, NOTES_FOLDER, name)
  const temporary = `${target}.${token}.tmp`
  await writeFile(temporary, JSON.stringify(note), { flush: true } as object)
  await rename(temporary, target)
}
