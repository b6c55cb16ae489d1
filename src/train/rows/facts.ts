// Facts about the records of a run for its page and its model card, gathered while they are read.

import { isObject } from '../../base/options.js'
import type { Examples, Task } from '../../tasks/task.js'
import { countOne, type LengthReport, labelsOf, lengthsOf, MAX_LABELS, mostFrequent, rounded } from './counts.js'

/** Characters of a prompt on a card. */
const MAX_PROMPT = 80
/** Fields that hold what a model is asked, as far as tasks have them. */
const ASKED = ['prompt', 'question', 'instruction', 'text', 'source', 'input', 'query', 'anchor'] as const

export class DataFacts {
  readonly #labels = new Map<string, number>()
  #prompt: string | undefined
  #ofEvaluation: string | undefined

  add(record: unknown, isEvaluation: boolean): void {
    if (!isObject(record)) return
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

  /** How often each label is there, the most frequent first. */
  get labels(): Readonly<Record<string, number>> {
    return mostFrequent(this.#labels)
  }
}

/** How many tokens examples have; null for examples of something else. */
export function tokenLengths({ tokens }: Task, examples: Examples<unknown>): LengthReport | null {
  const counts = new Map<number, number>()
  if (tokens !== undefined) for (const example of examples) countOne(counts, rounded(tokens(example).ids.length))
  return lengthsOf(counts, 'tokens')
}

/** One line of words without the characters that only change how others look. */
function promptOf(record: Readonly<Record<string, unknown>>): string | undefined {
  const { messages } = record
  const asked = Array.isArray(messages)
    ? messages.flatMap((one) => (isObject(one) && one.role === 'user' ? [one.content] : []))
    : ASKED.map((field) => record[field])
  const text = asked.find((one) => typeof one === 'string' && one.trim() !== '') as string | undefined
  const line = text
    ?.replaceAll(/[\s\p{Cc}]+/gu, ' ')
    .replaceAll(/\p{Cf}/gu, '')
    .trim()
  if (line === undefined || line.length <= MAX_PROMPT) return line || undefined
  return line.slice(0, MAX_PROMPT).replace(/\s\S*$/, '')
}
