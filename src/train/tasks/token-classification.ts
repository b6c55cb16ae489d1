// A tag for each word (IOB2), by a head that is trained whole. The loss is over the first token of each word.

import { ConfigError, DataError } from '../../core/base/errors.js'
import { objectOf } from '../../core/base/options.js'
import { entityMetrics, isEntityTag } from '../../model/heads/entities.js'
import { type HeadBase, namedLabels } from '../../model/heads/heads.js'
import { type EncodedTexts, encoderFeeds, encodeTagged } from '../../model/inputs/token-batch.js'
import type { Model } from '../../model/model-folder.js'
import type { Span } from '../../model/text/added-tokens.js'
import { fieldsOf } from '../../model/text/records.js'
import { joinWords, wordsIn } from '../../model/text/words.js'
import { TensorProto_DataType as DataType } from '../../onnx/format/gen/onnx_pb.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Value } from '../../onnx/view/builder.js'
import type { ObjectiveGraph } from '../graph/objective-graph.js'
import { TAG_OPTIONS } from './gen/options.js'
import { type LabelOptions, reported } from './labels/label-problems.js'
import { flat, HeadTask, headParts, type Inputs } from './labels/label-task.js'
import { classificationMetrics } from './metrics.js'
import type { Evaluated, Examples, Task } from './task.js'
import { ownLength, predictedRows, tokenLengths } from './token-probe.js'
import type { HeadOptions } from './trained-head.js'

export interface TaggedExample extends Omit<EncodedTexts, 'isTruncated'>, Pick<TaggedText, 'tags' | 'where'> {
  /** The first token of each tagged word, in order. */
  readonly firsts: Int32Array
}

export interface TagOptions extends Pick<LabelOptions, 'classWeights' | 'labelSmoothing'> {
  /** Names for tags that the records give as numbers from 0: a list, or one text with spaces between the names. */
  readonly tagNames?: string | readonly string[] | undefined
}

const ROWS = 'loss/rows'

export const tokenClassification: Task<TaggedText, TaggedExample, TagOptions> = {
  name: 'token-classification',
  peftType: 'TOKEN_CLS',
  learns: 'to give words labels, such as names of people',
  records: [
    { words: ['Ahab', 'saw', 'Nantucket'], tags: ['B-PER', 'O', 'B-LOC'] },
    { text: 'Ahab saw Nantucket', entities: [{ start: 9, end: 18, label: 'LOC' }] },
  ],
  use: {
    command: ['classify', '--text', 'The'],
    pipeline: 'token-classification',
    autoClass: 'AutoModelForTokenClassification',
  },
  page: {
    lesson: 'The adapter will learn to find names.',
    unit: 'tokens',
    settings: { maxSteps: 40, learningRate: 0.002, batchSize: 8 },
  },
  learningRate: 6e-4,
  ...headParts('token', wordInputs),
  options: TAG_OPTIONS,

  reads: () => ['tokens', 'words', 'tags', 'ner_tags', 'text', 'entities', 'spans'],

  parse: parseTaggedText,

  encode({ text, words, tags, where }, { model, maxLength }) {
    const { firsts, isTruncated, ...tokens } = encodeTagged(model, text, words, maxLength)
    const tagged = [...firsts.keys()].filter((word) => firsts[word] >= 0)
    if (tagged.length === 0) return { examples: [], isTruncated }
    const example = {
      ...tokens,
      firsts: Int32Array.from(tagged, (word) => firsts[word]),
      tags: tagged.map((word) => tags[word]),
      where,
    }
    return { examples: [example], isTruncated }
  },

  tokens: ({ inputIds, firsts }) => {
    const counted = new Set(firsts)
    return { ids: inputIds, counts: (index) => counted.has(index) }
  },

  open: (model, examples, options = {}, heads = {}) => new TokenClassification(model, examples, options, heads),
}

/** The number of words is a length besides batch and sequence, so the two measuring runs differ in it too. */
function wordInputs(model: Model, { graph }: HeadBase): Inputs<TaggedExample> {
  const feeds = encoderFeeds(model, graph)
  return {
    lengths: [...tokenLengths(), ownLength('words', [4, 11], { input: ROWS, axis: 0 })],
    zeros(label, sequence, row) {
      const firsts = Int32Array.from({ length: row === 0 ? sequence : 1 }, (_, i) => i)
      const tags = Array<string>(firsts.length).fill(String(label))
      return { inputIds: new Int32Array(sequence), tokenTypeIds: new Int32Array(sequence), firsts, tags }
    },
    feeds(examples, length) {
      const rows = examples.flatMap(({ firsts }, row) => Array.from(firsts, (first) => BigInt(row * length + first)))
      const chosen: Feeds = { [ROWS]: { type: 'int64', data: BigInt64Array.from(rows), dims: [rows.length] } }
      return { ...feeds(examples, length), ...chosen }
    },
    cost: ({ inputIds }) => inputIds.length,
  }
}

class TokenClassification extends HeadTask<TaggedExample> {
  constructor(model: Model, examples: Examples<TaggedExample>, options: TagOptions, heads: HeadOptions) {
    const { tagNames, classWeights, labelSmoothing } = options
    const names = typeof tagNames === 'string' ? tagNames.trim().split(/\s+/) : tagNames
    const tagsOf = ({ tags, where }: TaggedExample) => tags.map((tag) => nameOf(tag, names, where))
    const known = names ?? labelsOf(flat(examples, tagsOf), heads.newHead ? [] : namedLabels(model.config))
    const single = { problemType: 'single_label_classification', classWeights, labelSmoothing } as const
    super('token', wordInputs, { model, examples, options: single, heads, known }, 'tags', tagsOf)
  }

  forward(graph: ObjectiveGraph): Value {
    const rows = graph.input(ROWS, DataType.INT64, ['records'])
    const { chosen } = graph.chooseRows(this.head.input(graph).value, rows)
    return this.problem.loss(graph, graph.predict(this.head.logits(graph, { value: chosen, rows: 'given' })))
  }

  predict(outputs: Readonly<Feeds>, examples: readonly TaggedExample[]): string[][] {
    const found = predictedRows(outputs).map((logits) => this.labels[logits.indexOf(Math.max(...logits))])
    return examples.map(({ tags }) => found.splice(0, tags.length))
  }

  metrics({ examples, predictions }: Evaluated<TaggedExample>): Record<string, number> {
    const truth = examples.map((example) => this.targets([example]) as string[])
    const predicted = predictions as string[][]
    if (this.labels.some(isEntityTag)) {
      const { types, ...metrics } = entityMetrics(truth, predicted)
      return { ...metrics, ...reported(Object.keys(types), Object.values(types)) }
    }
    const idOf = (tag: string) => this.labels.indexOf(tag)
    const { scores, ...metrics } = classificationMetrics(truth.flat().map(idOf), predicted.flat().map(idOf))
    return { ...metrics, ...reported(this.labels, scores) }
  }
}

function nameOf(tag: Tag, names: readonly string[] | undefined, where: string): string {
  if (typeof tag === 'string') return tag
  if (names === undefined) {
    throw new ConfigError({
      where: `${where}, tags`,
      what: 'they are numbers, and nothing tells their names',
      expected: 'names such as B-PER and O, or the task option tagNames',
      got: String(tag),
      hint: "Give the names in the order of the numbers: `taskOptions: { tagNames: 'O B-PER I-PER B-LOC I-LOC' }`",
    })
  }
  if (names[tag] !== undefined) return names[tag]
  throw new DataError({
    where: `${where}, tags`,
    what: 'a number without a name',
    expected: `0 to ${names.length - 1}, as taskOptions.tagNames has names`,
    got: String(tag),
  })
}

/** Gives each type of entity a B- and an I- tag, even if the data has only one of them. */
function labelsOf(targets: Iterable<string>, known: readonly string[]): readonly string[] {
  const seen = new Set(targets)
  if (known.length > 1 && [...seen].every((tag) => known.includes(tag))) return known
  const types = new Set<string>()
  const others = new Set<string>()
  for (const tag of seen) {
    if (/^[BI]-./s.test(tag)) types.add(tag.slice(2))
    else if (tag !== 'O') others.add(tag)
  }
  const entities = [...types].sort().flatMap((type) => [`B-${type}`, `I-${type}`])
  return [...(seen.has('O') ? ['O'] : []), ...entities, ...[...others].sort()]
}

type Tag = string | number

/** A row of data: words with tags, or a text with entities. */
export interface TaggedText {
  readonly text: string
  /** Places in the text, in order. */
  readonly words: readonly Span[]
  readonly tags: readonly Tag[]
  readonly where: string
}

export function parseTaggedText(row: unknown, where: string): TaggedText {
  const record = objectOf(row)
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

function entityOf(entity: unknown, text: string, where: string) {
  const { start, end, label } = objectOf(entity)
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
      what: 'the text at its place differs',
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
