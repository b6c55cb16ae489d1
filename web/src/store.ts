// The browser's file system for this page (OPFS): opens folders, and keeps "My adapters" in one of them.

import { type Directory, HandleDirectory, type LoraAdapter, loadAdapter, MemoryDirectory, saveAdapter } from 'lowrank'
import type { Job } from './runs.js'

const ADAPTERS = 'lowrank-adapters'
const ABOUT = 'about.json'

export interface KeptAdapter {
  readonly name: string
  /** The run that made the adapter; undefined if the adapter was opened. */
  readonly job?: Job | undefined
  /** What the run that made it learned, in words. */
  readonly gain?: string | undefined
  /** The address of the adapter, if it was opened from a link. */
  readonly link?: string | undefined
  readonly bytes: number
  readonly modelName: string
}

/**
 * Opens a folder of this page. Returns undefined if the browser keeps no files, as in some private windows and in
 * Safari before 26.
 */
export async function folderAt(name: string, create = true): Promise<FileSystemDirectoryHandle | undefined> {
  if (globalThis.FileSystemFileHandle?.prototype.createWritable === undefined) return undefined
  const root = await navigator.storage?.getDirectory().catch(() => undefined)
  const folder = root?.getDirectoryHandle(name, { create })
  return create ? folder : folder?.catch(() => undefined)
}

export async function removeFolder(name: string): Promise<void> {
  const root = await navigator.storage.getDirectory().catch(() => undefined)
  await root?.removeEntry(name, { recursive: true }).catch(() => {})
}

export async function write(folder: FileSystemDirectoryHandle, name: string, content: string | Blob): Promise<void> {
  const writable = await (await folder.getFileHandle(name, { create: true })).createWritable()
  await writable.write(content)
  await writable.close()
}

export const read = async (folder: FileSystemDirectoryHandle, name: string): Promise<File> =>
  (await folder.getFileHandle(name)).getFile()

async function bytesIn(folder: Directory, name: string): Promise<Uint8Array> {
  const file = await folder.open(name)
  return file.read(0, file.byteLength).finally(() => file.close())
}

export const textIn = async (folder: Directory, name: string): Promise<string> =>
  new TextDecoder().decode(await bytesIn(folder, name))

export async function filesOf(folder: Directory): Promise<MemoryDirectory> {
  const copy = new MemoryDirectory()
  for (const name of await folder.list()) {
    copy.files.set(name, await bytesIn(folder, name))
  }
  return copy
}

/** True if the error, or its cause, says that the browser's storage is full. */
export function isFull(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause)
    if (cause.name === 'QuotaExceededError') return true
  return false
}

/** Keeps an adapter under an unused name, together with the run that made it. */
export async function keepAdapter(
  name: string,
  adapter: LoraAdapter,
  about: Omit<KeptAdapter, 'name' | 'bytes'>,
): Promise<void> {
  const folder = await folderAt(ADAPTERS)
  if (folder === undefined) return
  const adapterFolder = await folder.getDirectoryHandle(name, { create: true })
  try {
    // Files that a closed tab left there belong to this page, and to no adapter that it lists.
    await saveAdapter(adapter, new HandleDirectory(adapterFolder), { overwrite: true })
    // This file is written last, to mark the folder as complete.
    await write(adapterFolder, ABOUT, JSON.stringify(about))
    // The browser may then not clear the adapters by itself when the disk is full.
    void navigator.storage.persist?.()
  } catch (error) {
    await folder.removeEntry(name, { recursive: true }).catch(() => {})
    throw error
  }
}

/** Lists the kept adapters. A folder without its last file is left from a tab that closed, and is skipped. */
export async function keptAdapters(): Promise<KeptAdapter[]> {
  const folder = await folderAt(ADAPTERS, false)
  const kept: KeptAdapter[] = []
  for await (const handle of folder?.values() ?? []) {
    if (handle.kind !== 'directory') continue
    try {
      const about = JSON.parse(await (await read(handle, ABOUT)).text())
      let bytes = 0
      for await (const file of handle.values()) if (file.kind === 'file') bytes += (await file.getFile()).size
      kept.push({ ...about, name: handle.name, bytes })
    } catch {}
  }
  return kept.sort((a, b) => a.name.localeCompare(b.name))
}

async function folderOf(name: string): Promise<HandleDirectory> {
  const folder = await folderAt(ADAPTERS)
  if (folder === undefined) throw new Error('This browser keeps no files now.')
  return new HandleDirectory(await folder.getDirectoryHandle(name), name)
}

export const openKept = async (name: string): Promise<LoraAdapter> => loadAdapter(await folderOf(name))

export async function removeKept(name: string): Promise<void> {
  await (await folderAt(ADAPTERS))?.removeEntry(name, { recursive: true })
}

export async function renameKept(from: string, to: string): Promise<void> {
  await keepAdapter(to, await openKept(from), JSON.parse(await textIn(await folderOf(from), ABOUT)))
  await removeKept(from)
}

export async function keptFiles(names: readonly string[]): Promise<Record<string, Uint8Array>> {
  const all: Record<string, Uint8Array> = {}
  for (const name of names) {
    for (const [path, bytes] of (await filesOf(await folderOf(name))).files)
      if (path !== ABOUT) all[`${name}/${path}`] = bytes
  }
  return all
}
