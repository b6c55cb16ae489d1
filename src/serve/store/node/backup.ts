// Backups of a store: a folder with the database, the bytes, and a list of digests. Bytes that never change are links.

import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { copyFile, link, mkdir, readdir, readFile, stat, statfs, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { codeOf, removeWritten, WholeOutput, withFileErrors } from '../../../api/node/parts.js'
import { FileError } from '../../../core/base/errors.js'
import { isObject, jsonIn } from '../../../core/base/options.js'
import type { Store } from '../store.js'
import { DATABASE, libsql } from './open.js'
import { PRIVATE, PRIVATE_FOLDER } from './private.js'
import { isDamage, vacuumInto } from './sqlite.js'

export const BACKUPS = 'backups'
const DIGESTS = 'digests.json'
const KEPT = 3
const DAY_MS = 86_400_000

/** Files that are replaced and never changed. */
const FIXED = /(^|\/)(content\.jsonl|training\.jsonl|validation\.jsonl|[^/]+\.safetensors)$/

/** The backups that a server has made, the oldest first. */
export async function backupsIn(folder: string): Promise<string[]> {
  const names = await readdir(path.join(folder, BACKUPS)).catch((): string[] => [])
  return names
    .filter((name) => /^\d{4}-\d\d-\d\dT[\d-]+Z$/.test(name))
    .sort()
    .map((name) => path.join(folder, BACKUPS, name))
}

/** Says which backup is the last. */
export function adviceOn(backups: readonly string[]): string {
  const last = backups.at(-1)
  return last === undefined ? 'there is no backup of it' : `the last backup is ${path.basename(last)}`
}

/** Makes a backup if the last one is a day old, and if there is room for two more. */
export async function backUpDaily(store: Store, now = Date.now()): Promise<void> {
  const all = await backupsIn(store.folder)
  const last = all.at(-1)
  if (last !== undefined && now - (await stat(last)).mtimeMs < DAY_MS) return
  const { size } = await stat(path.join(store.folder, DATABASE))
  const { bavail, bsize } = await statfs(store.folder)
  if (bavail * bsize < 2 * size) {
    const hint = 'Make room, or turn backups off with --no-backup'
    throw new FileError({ where: store.folder, what: 'there is no room for a backup', hint })
  }
  await mkdir(path.join(store.folder, BACKUPS), PRIVATE_FOLDER)
  const name = new Date(now).toISOString().replaceAll(/[:.]/g, '-')
  await backUp(store.folder, path.join(store.folder, BACKUPS, name)).catch((error) => {
    if (isDamage(codeOf(error))) store.stop(`its database is damaged; ${adviceOn(all)}`)
    throw error
  })
  for (const old of all.slice(0, Math.max(0, all.length + 1 - KEPT))) await removeBackup(old)
}

async function removeBackup(folder: string): Promise<void> {
  const digests = await readDigests(folder)
  const places = new Set(['', ...Object.keys(digests).map((file) => path.dirname(file))])
  const names = new Set([DIGESTS, ...Object.keys(digests).map((file) => path.basename(file))])
  const all = [...places].flatMap((place) => {
    const parts = place.split('/')
    return parts.map((_, i) => parts.slice(0, i + 1).join('/'))
  })
  // The innermost folders first.
  for (const place of [...new Set(all)].sort((a, b) => b.length - a.length)) {
    await removeWritten(path.join(folder, place), (name) => names.has(name))
  }
}

/** Copies a store, also beside its server, into a new folder that is whole or not there. */
export async function backUp(folder: string, to: string): Promise<{ files: number }> {
  await withFileErrors(folder, 'cannot be read', () => stat(path.join(folder, DATABASE)))
  const output = await WholeOutput.begin(to)
  try {
    await mkdir(output.made, PRIVATE_FOLDER)
    const database = path.join(output.made, DATABASE)
    // Rows first: a content is whole before its row is there.
    await vacuumInto(libsql(), path.join(folder, DATABASE), database)
    const digests: Record<string, string> = { [DATABASE]: await digestOf(database) }
    for (const file of await bytesIn(folder)) {
      const copy = path.join(output.made, file)
      await mkdir(path.dirname(copy), PRIVATE_FOLDER)
      // A file may have been deleted meanwhile: its row goes when the backup is restored.
      if (await linkOrCopy(path.join(folder, file), copy)) digests[file] = await digestOf(copy)
    }
    await writeFile(path.join(output.made, DIGESTS), JSON.stringify(digests), PRIVATE)
    await output.publish()
    return { files: Object.keys(digests).length }
  } finally {
    await output.close()
  }
}

/** Makes the folder of a server from a backup, whose bytes are checked. The folder is new. */
export async function restore(from: string, to: string): Promise<{ files: number }> {
  const digests = await readDigests(from)
  const output = await WholeOutput.begin(to)
  try {
    await mkdir(output.made, PRIVATE_FOLDER)
    for (const kind of ['files', 'jobs']) await mkdir(path.join(output.made, kind), PRIVATE_FOLDER)
    for (const [file, digest] of Object.entries(digests)) {
      const copy = path.join(output.made, file)
      if (path.relative(output.made, copy).startsWith('..')) throw notABackup(from)
      await mkdir(path.dirname(copy), PRIVATE_FOLDER)
      const source = path.join(from, file)
      await withFileErrors(source, 'cannot be read', () => copyFile(source, copy))
      const got = await digestOf(copy)
      if (got !== digest) throw new FileError({ where: source, what: 'damaged', expected: `SHA-256 ${digest}`, got })
    }
    await output.publish()
    return { files: Object.keys(digests).length }
  } finally {
    await output.close()
  }
}

async function readDigests(folder: string): Promise<Record<string, string>> {
  const file = path.join(folder, DIGESTS)
  const digests = jsonIn(await withFileErrors(file, 'cannot be read', () => readFile(file, 'utf8')))
  if (isObject(digests) && typeof digests[DATABASE] === 'string') return digests as Record<string, string>
  throw notABackup(folder)
}

const notABackup = (where: string) => new FileError({ where, what: `not a backup: its ${DIGESTS} is damaged` })

/** The files of uploads and jobs, but for logs and what is being written. */
async function bytesIn(folder: string): Promise<string[]> {
  const found: string[] = []
  for (const kind of ['files', 'jobs']) {
    const entries = await readdir(path.join(folder, kind), { recursive: true, withFileTypes: true })
    for (const entry of entries) {
      const file = path.relative(folder, path.join(entry.parentPath, entry.name)).replaceAll(path.sep, '/')
      const isHidden = file.split('/').some((part) => part.startsWith('.') || part.endsWith('.tmp'))
      if (entry.isFile() && !isHidden && entry.name !== 'log.txt') found.push(file)
    }
  }
  return found.sort()
}

/** Returns false if the file is gone. */
async function linkOrCopy(from: string, to: string): Promise<boolean> {
  try {
    const isLinked =
      FIXED.test(from.replaceAll(path.sep, '/')) &&
      (await link(from, to).then(
        () => true,
        () => false,
      ))
    if (!isLinked) await copyFile(from, to)
    return true
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return false
    throw error
  }
}

async function digestOf(file: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const piece of createReadStream(file)) hash.update(piece)
  return hash.digest('hex')
}
