// Counts of the labels and lengths of records, and facts about them for a run's page and model card.

import { isObject } from '../../core/base/options.js'
import { LABEL_NAMES } from '../../model/text/records.js'
import type { Examples, Task } from '../tasks/task.js'
import { writerOf } from './sources.js'

/** Characters of a prompt on a card. */
const MAX_PROMPT = 80
/** Fields that hold what a model is asked, as far as tasks have them. */
const ASKED = ['prompt', 'question', 'instruction', 'text', 'source', 'input', 'query', 'anchor'] as const

export class DataFacts {
  readonly #labels = new Map<string, number>()
  readonly #writers = new Map<string, number>()
  #prompt: string | undefined
  #ofEvaluation: string | undefined

  add(record: unknown, isEvaluation: boolean): void {
    if (!isObject(record)) return
    const writer = writerOf(record)
    if (writer !== undefined && !isEvaluation) countOne(this.#writers, writer, MAX_LABELS)
    if (isEvaluation) this.#ofEvaluation ??= promptOf(record)
    else {
      this.#prompt ??= promptOf(record)
      for (const label of labelsOf(record)) countOne(this.#labels, label, MAX_LABELS)
    }
  }

  /** The beginning of the first evaluation record that has a text, else of the first such training record. */
  get prompt(): string | undefined {
    return this.#ofEvaluation ?? this.#prompt
  }

  /** The providers' models that wrote records, with the number of their records. */
  get writers(): Readonly<Record<string, number>> {
    return mostFrequent(this.#writers)
  }

  /** How often each label is there, the most frequent first. */
  get labels(): Readonly<Record<string, number>> {
    return mostFrequent(this.#labels)
  }
}

/** How many tokens examples have; null for examples of something else. */
export function tokenLengths({ tokens }: Task, examples: Examples<unknown>): LengthReport | null {
  const counts = new Map<number, number>()
  if (tokens !== undefined) for (const example of examples) countOne(counts, tokens(example).ids.length)
  return lengthsOf(counts, 'tokens')
}

/** One line of words without the characters that only change how others look. */
function promptOf(record: Readonly<Record<string, unknown>>): string | undefined {
  const { messages } = record
  const asked = Array.isArray(messages)
    ? messages.flatMap((message) => (isObject(message) && message.role === 'user' ? [message.content] : []))
    : ASKED.map((field) => record[field])
  const text = asked.find((value) => typeof value === 'string' && value.trim() !== '') as string | undefined
  const line = text
    ?.replaceAll(/[\s\p{Cc}]+/gu, ' ')
    .replaceAll(/\p{Cf}/gu, '')
    .trim()
  if (line === undefined || line.length <= MAX_PROMPT) return line || undefined
  return line.slice(0, MAX_PROMPT).replace(/\s\S*$/, '')
}

/** Different labels that are counted. */
export const MAX_LABELS = 1000

/** Different notes, and different sets of fields, that are counted. */
export const MAX_NOTES = 100

/** How long records are. */
export interface LengthReport {
  /**
   * Tokens of the examples, if a model is given; what several texts of a record begin with counts once. Else characters
   * of all texts of a record.
   */
  readonly unit: 'tokens' | 'characters'
  readonly total: number
  readonly least: number
  readonly median: number
  readonly most: number
  /** How many are below each power of two, and not below the one before it. */
  readonly histogram: readonly { readonly below: number; readonly count: number }[]
}

export function countOne<K extends string | number>(counts: Map<K, number>, key: K, most?: number): void {
  const counted = most === undefined || counts.size < most || counts.has(key) ? key : ('others' as K)
  counts.set(counted, (counts.get(counted) ?? 0) + 1)
}

export function mostFrequent(counts: ReadonlyMap<string, number>): Record<string, number> {
  return Object.fromEntries([...counts].sort(([, a], [, b]) => b - a))
}

export function labelsOf({ label, labels, tags, entities }: Readonly<Record<string, unknown>>): string[] {
  const ofEntities = Array.isArray(entities)
    ? entities.map((entity) => (isObject(entity) ? entity.label : undefined))
    : []
  return [label ?? labels, tags, ofEntities]
    .flat()
    .flatMap((value) => (['string', 'boolean'].includes(typeof value) || Number.isInteger(value) ? String(value) : []))
}

export function lengthsOf(counts: ReadonlyMap<number, number>, unit: LengthReport['unit']): LengthReport | null {
  const sorted = [...counts].sort(([a], [b]) => a - b)
  if (sorted.length === 0) return null
  const count = sorted.reduce((sum, [, times]) => sum + times, 0)
  let seen = 0
  const median = sorted.find(([, times]) => {
    seen += times
    return seen * 2 >= count
  })![0]
  const histogram: { below: number; count: number }[] = []
  for (const [length, times] of sorted) {
    const below = 2 ** Math.floor(Math.log2(Math.max(1, length)) + 1)
    const last = histogram.at(-1)
    if (last?.below === below) last.count += times
    else histogram.push({ below, count: times })
  }
  const total = sorted.reduce((sum, [length, times]) => sum + length * times, 0)
  return { unit, total, least: sorted[0][0], median, most: sorted[sorted.length - 1][0], histogram }
}

/** The fields of a row that the task does not read, each as the end of a sentence: "3 of 10 records …". */
export function unreadNotes(
  { name, records, reads }: Pick<Task, 'name' | 'records' | 'reads'>,
  row: unknown,
): string[] {
  if (!isObject(row)) return []
  const read = new Set(reads?.(row) ?? records.flatMap(Object.keys))
  const isUnread = (field: string) => !read.has(field) && row[field] !== undefined && row[field] !== null
  // `source` as an object says who wrote the row.
  const unread = Object.keys(row).filter((field) => isUnread(field) && !(field === 'source' && isObject(row.source)))
  const isText = typeof row.text === 'string' && records.some((record) => Object.keys(record).join() === 'text')
  const advice = (field: string) =>
    isText && LABEL_NAMES.includes(field) ? `: to learn labels, give \`columns: { label: '${field}' }\`` : ''
  return unread.map((field) => `have a field "${field}", which the task ${name} does not read${advice(field)}`)
}
