// What commands ask of the places they write to themselves.

import { randomUUID } from 'node:crypto'
import { mkdir, readdir, rename, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { FileError } from '../index.js'

/** @throws FileError unless the folder is empty or not there yet */
export async function refuseFolder(folder: string): Promise<void> {
  const files = await readdir(folder).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') return []
    throw new FileError({ where: folder, what: `cannot be used: ${cause.message}`, cause })
  })
  if (files.length === 0) return
  throw new FileError({
    where: folder,
    what: 'exists already and is not empty',
    got: files.slice(0, 5).join(', '),
    hint: 'Choose another folder',
  })
}

/** Writes a file that appears complete or not at all. Throws FileError when it cannot be written. */
export async function writeWhole(file: string, content: string): Promise<void> {
  const unfinished = `${file}.${randomUUID()}.partial`
  try {
    await mkdir(path.dirname(file), { recursive: true })
    await writeFile(unfinished, content)
    await rename(unfinished, file)
  } catch (cause) {
    await rm(unfinished, { force: true })
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new FileError({ where: file, what: `cannot be written: ${reason}`, cause })
  }
}
