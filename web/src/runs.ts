// The run that goes on in this page, kept in the browser's own file system so that a reload does not lose it.

import { type Directory, HandleDirectory, MemoryDirectory } from 'lowrank'
import type { ModelChoice } from './models.js'

/** What a run needs to be continued. */
export interface Job {
  readonly name: string
  readonly choice: ModelChoice
  readonly modelName: string
  readonly data: { readonly name: string; readonly text: string }
  readonly settings: {
    readonly maxSteps: number
    readonly learningRate: number
    readonly batchSize: number
    readonly maxLength: number
    readonly rank: number
  }
}

const FOLDER = 'lowrank-run'
const JOB = 'job.json'

async function root(): Promise<FileSystemDirectoryHandle | undefined> {
  try {
    return await navigator.storage.getDirectory()
  } catch {
    // Private windows of some browsers have no such file system.
    return undefined
  }
}

/** Starts a new run: what an earlier one left is removed. The folder is in memory if the browser keeps no files. */
export async function beginRun(job: Job): Promise<Directory> {
  const handle = await root()
  if (handle === undefined) return new MemoryDirectory()
  await handle.removeEntry(FOLDER, { recursive: true }).catch(() => {})
  const folder = await handle.getDirectoryHandle(FOLDER, { create: true })
  const file = await folder.getFileHandle(JOB, { create: true })
  const writable = await file.createWritable()
  await writable.write(JSON.stringify(job))
  await writable.close()
  return new HandleDirectory(await folder.getDirectoryHandle('adapter', { create: true }))
}

/** The run that an earlier visit did not finish. */
export async function unfinishedRun(): Promise<{ job: Job; folder: Directory } | undefined> {
  try {
    const folder = await (await root())?.getDirectoryHandle(FOLDER)
    if (folder === undefined) return undefined
    const file = await (await folder.getFileHandle(JOB)).getFile()
    const job: Job = JSON.parse(await file.text())
    return { job, folder: new HandleDirectory(await folder.getDirectoryHandle('adapter')) }
  } catch {
    return undefined
  }
}

/** The files of a run, held by this page alone. */
export async function copyToMemory(folder: Directory): Promise<MemoryDirectory> {
  const copy = new MemoryDirectory()
  for (const name of await folder.list()) {
    const file = await folder.open(name)
    copy.files.set(name, await file.read(0, file.byteLength))
    await file.close()
  }
  return copy
}

/** Forgets the run. */
export async function endRun(): Promise<void> {
  await (await root())?.removeEntry(FOLDER, { recursive: true }).catch(() => {})
}
