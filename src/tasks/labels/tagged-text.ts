// Rows of token classification, words with tags or a text with entities, as a text, its words, and a tag for each.

import { DataError } from '../../base/errors.js'
import { isObject } from '../../base/options.js'
import type { Span } from '../../text/added-tokens.js'
import { fieldsOf } from '../../text/records.js'
import { joinWords, wordsIn } from '../../text/words.js'

/** A tag, or its number. */
export type Tag = string | number

/** A row of data. */
export interface TaggedText {
  readonly text: string
  /** In the text, in order. */
  readonly words: readonly Span[]
  /** One for each word. */
  readonly tags: readonly Tag[]
  /** The record, for messages. */
  readonly where: string
}

interface Entity extends Span {
  readonly label: string
}

export function parseTaggedText(row: unknown, where: string): TaggedText {
  const record = isObject(row) ? row : {}
  const words = record.tokens ?? record.words
  const tags = record.tags ?? record.ner_tags
  const entities = record.entities ?? record.spans
  if (Array.isArray(words) && Array.isArray(tags)) return taggedWords(words, tags, where)
  if (typeof record.text === 'string' && Array.isArray(entities)) return markedText(record.text, entities, where)
  throw new DataError({
    where,
    what: 'neither words with tags nor a text with entities',
    expected:
      '"words" and "tags": lists of the same length; or "text", and "entities": a list of { start, end, label }',
    got: fieldsOf(record),
    hint: 'If the fields have other names, give them with `columns: { words: …, tags: … }`',
  })
}

function taggedWords(words: readonly unknown[], tags: readonly unknown[], where: string): TaggedText {
  if (words.length !== tags.length) {
    throw new DataError({
      where,
      what: 'not as many tags as words',
      expected: `${words.length} tags`,
      got: `${tags.length}`,
    })
  }
  const wrong = words.findIndex((word) => typeof word !== 'string')
  if (wrong >= 0) {
    throw new DataError({ where: `${where}, word ${wrong + 1}`, what: 'not a text', got: JSON.stringify(words[wrong]) })
  }
  const bad = tags.findIndex((tag) => (typeof tag === 'string' ? tag === '' : !isCount(tag)))
  if (bad >= 0) {
    throw new DataError({
      where: `${where}, tag ${bad + 1}`,
      what: 'not a tag',
      expected: 'a text such as B-PER or O, or a number from 0 on',
      got: JSON.stringify(tags[bad]),
    })
  }
  const { text, spans } = joinWords(words as string[])
  return { text, words: spans, tags: tags as Tag[], where }
}

function markedText(text: string, given: readonly unknown[], where: string): TaggedText {
  const entities = given
    .map((entity, i) => entityOf(entity, text, `${where}, entity ${i + 1}`))
    .sort((a, b) => a.start - b.start)
  entities.forEach(({ start, end, label }, i) => {
    const before = entities[i - 1]
    if (before === undefined || before.end <= start) return
    throw new DataError({
      where,
      what: 'entities overlap, and a word has one tag only',
      got: `${before.label} ${before.start} to ${before.end}, and ${label} ${start} to ${end}`,
    })
  })
  const words: Span[] = []
  const tags: string[] = []
  let at = 0
  const take = (from: number, to: number, tagOf: (index: number) => string) => {
    wordsIn(text.slice(from, to)).forEach(({ start, end }, i) => {
      words.push({ start: from + start, end: from + end })
      tags.push(tagOf(i))
    })
  }
  for (const { start, end, label } of entities) {
    take(at, start, () => 'O')
    take(start, end, (i) => `${i === 0 ? 'B' : 'I'}-${label}`)
    at = end
  }
  take(at, text.length, () => 'O')
  return { text, words, tags, where }
}

function entityOf(entity: unknown, text: string, where: string): Entity {
  const { start, end, label } = isObject(entity) ? entity : {}
  if (!isCount(start) || !isCount(end) || typeof label !== 'string' || label === '') {
    throw new DataError({
      where,
      what: 'not an entity',
      expected: '{ start, end, label }: numbers of characters, and a text',
      got: JSON.stringify(entity),
    })
  }
  if (start >= end || end > text.length) {
    throw new DataError({
      where,
      what: 'not a part of the text',
      expected: `0 <= start < end <= ${text.length}`,
      got: `${start} to ${end}`,
    })
  }
  const said = (entity as { text?: unknown }).text
  if (typeof said === 'string' && said !== text.slice(start, end)) {
    throw new DataError({
      where,
      what: 'the text at its place is another one',
      expected: JSON.stringify(said),
      got: JSON.stringify(text.slice(start, end)),
      hint: 'Places count as JavaScript does (UTF-16): an emoji counts as two characters',
    })
  }
  if (text.slice(start, end).trim() === '') {
    throw new DataError({ where, what: 'it has no words', got: JSON.stringify(text.slice(start, end)) })
  }
  return { start, end, label }
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}
