// A tag for each word (IOB2), with the loss of the tokens which words begin with, by a head that is trained whole.

import { ConfigError, DataError } from '../base/errors.js'
import { TensorProto_DataType as DataType } from '../formats/onnx/gen/onnx_pb.js'
import type { Model } from '../graph/model-folder.js'
import type { ObjectiveGraph } from '../graph/training/objective-graph.js'
import type { Value } from '../graph/view/builder.js'
import type { Feeds } from '../runtime/runtime.js'
import { TAG_OPTIONS } from './gen/options.js'
import { type HeadBase, namedLabels } from './heads/heads.js'
import { classificationMetrics } from './labels/classification-metrics.js'
import { entityMetrics, isEntityTag } from './labels/entities.js'
import { type LabelOptions, reported } from './labels/label-problems.js'
import { HeadTask, headParts, type Inputs, labelBytes } from './labels/label-task.js'
import { parseTaggedText, type Tag, type TaggedText } from './labels/tagged-text.js'
import type { Evaluated, Examples, HeadOptions, Task } from './task.js'
import { type EncodedTexts, encoderFeeds, encodeTagged, ownLength, predictedRows, tokenLengths } from './token-batch.js'

/** A tokenized row. */
export interface TaggedExample extends Omit<EncodedTexts, 'isTruncated'>, Pick<TaggedText, 'tags' | 'where'> {
  /** The token that each tagged word begins with, in order. */
  readonly firsts: Int32Array
}

/** How tags are trained. */
export interface TagOptions extends Pick<LabelOptions, 'classWeights' | 'labelSmoothing'> {
  /** Names of tags that the records give as numbers, from 0 on: a list, or one text with spaces between them. */
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

/** Words are counted beside the tokens: at each point where shapes are measured, their number is another one. */
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
    content: ({ inputIds, tokenTypeIds, firsts, tags }) => [inputIds, tokenTypeIds, firsts, labelBytes(tags)],
  }
}

class TokenClassification extends HeadTask<TaggedExample> {
  constructor(model: Model, examples: Examples<TaggedExample>, options: TagOptions, heads: HeadOptions) {
    const { tagNames, classWeights, labelSmoothing } = options
    const names = typeof tagNames === 'string' ? tagNames.trim().split(/\s+/) : tagNames
    const tagsOf = ({ tags, where }: TaggedExample) => tags.map((tag) => nameOf(tag, names, where))
    const known = names ?? labelsOf([...examples].flatMap(tagsOf), heads.newHead ? [] : namedLabels(model.config))
    const single = { problemType: 'single_label_classification', classWeights, labelSmoothing } as const
    super('token', wordInputs, { model, examples, options: single, heads, known }, 'tags', tagsOf)
  }

  forward(graph: ObjectiveGraph): Value {
    const rows = graph.input(ROWS, DataType.INT64, ['records'])
    const { chosen } = graph.chooseRows(this.head.input(graph).value, rows)
    return this.problem.loss(graph, graph.predict(this.head.logits(graph, { value: chosen, rows: 'given' })))
  }

  predict(outputs: Readonly<Feeds>, examples: readonly TaggedExample[]): string[][] {
    const found = predictedRows(outputs).map((own) => this.labels[own.indexOf(Math.max(...own))])
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

/** Each type of entity has a tag for its first word and one for the others, whether the data has both or not. */
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
