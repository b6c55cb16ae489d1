// Reranking: a score for a question with a document, by a head with one logit (a cross-encoder). Some losses compare
// the documents of a question, so a step takes two passes.

import { ConfigError, DataError } from '../../core/base/errors.js'
import { objectOf } from '../../core/base/options.js'
import { requireHead } from '../../model/heads/head-forms.js'
import { type EncodedTexts, encoderFeeds, encodeTexts } from '../../model/inputs/token-batch.js'
import type { Model } from '../../model/model-folder.js'
import { fieldsOf } from '../../model/text/records.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Value } from '../../onnx/view/builder.js'
import type { ObjectiveGraph } from '../graph/objective-graph.js'
import { measuresOf } from '../search/measures.js'
import { RERANKING_OPTIONS } from './gen/options.js'
import { meansOf } from './metrics.js'
import type { Evaluated, Examples, OpenOptions, OpenTask, StepRun, Task } from './task.js'
import { predictedRows, tokenProbe } from './token-probe.js'
import { checkHead, headBase, TrainedHead } from './trained-head.js'
import { RANK_LOSSES, type RankLossName, rankLoss } from './vectors/rank-losses.js'
import { DOCUMENT_FIELDS, negativeFields, QUERY_FIELDS, SCORES } from './vectors/related-texts.js'

export interface RankedTexts {
  readonly query: string
  readonly documents: readonly string[]
  /** A label for each document, from 0 on; for MarginMSE also margins. */
  readonly labels: readonly number[]
  readonly where: string
}

export interface RankedExample extends Pick<RankedTexts, 'query' | 'labels' | 'where'> {
  /** The question with each document. */
  readonly texts: readonly Omit<EncodedTexts, 'isTruncated'>[]
}

export interface RerankingOptions {
  /**
   * The loss, by the names of sentence-transformers: BinaryCrossEntropy, Lambda, ListNet, RankNet or MarginMSE (from
   * the scores of a teacher). Default: Lambda for lists of documents, BinaryCrossEntropy for single ones.
   */
  readonly loss?: RankLossName | undefined
  /**
   * Weight of right documents in BinaryCrossEntropy.
   * @range a finite number above 0
   * @default 1
   */
  readonly posWeight?: number | undefined
  /**
   * How many of the first documents count in Lambda and RankNet. Default: all.
   * @range an integer of at least 1
   */
  readonly k?: number | undefined
}

const GRADIENT = 'loss/score-gradients'
const LABEL = ['LABEL_0']
const AT = 10

export const reranking: Task<RankedTexts, RankedExample, RerankingOptions> = {
  name: 'reranking',
  peftType: 'SEQ_CLS',
  learningRate: 3e-4,
  learns: 'to score documents for a question',
  records: [
    { query: 'How was the sea?', document: 'The sea was calm.', label: 1 },
    { query: 'How was the sea?', documents: ['The sea was calm.', 'The soup was hot.'], labels: [1, 0] },
    { query: 'How was the sea?', document: 'The sea was calm.', score: 0.9 },
  ],
  use: { pipeline: 'text-ranking', autoClass: 'AutoModelForSequenceClassification', tags: ['cross-encoder'] },
  options: RERANKING_OPTIONS,

  check(model) {
    const base = headBase(model)
    checkHead(requireHead('text', base), base)
  },

  reads: (row) => [...QUERY_FIELDS, ...DOCUMENT_FIELDS, ...negativeFields(row), ...SCORES],

  parse: parseRankedTexts,

  pairs: ({ query, documents, labels }) => {
    const isRight = (i: number) => labels.length !== documents.length || labels[i] > 0
    const [right, wrong] = [true, false].map((wanted) => documents.filter((_, i) => isRight(i) === wanted))
    // A record of a wrong document alone belongs to its question.
    return [[query, right[0] ?? query, ...wrong]]
  },

  encode({ query, documents, labels, where }, { model, maxLength }) {
    const limit = Math.min(maxLength, model.sentence.maxLength ?? Number.POSITIVE_INFINITY)
    let isTruncated = false
    const texts = documents.map((document) => {
      const { isTruncated: isCut, ...encoded } = encodeTexts(model, query, document, limit)
      isTruncated ||= isCut
      return encoded
    })
    return { examples: [{ query, texts, labels, where }], isTruncated }
  },

  tokens: ({ texts: [{ inputIds: ids }] }) => ({ ids, counts: () => false }),

  open: (model, examples, options = {}, opening = {}) => new Reranking(model, examples, options, opening),
}

function parseRankedTexts(row: unknown, where: string): RankedTexts {
  const record = objectOf(row)
  const expected =
    'a "query", a "document" with a "label" or "score", or "documents" with "labels"; or a positive with negatives'
  const refuse = (what: string, got = fieldsOf(record)) => new DataError({ where, what, expected, got })
  const named = (names: readonly string[]) => names.find((name) => record[name] !== undefined && record[name] !== null)
  const [queryField, field, scoreField] = [QUERY_FIELDS, DOCUMENT_FIELDS, SCORES].map(named)
  if (queryField === undefined || field === undefined) throw refuse('no question with documents')
  const given = [record[field]].flat()
  const negatives = negativeFields(record).flatMap((name) => [record[name]].flat())
  const texts = [record[queryField], ...given, ...negatives]
  const bad = texts.find((text) => typeof text !== 'string' || text.trim() === '')
  if (bad !== undefined) throw refuse('a text is empty, or none', JSON.stringify(bad))
  const [query, ...documents] = texts as string[]
  const copied = (negatives as string[]).find((text) => given.includes(text))
  if (copied !== undefined) throw refuse('a negative equals the right document', JSON.stringify(copied))
  const scores = scoreField === undefined ? undefined : [record[scoreField]].flat().map(Number)
  if (scores === undefined && negatives.length === 0) throw refuse('no label')
  const labels = scores ?? documents.map((_, i) => (i < given.length ? 1 : 0))
  if (!labels.every(Number.isFinite)) throw refuse('a label is no number', JSON.stringify(record[scoreField!]))
  const isMargins = negatives.length > 0 && labels.length === documents.length - 1
  if (labels.length !== documents.length && !isMargins) {
    throw refuse('not a label for each document', `${documents.length} documents, ${labels.length} labels`)
  }
  return { query, documents, labels, where }
}

class Reranking implements OpenTask<RankedExample> {
  readonly probe: OpenTask['probe']
  readonly head: TrainedHead
  readonly warnings: readonly string[]
  readonly labels = LABEL
  readonly problemType = 'regression'
  readonly rowsOfExample: number
  readonly chooses: string | undefined
  readonly #feeds: ReturnType<typeof encoderFeeds>
  readonly #loss: RankLossName
  readonly #options: RerankingOptions

  constructor(model: Model, examples: Examples<RankedExample>, options: RerankingOptions, opening: OpenOptions) {
    const base = headBase(model)
    this.head = new TrainedHead(model, base, requireHead('text', base), LABEL, opening)
    this.warnings = this.head.warnings
    this.#feeds = encoderFeeds(model, base.graph)
    let most = 1
    const queries = new Set<string>()
    for (const { texts, query } of examples) {
      most = Math.max(most, texts.length)
      queries.add(query)
    }
    this.rowsOfExample = most
    this.chooses = most > 1 || queries.size < examples.length ? `ndcg@${AT},mrr@${AT}` : undefined
    this.#options = options
    this.#loss = options.loss ?? (most > 1 ? 'Lambda' : 'BinaryCrossEntropy')
    const { posWeight, k } = options
    const isWrong = [
      ['posWeight', posWeight !== undefined && this.#loss !== 'BinaryCrossEntropy'],
      ['k', k !== undefined && this.#loss !== 'Lambda' && this.#loss !== 'RankNet'],
    ].find(([, isOn]) => isOn)
    if (isWrong !== undefined) {
      throw new ConfigError({ where: `taskOptions.${isWrong[0]}`, what: `the loss ${this.#loss} has none` })
    }
    for (const example of examples) this.checkEvaluation(example)
    const { batches, lengths } = tokenProbe(base.graph)
    const [a, b] = batches.map(({ batch, sequence }) => {
      const inputIds = new Int32Array(sequence)
      return this.#feeds(Array(batch).fill({ inputIds, tokenTypeIds: inputIds }), sequence)
    })
    this.probe = { feeds: [a, b], lengths }
  }

  checkEvaluation({ texts, labels, where }: RankedExample): void {
    const loss = this.#loss
    if (RANK_LOSSES[loss] && texts.length < 2) {
      const what = `the loss ${loss} compares documents of a question`
      throw new DataError({ where, what, expected: 'a list of documents', got: 'one document' })
    }
    if (labels.length < texts.length && loss !== 'MarginMSE') {
      throw new DataError({ where, what: `margins, which the loss ${loss} does not learn from`, expected: 'MarginMSE' })
    }
    if (loss === 'BinaryCrossEntropy' && labels.some((label) => label < 0 || label > 1)) {
      throw new DataError({ where, what: 'a label is not between 0 and 1', got: labels.join(', ') })
    }
  }

  forward(graph: ObjectiveGraph): Value {
    return graph.fedGradient(graph.predict(this.head.logits(graph, this.head.input(graph))), GRADIENT)
  }

  cost({ texts }: RankedExample): number {
    return Math.max(...texts.map(({ inputIds }) => inputIds.length))
  }

  collate(examples: readonly RankedExample[], length: number): Feeds {
    return this.#feeds(
      examples.flatMap(({ texts }) => texts),
      length,
    )
  }

  normalizer(examples: readonly RankedExample[]): number {
    return examples.length
  }

  /** The scores of each example's documents. */
  predict(outputs: Readonly<Feeds>, examples: readonly RankedExample[]): number[][] {
    const rows = predictedRows(outputs).map(([logit]) => logit)
    let from = 0
    return examples.map(({ texts }) => {
      from += texts.length
      return rows.slice(from - texts.length, from)
    })
  }

  stepLoss(runs: readonly StepRun<RankedExample>[]): { loss: number; feeds: Feeds[] } {
    const lists = runs.flatMap((run) => {
      const logits = this.predict(run.outputs, run.examples)
      return run.examples.map(({ labels }, i) => ({ logits: logits[i], labels }))
    })
    const { loss, gradients } = rankLoss(this.#loss, lists, this.#options)
    let from = 0
    const feeds = runs.map(({ examples }): Feeds => {
      const data = Float32Array.from(gradients.slice(from, from + examples.length).flat())
      from += examples.length
      return { [GRADIENT]: { type: 'float32', data, dims: [data.length, 1] } }
    })
    return { loss, feeds }
  }

  values({ examples, predictions }: Omit<Evaluated<RankedExample>, 'loss'>): Record<string, number[]> {
    const lists = examples.map(({ labels }, i) => ({ labels, logits: predictions[i] as number[] }))
    return lists.every(isMeasurable) ? columnsOf(lists) : {}
  }

  /** Records with the same question are one list. */
  metrics({ examples, predictions }: Evaluated<RankedExample>): Record<string, number> {
    const lists = new Map<string, { labels: number[]; logits: number[] }>()
    for (const [i, { query, labels, texts }] of examples.entries()) {
      const list = lists.get(query) ?? { labels: [], logits: [] }
      lists.set(query, list)
      const isMargins = labels.length < texts.length
      list.labels.push(...(isMargins ? texts.map((_, place) => (place === 0 ? 1 : 0)) : labels))
      list.logits.push(...(predictions[i] as number[]))
    }
    const measurable = [...lists.values()].filter(isMeasurable)
    const none = { [`ndcg@${AT}`]: Number.NaN, [`mrr@${AT}`]: Number.NaN }
    return measurable.length === 0 ? none : meansOf(columnsOf(measurable))
  }
}

interface List {
  readonly labels: readonly number[]
  readonly logits: readonly number[]
}

const RELEVANT = 1e-9

const isMeasurable = ({ labels, logits }: List) =>
  labels.length === logits.length && labels.length > 1 && labels.some((label) => label > RELEVANT)

/** nDCG and MRR of lists. The highest labels of a list are relevant; among equal scores, wrong documents come first. */
function columnsOf(lists: readonly List[]): Record<string, number[]> {
  const measured = lists.map(({ labels, logits }) => {
    const most = Math.max(...labels)
    const ranked = labels.flatMap((label, i) => {
      if (label <= 0) return []
      const before = (j: number) => logits[j] > logits[i] || (logits[j] === logits[i] && labels[j] < label)
      return [{ rank: 1 + [...logits.keys()].filter(before).length, grade: label / most }]
    })
    return measuresOf(ranked, [AT])
  })
  return Object.fromEntries(
    [`ndcg@${AT}`, `mrr@${AT}`].map((name) => [name, measured.map((measures) => measures[name])] as const),
  )
}
