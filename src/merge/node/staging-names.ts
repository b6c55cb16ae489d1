// What the folders of unfinished output are called, what is in them, and what to say when another merge is there.

import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { FileError } from '../../base/errors.js'
import type { OtherOwner } from './owners.js'

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
  try {
    const note = JSON.parse(await readFile(path.join(folder, NOTES_FOLDER, PLAN_FILE), 'utf8'))
    return typeof note?.plan === 'string' && note.plan !== ''
  } catch {
    return false
  }
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
