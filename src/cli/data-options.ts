// Options of commands that read records: which files, under which names their fields are, and how chats become text.

import { readFile } from 'node:fs/promises'
import { FileError } from '../index.js'
import { decimal, type Option, text, UsageError } from './options.js'

const FILES = 'FILE|DIR'

/** The options, by the names that train() has for them. `chatTemplate` is a file here: see {@link readChatTemplate}. */
export const DATA_OPTIONS = {
  data: {
    placeholder: FILES,
    about: 'training data: .jsonl, .json, .csv, .tsv, .parquet or .txt, or a folder of such files',
    isRequired: true,
    isRepeatable: true,
    read: (occurrences) => occurrences.map(({ value }) => value),
  } satisfies Option<string[]>,
  evalData: {
    placeholder: FILES,
    about: 'evaluation data: lowrank measures the loss on it before and after training',
    isRepeatable: true,
    read: (occurrences) => (occurrences.length === 0 ? undefined : occurrences.map(({ value }) => value)),
  } satisfies Option<string[] | undefined>,
  evalSplit: decimal(
    'part of --data to use for evaluation, such as 0.1 for 10 %; lowrank does not train on these records',
  ),
  columns: {
    placeholder: 'a=b,…',
    about: 'names of the fields in your data, as LOWRANK_NAME=YOUR_NAME, such as prompt=question,completion=answer',
    read: (occurrences) => occurrences.map(({ value }) => readColumns(value)).at(-1),
  } satisfies Option<Record<string, string> | undefined>,
  chatTemplate: text('FILE', 'file with a chat template (Jinja) to use instead of the model’s own'),
  chatTemplateArgs: {
    placeholder: 'JSON',
    about: 'variables for the chat template, such as \'{"enable_thinking": false}\'',
    read: (occurrences) => occurrences.map(({ value }) => readArgs(value)).at(-1),
  } satisfies Option<Record<string, unknown> | undefined>,
}

function readColumns(value: string): Record<string, string> {
  const pairs = value.split(',').map((pair) => pair.split('=').map((name) => name.trim()))
  if (pairs.every((pair) => pair.length === 2 && !pair.includes(''))) return Object.fromEntries(pairs)
  throw new UsageError(`--columns takes names such as prompt=question,completion=answer; got '${value}'`)
}

function readArgs(value: string): Record<string, unknown> {
  try {
    const args: unknown = JSON.parse(value)
    if (typeof args === 'object' && args !== null && !Array.isArray(args)) return args as Record<string, unknown>
  } catch {
    // Told below.
  }
  throw new UsageError(`--chat-template-args takes a JSON object, such as {"enable_thinking": false}; got '${value}'`)
}

/** The text of the template that was named. Throws FileError when it cannot be read. */
export async function readChatTemplate(file: string | undefined): Promise<string | undefined> {
  return file === undefined ? undefined : readTextFile(file)
}

/** A file that an option names, as text. Throws FileError when it cannot be read. */
export async function readTextFile(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8')
  } catch (cause) {
    const isMissing = (cause as NodeJS.ErrnoException).code === 'ENOENT'
    throw new FileError({
      where: file,
      what: isMissing ? 'no such file' : `cannot be read (${(cause as Error).message})`,
      cause,
    })
  }
}
