// A tag for each word (IOB2), with the loss of the tokens which words begin with, by a head that is trained whole.

import { ConfigError, DataError } from '../base/errors.js'
import { TensorProto_DataType as DataType } from '../formats/onnx/gen/onnx_pb.js'
import { encoderInputs } from '../graph/inputs/tokens.js'
import { type Model, requireTokenizer } from '../graph/model-folder.js'
import type { ObjectiveGraph } from '../graph/training/objective-graph.js'
import type { Value } from '../graph/view/builder.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'
import { checkVocabulary } from '../text/records.js'
import { encodeWords } from '../text/words.js'
import { TAG_OPTIONS } from './gen/options.js'
import { findHead, requireHead } from './heads/head-forms.js'
import { namedLabels } from './heads/heads.js'
import { checkHead, headBase, TrainedHead } from './heads/trained-head.js'
import { classificationMetrics } from './labels/classification-metrics.js'
import { entityMetrics, isEntityTag } from './labels/entities.js'
import { type LabelOptions, type LabelProblem, problemOf, reported } from './labels/label-problems.js'
import { parseTaggedText, type Tag, type TaggedText } from './labels/tagged-text.js'
import type { Evaluated, Examples, HeadOptions, OpenTask, Task } from './task.js'
import { ownLength, PROBE_BATCHES, tokenBatch, tokenLengths } from './token-batch.js'

/** A tokenized row. */
export interface TaggedExample {
  readonly inputIds: Int32Array
  readonly tokenTypeIds: Int32Array
  /** The token that each tagged word begins with, in order. */
  readonly firsts: Int32Array
  readonly tags: readonly Tag[]
  /** The record, for messages. */
  readonly where: string
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
  learningRate: 6e-4,
  headForm: (base) => findHead('token', base),
  options: TAG_OPTIONS,

  check(model) {
    const base = headBase(model)
    encoderInputs(base.graph)
    checkHead(requireHead('token', base), base)
  },

  parse: parseTaggedText,

  encode({ text, words, tags, where }, { model, maxLength }) {
    const tokenizer = requireTokenizer(model)
    const { ids, typeIds, firsts, isTruncated } = encodeWords(tokenizer, text, words, maxLength)
    checkVocabulary(ids, { tokenizer, vocabularySize: model.vocabularySize })
    const tagged = [...firsts.keys()].filter((word) => firsts[word] >= 0)
    if (tagged.length === 0) return { examples: [], isTruncated }
    const example = {
      inputIds: Int32Array.from(ids),
      tokenTypeIds: Int32Array.from(typeIds),
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

class TokenClassification implements OpenTask<TaggedExample> {
  readonly labels: readonly string[]
  readonly warnings: readonly string[]
  readonly head: TrainedHead
  readonly probe: OpenTask['probe']
  readonly #model: Model
  readonly #inputs: ReturnType<typeof encoderInputs>
  readonly #problem: LabelProblem
  readonly #names: readonly string[] | undefined

  constructor(model: Model, examples: Examples<TaggedExample>, options: TagOptions, heads: HeadOptions) {
    const { tagNames, classWeights, labelSmoothing } = options
    const base = headBase(model)
    this.#model = model
    this.#inputs = encoderInputs(base.graph)
    this.#names = typeof tagNames === 'string' ? tagNames.trim().split(/\s+/) : tagNames
    const targets = () => this.#targetsOf(examples)
    const known = this.#names ?? labelsOf(targets(), heads.newHead ? [] : namedLabels(model.config))
    const single = { problemType: 'single_label_classification', classWeights, labelSmoothing } as const
    this.#problem = problemOf(targets, known, single)
    this.labels = this.#problem.labels
    this.head = new TrainedHead(model, requireHead('token', base), this.labels, heads)
    this.warnings = this.head.warnings
    const lengths = [...tokenLengths(), ownLength('words', [4, 11], { input: ROWS, axis: 0 })]
    this.probe = { feeds: [this.#probeFeeds(0, 4), this.#probeFeeds(1, 11)], lengths }
  }

  forward(graph: ObjectiveGraph): Value {
    const rows = graph.input(ROWS, DataType.INT64, ['records'])
    const { chosen } = graph.chooseRows(this.head.input(graph).value, rows)
    return this.#problem.loss(graph, graph.predict(this.head.logits(graph, { value: chosen, rows: 'given' })))
  }

  checkEvaluation({ tags, where }: TaggedExample): void {
    for (const tag of tags) this.#problem.check(this.#nameOf(tag, where), `${where}, tags`)
  }

  cost({ inputIds }: TaggedExample): number {
    return inputIds.length
  }

  collate(examples: readonly TaggedExample[], length: number): Feeds {
    const ids = examples.map(({ inputIds }) => inputIds)
    const types = examples.map(({ tokenTypeIds }) => tokenTypeIds)
    const rows = examples.flatMap(({ firsts }, row) => Array.from(firsts, (first) => BigInt(row * length + first)))
    return {
      ...this.#inputs.feeds(tokenBatch(ids, length, this.#model.padTokenId, types)),
      [ROWS]: { type: 'int64', data: BigInt64Array.from(rows), dims: [rows.length] },
      ...this.#problem.targets([...this.#targetsOf(examples)]),
    }
  }

  normalizer(examples: readonly TaggedExample[]): number {
    return this.#problem.normalizer([...this.#targetsOf(examples)])
  }

  content({ inputIds, tokenTypeIds, firsts, tags }: TaggedExample): (Int32Array | Uint8Array)[] {
    return [inputIds, tokenTypeIds, firsts, new TextEncoder().encode(JSON.stringify(tags))]
  }

  predict(outputs: Readonly<Record<string, RuntimeTensor>>, examples: readonly TaggedExample[]): string[][] {
    const logits = Object.values(outputs).find(({ dims }) => dims.length === 2)?.data as Float32Array
    const count = this.labels.length
    let word = 0
    return examples.map(({ tags }) =>
      tags.map(() => {
        const own = logits.subarray(word * count, ++word * count)
        return this.labels[own.indexOf(Math.max(...own))]
      }),
    )
  }

  metrics({ examples, predictions }: Evaluated<TaggedExample>): Record<string, number> {
    const truth = examples.map((example) => [...this.#targetsOf([example])])
    const predicted = predictions as string[][]
    if (this.labels.some(isEntityTag)) {
      const { types, ...metrics } = entityMetrics(truth, predicted)
      const names = Object.keys(types)
      return { ...metrics, ...reported(names, Object.values(types)) }
    }
    const idOf = (tag: string) => this.labels.indexOf(tag)
    const { scores, ...metrics } = classificationMetrics(truth.flat().map(idOf), predicted.flat().map(idOf))
    return { ...metrics, ...reported(this.labels, scores) }
  }

  *#targetsOf(examples: Iterable<TaggedExample>): Generator<string> {
    for (const { tags, where } of examples) for (const tag of tags) yield this.#nameOf(tag, where)
  }

  #nameOf(tag: Tag, where: string): string {
    if (typeof tag === 'string') return tag
    if (this.#names === undefined) {
      throw new ConfigError({
        where: `${where}, tags`,
        what: 'they are numbers, and nothing tells their names',
        expected: 'names such as B-PER and O, or the task option tagNames',
        got: String(tag),
        hint: "Give the names in the order of the numbers: `taskOptions: { tagNames: 'O B-PER I-PER B-LOC I-LOC' }`",
      })
    }
    const name = this.#names[tag]
    if (name !== undefined) return name
    throw new DataError({
      where: `${where}, tags`,
      what: 'a number without a name',
      expected: `0 to ${this.#names.length - 1}, as taskOptions.tagNames has names`,
      got: String(tag),
    })
  }

  /** At each point another number of words. */
  #probeFeeds(point: 0 | 1, words: number): Feeds {
    const { batch, sequence } = PROBE_BATCHES[point]
    const examples = Array.from({ length: batch }, (_, row) => {
      const count = row === 0 ? words - batch + 1 : 1
      return {
        inputIds: new Int32Array(sequence),
        tokenTypeIds: new Int32Array(sequence),
        firsts: Int32Array.from({ length: count }, (_, i) => i),
        tags: Array(count).fill(this.labels[0]) as string[],
        where: 'probe',
      }
    })
    return this.collate(examples, sequence)
  }
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
