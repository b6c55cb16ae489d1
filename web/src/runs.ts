// Keeps the current run of the page in the browser's file system, so that a reload does not lose it.

import { type Directory, HandleDirectory, MemoryDirectory, type StepEvent, type TrainOptions } from 'lowrank'
import type { Picture } from './data.js'
import type { ModelChoice } from './models.js'
import { folderAt, read, removeFolder, textIn, write } from './store.js'

export interface Job {
  readonly name: string
  readonly choice: ModelChoice
  readonly modelName: string
  /** The name of the data file. Its extension tells the format. */
  readonly dataName: string
  readonly task: TrainOptions['task']
  /** The texts that an adapter for search can find; empty for other adapters. */
  readonly texts: readonly string[]
  readonly settings: {
    readonly maxSteps: number
    readonly learningRate: number
    readonly batchSize: number
    readonly maxLength: number
    readonly rank: number
  }
}

export interface UnfinishedRun {
  readonly job: Job
  readonly folder: Directory
  readonly data: Blob
  readonly pictures: readonly Picture[]
}

const FOLDER = 'lowrank-run'
const JOB = 'job.json'
const DATA = 'data'
const PICTURES = 'pictures'
/** The file with the labels of the pictures. The picture files only have numbers. */
const LABELS = 'labels.json'

/**
 * Starts a new run, and removes the files of an earlier run. If the browser keeps no files, the folder is in memory.
 */
export async function beginRun(job: Job, data: Blob, pictures: readonly Picture[]): Promise<Directory> {
  await endRun()
  const folder = await folderAt(FOLDER)
  if (folder === undefined) return new MemoryDirectory()
  const kept = await folder.getDirectoryHandle(PICTURES, { create: true })
  for (const [i, { file }] of pictures.entries()) await write(kept, String(i), file)
  await write(kept, LABELS, JSON.stringify(pictures.map(({ label }) => label)))
  await write(folder, DATA, data)
  await write(folder, JOB, JSON.stringify(job))
  return new HandleDirectory(await folder.getDirectoryHandle('adapter', { create: true }))
}

export async function unfinishedRun(): Promise<UnfinishedRun | undefined> {
  try {
    const folder = await folderAt(FOLDER, false)
    if (folder === undefined) return undefined
    const job: Job = JSON.parse(await (await read(folder, JOB)).text())
    const kept = await folder.getDirectoryHandle(PICTURES)
    const labels: string[] = JSON.parse(await (await read(kept, LABELS)).text())
    const pictures = await Promise.all(labels.map(async (label, i) => ({ label, file: await read(kept, String(i)) })))
    const data = await read(folder, DATA)
    return { job, data, folder: new HandleDirectory(await folder.getDirectoryHandle('adapter')), pictures }
  } catch {
    return undefined
  }
}

export async function savedSteps({ folder }: Pick<UnfinishedRun, 'folder'>): Promise<Omit<StepEvent, 'totalSteps'>[]> {
  if (!(await folder.has('metrics.jsonl'))) return []
  const text = await textIn(folder, 'metrics.jsonl')
  return text.split('\n').flatMap((line) => (line === '' ? [] : [JSON.parse(line)]))
}

export const endRun = (): Promise<void> => removeFolder(FOLDER)

let release: (() => void) | undefined

/** Takes the run, and keeps it until it is released or the tab closes. Returns false if another tab has it. */
export function takeRun(): Promise<boolean> {
  // Only pages with https have locks.
  if (release !== undefined || !('locks' in navigator)) return Promise.resolve(true)
  return new Promise((resolve) => {
    void navigator.locks.request(FOLDER, { ifAvailable: true }, (lock) => {
      resolve(lock !== null)
      if (lock === null) return
      return new Promise<void>((leave) => {
        release = leave
      })
    })
  })
}

export function leaveRun(): void {
  release?.()
  release = undefined
}
