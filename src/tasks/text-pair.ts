// Rows with a text and what is to be written for it, as data sets call the two.

import { DataError } from '../base/errors.js'
import { isObject } from '../base/options.js'

/** A row of data. */
export interface TextPair {
  readonly text: string
  readonly target: string
  /** The record, for messages. */
  readonly where: string
}

/** Names of what is read, and of what is written. */
const TEXTS = ['text', 'input', 'source', 'question', 'prompt', 'document', 'article', 'dialogue']
const TARGETS = ['target', 'output', 'label', 'summary', 'highlights', 'translation', 'answer', 'completion']

/** Throws DataError for what has not one text and one target. */
export function parseTextPair(row: unknown, where: string): TextPair {
  const record = isObject(row) ? row : {}
  const isThere = (name: string) => record[name] !== undefined && record[name] !== null
  const isInstruction = isThere('instruction')
  const texts = isInstruction ? ['instruction'] : TEXTS.filter(isThere)
  const targets = TARGETS.filter(isThere)
  const refuse = (what: string, hint: string) => {
    const fields = Object.entries(record).map(([name, value]) => `"${name}" (${kindOf(value)})`)
    return new DataError({
      where,
      what,
      expected: '"text" and "target", or names such as "input", "question", "summary", "translation", "answer"',
      got: fields.slice(0, 8).join(', ') || 'no fields',
      hint,
    })
  }
  const rename = 'Name your fields with columns (--columns text=article,target=summary)'
  if (texts.length > 1 || targets.length > 1) {
    throw refuse('more than one field could be the text or the target', rename)
  }
  const text = textOf(record, texts[0], isInstruction)
  const target = record[targets[0]]
  if (text === undefined) throw refuse('no text to read', rename)
  if (typeof target !== 'string') {
    const isPair = isObject(target)
    const hint = isPair ? 'Write both languages as fields of their own: { "text": …, "target": … }' : rename
    throw refuse('no target: a text that the model learns to write', hint)
  }
  for (const [name, value] of [
    ['text', text],
    ['target', target],
  ]) {
    if (value.trim() !== '') continue
    throw new DataError({ where: `${where}, ${name}`, what: 'it is empty', expected: 'at least one character' })
  }
  return { text, target, where }
}

/** An instruction and its input are one text, as in records of other tasks. */
function textOf(record: Readonly<Record<string, unknown>>, name: string | undefined, isInstruction: boolean) {
  const value = name === undefined ? undefined : record[name]
  if (typeof value !== 'string') return undefined
  const { input } = record
  return isInstruction && typeof input === 'string' && input !== '' ? `${value}\n\n${input}` : value
}

function kindOf(value: unknown): string {
  return value === null ? 'null' : Array.isArray(value) ? 'list' : typeof value
}
