// The run that goes on in this page, kept in the browser's own file system so that a reload does not lose it.

import { type Directory, HandleDirectory, MemoryDirectory, type TrainOptions } from 'lowrank'
import type { Picture } from './data.js'
import type { ModelChoice } from './models.js'

/** The settings and data by which a run can be continued. */
export interface Job {
  readonly name: string
  readonly choice: ModelChoice
  readonly modelName: string
  readonly data: { readonly name: string; readonly text: string }
  readonly task: TrainOptions['task']
  readonly settings: {
    readonly maxSteps: number
    readonly learningRate: number
    readonly batchSize: number
    readonly maxLength: number
    readonly rank: number
  }
}

/** A run that can go on. */
export interface UnfinishedRun {
  readonly job: Job
  readonly folder: Directory
  readonly pictures: readonly Picture[]
}

const FOLDER = 'lowrank-run'
const JOB = 'job.json'
const PICTURES = 'pictures'
/** Labels of the pictures, whose files are numbered. */
const LABELS = 'labels.json'

async function root(): Promise<FileSystemDirectoryHandle | undefined> {
  try {
    return await navigator.storage.getDirectory()
  } catch {
    // Private windows of some browsers have no such file system.
    return undefined
  }
}

/** Starts a new run: what an earlier one left is removed. The folder is in memory if the browser keeps no files. */
export async function beginRun(job: Job, pictures: readonly Picture[]): Promise<Directory> {
  const handle = await root()
  if (handle === undefined) return new MemoryDirectory()
  await handle.removeEntry(FOLDER, { recursive: true }).catch(() => {})
  const folder = await handle.getDirectoryHandle(FOLDER, { create: true })
  const kept = await folder.getDirectoryHandle(PICTURES, { create: true })
  for (const [i, { file }] of pictures.entries()) await write(kept, String(i), file)
  await write(kept, LABELS, JSON.stringify(pictures.map(({ label }) => label)))
  await write(folder, JOB, JSON.stringify(job))
  return new HandleDirectory(await folder.getDirectoryHandle('adapter', { create: true }))
}

async function write(folder: FileSystemDirectoryHandle, name: string, content: string | Blob): Promise<void> {
  const file = await folder.getFileHandle(name, { create: true })
  const writable = await file.createWritable()
  await writable.write(content)
  await writable.close()
}

async function read(folder: FileSystemDirectoryHandle, name: string): Promise<File> {
  return (await folder.getFileHandle(name)).getFile()
}

/** The run that an earlier visit did not finish. */
export async function unfinishedRun(): Promise<UnfinishedRun | undefined> {
  try {
    const folder = await (await root())?.getDirectoryHandle(FOLDER)
    if (folder === undefined) return undefined
    const job: Job = JSON.parse(await (await read(folder, JOB)).text())
    const kept = await folder.getDirectoryHandle(PICTURES)
    const labels: string[] = JSON.parse(await (await read(kept, LABELS)).text())
    const pictures = await Promise.all(labels.map(async (label, i) => ({ label, file: await read(kept, String(i)) })))
    return { job, folder: new HandleDirectory(await folder.getDirectoryHandle('adapter')), pictures }
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
