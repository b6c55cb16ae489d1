// Finds and copies the files of a base's folder that go along with a result, from any folder to any folder.

import { type Directory, readAll, readJson, writeFile, writeThrough } from '../../base/bytes.js'
import { LowrankError } from '../../base/errors.js'
import { TEMPLATE_FILE } from '../../peft/file-names.js'
import {
  importedModules,
  isCompanion,
  isCompanionFolder,
  MODULE_HOLDERS,
  namedModules,
  RECORD_FILE,
} from '../plan/companions.js'

const COPY_BYTES = 1 << 20
/** Python files that models bring along have kilobytes. */
const MAX_MODULE_BYTES = 1 << 24

/** What of a base's folder goes along. */
export interface Companions {
  /** Names inside the folder. */
  readonly copied: readonly string[]
  /** Names of the other files, and of folders with a `/` at the end. */
  readonly leftOut: readonly string[]
  /** Of the copied files. */
  readonly bytes: number
  /** The result's chat template, where it is another than the base's. */
  readonly template: string | undefined
}

/** Of a result that is a file, or that is wanted without them. */
export const NO_COMPANIONS: Companions = { copied: [], leftOut: [], bytes: 0, template: undefined }

/**
 * Looks at the folder; nothing is copied.
 *
 * @param own files and folders (`onnx/`) that the result has a version of its own of
 * @param template the result's chat template, in place of the base's
 */
export async function findCompanions(
  base: Directory,
  own: ReadonlySet<string>,
  template?: string,
): Promise<Companions> {
  const files = await base.list()
  const modules = await modulesOf(base, new Set(files))
  const copied: string[] = []
  const leftOut: string[] = []
  for (const name of files) {
    if (own.has(name)) continue
    if (isCompanion(name) || modules.has(name)) copied.push(name)
    else if (!name.startsWith('.') && name !== RECORD_FILE) leftOut.push(name)
  }
  for (const folder of (await base.folders?.()) ?? []) {
    if (own.has(`${folder}/`) || folder.startsWith('.')) continue
    const inner = isCompanionFolder(folder) ? await filesIn(base, folder) : []
    const taken = inner.filter(isCompanion)
    if (taken.length === 0) leftOut.push(`${folder}/`)
    copied.push(...taken)
    leftOut.push(...(taken.length === 0 ? [] : inner.filter((name) => !isCompanion(name))))
  }
  if (template !== undefined && !copied.includes(TEMPLATE_FILE)) copied.push(TEMPLATE_FILE)
  let bytes = 0
  for (const name of copied) {
    const isNew = name === TEMPLATE_FILE && template !== undefined
    bytes += isNew ? new TextEncoder().encode(template).length : await lengthOf(base, name)
  }
  return { copied: copied.sort(), leftOut: leftOut.sort(), bytes, template }
}

/** Writes one of the files that go along. */
export async function writeCompanion(
  from: Directory,
  path: string,
  to: Directory,
  { template }: Companions,
): Promise<void> {
  if (path === TEMPLATE_FILE && template !== undefined) await writeFile(to, path, template)
  else await copyFile(from, path, to)
}

/** Copies one file, whole or not at all. */
async function copyFile(from: Directory, path: string, to: Directory): Promise<void> {
  const source = await from.open(path)
  try {
    await writeThrough(to, path, async (sink) => {
      for (let at = 0; at < source.byteLength; at += COPY_BYTES) {
        await sink.write(await source.read(at, Math.min(COPY_BYTES, source.byteLength - at)))
      }
    })
  } finally {
    await source.close()
  }
}

/** The Python files that the folder's configs name, with those that they import. */
async function modulesOf(base: Directory, files: ReadonlySet<string>): Promise<ReadonlySet<string>> {
  const result = new Set<string>()
  const visit = async (name: string): Promise<void> => {
    if (result.has(name) || !files.has(name)) return
    result.add(name)
    const source = await base.open(name)
    try {
      if (source.byteLength > MAX_MODULE_BYTES) return
      for (const other of importedModules(new TextDecoder().decode(await readAll(source)))) await visit(other)
    } finally {
      await source.close()
    }
  }
  for (const holder of MODULE_HOLDERS) {
    if (files.has(holder)) for (const name of namedModules(await readLeniently(base, holder))) await visit(name)
  }
  return result
}

/** Undefined for what is no JSON: it is copied as it is, and names nothing. */
async function readLeniently(base: Directory, name: string): Promise<unknown> {
  try {
    return await readJson(base, name)
  } catch (error) {
    if (error instanceof LowrankError && error.code === 'FORMAT') return undefined
    throw error
  }
}

/** With the folder's own name. */
async function filesIn(base: Directory, folder: string): Promise<string[]> {
  return (await base.list(folder)).map((name) => `${folder}/${name}`)
}

async function lengthOf(base: Directory, name: string): Promise<number> {
  const source = await base.open(name)
  await source.close()
  return source.byteLength
}
