// Functions for Node that the command line needs in addition to the public API.

import { existsSync } from 'node:fs'
import { mkdtemp, readFile, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { type Directory, requireEmpty, withSource, writeFile } from '../../core/base/bytes.js'
import { DataError, FileError, FormatError, messageOf } from '../../core/base/errors.js'
import { isObject } from '../../core/base/options.js'
import { parseJson } from '../../files/data/json.js'
import { readRows } from '../../files/data/read-rows.js'
import { type ColumnNames, type Row, renameColumns } from '../../files/data/row.js'
import { codeOf, REASONS, withFileErrors } from '../../files/io/node/errors.js'
import { NodeDirectory } from '../../files/io/node/files.js'
import { removeWritten, WholeOutput } from '../../files/io/node/whole-output.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { saveAdapter } from '../../lora/peft/adapter-folder.js'
import type { MessageOfParts } from '../../model/text/chat.js'
import { isTemplate } from '../../model/text/chat-template.js'
import { compileChatTemplate } from '../../model/text/compiled-template.js'
import { DEFAULT_TEMPLATE } from '../../model/text/template.js'
import { requireProviders } from '../../onnx/runtime/load.js'
import { resolveNodeRuntime } from '../../onnx/runtime/node/runtime.js'
import { promptOf } from '../../train/loop/prompt-rows.js'
import { openData } from '../sources.js'

export { hasStuckWorker } from '../../onnx/runtime/node/worker.js'

export interface TextRow {
  readonly text: string
  readonly textPair?: string
  readonly record: Readonly<Record<string, unknown>>
  readonly where: string
}

export async function* rowsOfInput(file: string, columns: ColumnNames | undefined): AsyncGenerator<TextRow> {
  for await (const { row, fields, where } of openRows(file, columns)) {
    const { text, textPair } = (isObject(fields) ? fields : {}) as Partial<TextRow>
    if (typeof text !== 'string') {
      const hint = 'Name your field with `columns: { text: … }`'
      throw new DataError({ where, what: 'no text', expected: 'a field "text"', hint })
    }
    yield { text, textPair, record: row as TextRow['record'], where }
  }
}

/** Chats that wait for an answer, from the records that training from rewards reads. */
export async function* questionsOfInput(
  file: string,
  columns: ColumnNames | undefined,
): AsyncGenerator<readonly MessageOfParts[]> {
  for await (const { fields, where } of openRows(file, columns)) {
    const { text, messages = [{ role: 'user', content: text }] } = promptOf(fields, where)
    yield messages
  }
}

async function* openRows(
  file: string,
  columns: ColumnNames | undefined,
): AsyncGenerator<Row & { readonly fields: unknown }> {
  const closers: (() => Promise<void>)[] = []
  const rows =
    file === '-' ? lines() : readRows(await openData(file, 'data', (opened) => closers.push(() => opened.close())))
  try {
    for await (const row of rows)
      yield { ...row, fields: columns === undefined ? row.row : renameColumns(row, columns).row }
  } finally {
    for (const close of closers) await close()
  }
}

async function* lines(): AsyncGenerator<Row> {
  let number = 0
  for await (const line of createInterface({ input: process.stdin })) {
    number++
    const where = `standard input, line ${number}`
    if (line.trim() === '') continue
    yield { row: line.startsWith('{') ? parseJson(line, where) : { text: line }, where }
  }
}

export function readTextFile(file: string): Promise<string> {
  return withFileErrors(file, 'cannot be read', () => readFile(file, 'utf8'))
}

/**
 * Reads a chat template. A word that is no file stays: it can be the name of a template of the model. Throws
 * FormatError if the file is not valid, so that this shows before a model is loaded.
 */
export async function readChatTemplate(file: string | undefined): Promise<string | undefined> {
  if (file === undefined || (/^[\w-]+$/.test(file) && !existsSync(file))) return file
  const text = await readTextFile(file)
  if (!isTemplate(text)) {
    throw new FormatError({ where: file, what: 'not a chat template', expected: 'Jinja, with {{ or {%' })
  }
  await compileChatTemplate({ name: file, texts: new Map([[DEFAULT_TEMPLATE, text]]), specialTokens: {} })
  return text
}

/** Reads the start of a file. Returns undefined if the file does not exist. */
export async function startOfFile(file: string, most: number): Promise<string | undefined> {
  const [folder, name] = [new NodeDirectory(path.dirname(file)), path.basename(file)]
  if (!(await folder.has(name))) return undefined
  const start = await withSource(folder, name, (source) => source.read(0, Math.min(most, source.byteLength)))
  return new TextDecoder().decode(start)
}

/**
 * Writes a file that appears complete or not at all. If the path is a device or a pipe, the content is written into it.
 *
 * @param isNew whether it is an error if the file exists
 */
export function writeWhole(file: string, content: string, isNew: boolean): Promise<void> {
  return writeFile(new NodeDirectory(path.dirname(file)), path.basename(file), content, isNew)
}

/** Throws the same errors as opening a session on these devices, but before anything is read. */
export function requireDevices(names: readonly string[]): Promise<void> {
  return requireProviders(resolveNodeRuntime(), names)
}

/** Throws FileError with the option's name if a file or folder cannot be made at a path. Leaves nothing there. */
export async function requireWritable(target: string, where: string): Promise<void> {
  const wanted = path.resolve(target)
  let found = wanted
  while (!existsSync(found)) found = path.dirname(found)
  const fail = (what: string, cause?: unknown): never => {
    throw new FileError({ where, what, got: target, hint: 'Name another place', cause })
  }
  const status = await withFileErrors(found, 'cannot be read', () => stat(found))
  if (!status.isDirectory()) return found === wanted ? undefined : fail(`${found} is a file, not a folder`)
  try {
    const output = await WholeOutput.begin(path.join(found, path.basename(wanted)))
    await output.close()
  } catch (error) {
    const { cause } = error as FileError
    fail(`nothing can be written in ${found}: ${REASONS[codeOf(cause) ?? ''] ?? messageOf(cause)}`, cause)
  }
}

/**
 * Saves an adapter that its own place does not take, in a new folder that only this user reads: beside that place,
 * in the current folder, or in the home folder. Returns the folder, or undefined if none takes it.
 */
export async function rescueAdapter(adapter: LoraAdapter, out: string): Promise<string | undefined> {
  for (const place of [path.dirname(path.resolve(out)), process.cwd(), homedir()]) {
    const folder = await mkdtemp(path.join(place, `${path.basename(out)}-`)).catch(() => undefined)
    if (folder === undefined) continue
    const isSaved = await saveAdapter(adapter, new NodeDirectory(folder)).then(
      () => true,
      () => false,
    )
    if (isSaved) return folder
    await removeWritten(folder, () => true).catch(() => {})
  }
  return undefined
}

class NewFolder extends NodeDirectory {
  override together<T>(write: (folder: Directory) => Promise<T>): Promise<T> {
    return super.together(write, true)
  }
}

/** Returns a folder for a result. Throws FileError if it is not empty, now or when the result is complete. */
export async function newFolder(name: string): Promise<Directory> {
  const folder = new NewFolder(name)
  await requireEmpty(folder)
  return folder
}
