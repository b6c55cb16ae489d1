// Reads records of texts that belong together: a query, its document, further documents that are wrong, and scores.

import { DataError } from '../../../core/base/errors.js'
import { isObject, objectOf } from '../../../core/base/options.js'
import { fieldsOf } from '../../../model/text/records.js'

export interface RelatedTexts {
  /** A query, its document, and documents that are wrong: several times, if several documents are right. */
  readonly groups: readonly (readonly string[])[]
  /** How alike a pair is, or the scores of the documents by a teacher. */
  readonly score: number | readonly number[] | undefined
  /** True if neither text of a pair is a query, so that both get the default prompt. */
  readonly isSymmetric: boolean
}

export const QUERY_FIELDS = ['text', 'anchor', 'query', 'question', 'sentence1'] as const
export const DOCUMENT_FIELDS = [
  'textPair',
  'positive',
  'passage',
  'answer',
  'document',
  'documents',
  'sentence2',
] as const
const NUMBERED = /^negative_?\d+$/
export const SCORES = ['score', 'scores', 'label', 'labels'] as const

export function relatedFields(row: Readonly<Record<string, unknown>>): string[] {
  const { query, document } = sidesOf(row)
  return [query ?? [], document ?? [], ...negativeFields(row), SCORES].flat()
}

function sidesOf(record: Readonly<Record<string, unknown>>) {
  const named = (names: readonly string[]) => names.find((name) => Object.hasOwn(record, name))
  return { query: named(QUERY_FIELDS), document: named(DOCUMENT_FIELDS) }
}

export function negativeFields(record: Readonly<Record<string, unknown>>): string[] {
  const numbered = Object.keys(record).filter((name) => NUMBERED.test(name))
  const inOrder = numbered.sort((a, b) => Number(/\d+$/.exec(a)) - Number(/\d+$/.exec(b)))
  return ['negative', 'negatives', ...inOrder].filter((name) => record[name] !== undefined && record[name] !== null)
}

export function parseRelatedTexts(row: unknown, where: string): RelatedTexts {
  const record = objectOf(row)
  const refuse = (what: string, got: string) =>
    new DataError({
      where,
      what,
      expected: '"text" and "textPair" (or anchor or query, with positive or passage), and negatives or a score',
      got,
      hint: 'If the fields have other names, give them with `columns: { text: …, textPair: … }`',
    })
  const shown = (value: unknown) => JSON.stringify(value) ?? 'nothing'
  const { query, document } = sidesOf(record)
  if (query === undefined || document === undefined) throw refuse('no pair of texts', fieldsOf(record))
  const textOf = (field: string, text: unknown) => {
    if (typeof text === 'string' && text.trim() !== '') return text
    throw refuse(`${field} is no text, or an empty one`, shown(text))
  }
  const textsOf = (field: string) => [record[field]].flat().map((text) => textOf(field, text))
  const first = textOf(query, record[query])
  const score = scoreOf(record)
  const badScore = score !== undefined && [score].flat().find((value) => !Number.isFinite(value))
  if (badScore !== false && badScore !== undefined) throw refuse('a score is no number', shown(badScore))
  const given = textsOf(document)
  const isList = Array.isArray(record[document]) && Array.isArray(score)
  if (isList && score.length !== given.length) {
    throw refuse(`${given.length} texts in ${document} have ${score.length} labels`, shown(score))
  }
  const [right, wrong] = [true, false].map((isRight) => given.filter((_, i) => !isList || score[i] > 0 === isRight))
  const negatives = [...(isList ? wrong : []), ...negativeFields(record).flatMap(textsOf)]
  if (right.length === 0) throw refuse(`no text of ${document} has a label above 0`, shown(score))
  const copied = negatives.find((text) => right.includes(text))
  if (copied !== undefined) throw refuse('a negative equals the right text', shown(copied))
  return {
    groups: right.map((text) => [first, text, ...negatives]),
    score: isList ? undefined : (score as RelatedTexts['score']),
    isSymmetric: query === 'sentence1',
  }
}

function scoreOf(record: Readonly<Record<string, unknown>>): number | readonly number[] | undefined {
  const field = SCORES.find((name) => record[name] !== undefined && record[name] !== null)
  return field === undefined ? undefined : (record[field] as number | readonly number[])
}

/** The texts of a row that asks for documents of a corpus: its question, and the documents that are right. */
export function questionOf(
  row: unknown,
): { readonly query: string; readonly documents: readonly string[] } | undefined {
  if (!isObject(row)) return undefined
  const { query, document } = sidesOf(row)
  const texts = document === undefined ? [] : [row[document]].flat()
  const isUsable = query !== undefined && texts.length > 0 && [row[query], ...texts].every(isText)
  return isUsable ? { query: row[query] as string, documents: texts as string[] } : undefined
}

const isText = (value: unknown) => typeof value === 'string' && value.trim() !== ''
