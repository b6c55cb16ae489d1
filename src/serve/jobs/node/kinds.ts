// What a server keeps in its folder of training: how entries are named, what their records have, and the files beside
// them. Whatever has another name is not the server's: it stays as it is.

import { readdir } from 'node:fs/promises'
import { isUnfinishedWork, withFileErrors } from '../../../api/node/parts.js'
import {
  COUNT,
  isObject,
  kind,
  listOf,
  OBJECT,
  type OptionTable,
  oneOf,
  ranged,
  STRING,
} from '../../../core/base/options.js'

export interface EntryKind {
  /** The word for an entry in error messages. */
  readonly noun: string
  readonly id: RegExp
  readonly record: OptionTable
  /** Files that the server writes before the record of an entry is there, or that it removes after the record. */
  readonly files: RegExp
}

export type KindName = 'files' | 'jobs' | 'completions'

const SIZE = ranged('an integer of at least 0')
const ANSWER = kind('a chat completion', (value) => {
  const [choice] = isObject(value) && Array.isArray(value.choices) ? value.choices : []
  return isObject(choice) && isObject(choice.message)
})

export const KINDS: Readonly<Record<KindName, EntryKind>> = {
  files: {
    noun: 'file',
    id: /^file-[0-9a-f]{24}$/,
    record: { bytes: SIZE, filename: STRING, purpose: STRING },
    files: /^content\.jsonl$/,
  },
  jobs: {
    noun: 'job',
    id: /^ftjob-[0-9a-f]{24}$/,
    record: {
      ...{ model: STRING, base: STRING, suffix: STRING, training_file: STRING, lowrank: OBJECT, turns: SIZE },
      ...{ hyperparameters: OBJECT, checkpointEvery: COUNT, checkpoints: listOf(OBJECT), deleted: listOf(STRING) },
      method: oneOf('supervised', 'dpo', 'reinforcement'),
      status: oneOf('validating_files', 'queued', 'running', 'succeeded', 'failed', 'cancelled'),
    },
    files: /^((training|validation|events)\.jsonl|(grader|settings)\.json)$/,
  },
  completions: {
    noun: 'stored completion',
    id: /^chatcmpl-[\w-]+$/,
    record: { messages: listOf(OBJECT), answer: ANSWER, metadata: OBJECT },
    files: /^$/,
  },
}

/** The names in a folder, but for those of the file system and hidden ones. */
export async function namesOf(folder: string): Promise<string[]> {
  const names = await withFileErrors(folder, 'cannot be read', () => readdir(folder))
  return names.filter((name) => !name.startsWith('.') && name !== 'lost+found').sort()
}

/** True for a folder without a record in which nothing is that the server does not write before the record. */
export async function isUnfinished(folder: string, { files }: EntryKind): Promise<boolean> {
  const entries = await withFileErrors(folder, 'cannot be read', () => readdir(folder, { withFileTypes: true }))
  return entries.every((entry) => isUnfinishedWork(entry.name) || (entry.isFile() && files.test(entry.name)))
}
