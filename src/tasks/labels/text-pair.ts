// Rows with a text or the features of a sound, and what is to be written for it, as data sets call the two.

import { DataError } from '../../base/errors.js'
import { isObject } from '../../base/options.js'
import { fieldsOf } from '../../text/records.js'
import { FEATURES_FIELD, featuresOf, HEAR } from '../features.js'

/** A row of data. */
export interface TextPair {
  readonly source: Source
  readonly target: string
  /** The record, for messages. */
  readonly where: string
}

/** The input: a text, or features of a sound (bands, times), row by row. */
export type Source =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'features'; readonly values: Float32Array }

const TEXTS = ['text', 'input', 'source', 'question', 'prompt', 'document', 'article', 'dialogue']
const TARGETS = ['target', 'output', 'label', 'summary', 'highlights', 'translation', 'answer', 'completion']

const SPOKEN = ['target', 'label', 'text', 'sentence', 'transcription', 'transcript']

const RENAME = "Name your fields, as in `columns: { text: 'article', target: 'summary' }`"

export function parseTextPair(row: unknown, where: string): TextPair {
  const record = isObject(row) ? row : {}
  const isThere = (name: string) => record[name] !== undefined && record[name] !== null
  const isInstruction = isThere('instruction')
  const isSound = isThere(FEATURES_FIELD)
  const sources = isSound ? [FEATURES_FIELD] : isInstruction ? ['instruction'] : TEXTS.filter(isThere)
  const targets = (isSound ? SPOKEN : TARGETS).filter(isThere)
  const refuse = (what: string, hint: string) =>
    new DataError({
      where,
      what,
      expected: '"text" and "target", or names such as "input", "question", "summary", "translation", "answer"',
      got: fieldsOf(record),
      hint,
    })
  if (sources.length > 1 || targets.length > 1) {
    throw refuse('more than one field could be the text or the target', RENAME)
  }
  if (sources.length === 0) throw refuse('no text to read', isThere('audio') ? HEAR : RENAME)
  const own = record[sources[0]]
  const source = isSound
    ? ({ kind: 'features', values: featuresOf(own, where) } as const)
    : textOf(record, own, isInstruction)
  if (source === undefined) throw refuse('no text to read', RENAME)
  const target = record[targets[0]]
  if (typeof target !== 'string') {
    const isPair = isObject(target)
    const hint = isPair ? 'Write both languages as fields of their own: { "text": …, "target": … }' : RENAME
    throw refuse('no target: a text that the model learns to write', hint)
  }
  if (source.kind === 'text') refuseEmpty(source.text, `${where}, text`)
  refuseEmpty(target, `${where}, target`)
  return { source, target, where }
}

function refuseEmpty(text: string, where: string): void {
  if (text.trim() !== '') return
  throw new DataError({ where, what: 'it is empty', expected: 'at least one character' })
}

/** An instruction and its input are one text, as in records of other tasks. */
function textOf(record: Readonly<Record<string, unknown>>, value: unknown, isInstruction: boolean): Source | undefined {
  if (typeof value !== 'string') return undefined
  const { input } = record
  const isLonger = isInstruction && typeof input === 'string' && input !== ''
  return { kind: 'text', text: isLonger ? `${value}\n\n${input}` : value }
}
