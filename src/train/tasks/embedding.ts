// Embedding: one vector for each text, so that texts with similar meanings have similar vectors, pooled as the model
// does it. The loss compares all vectors of a step, so a step takes two passes.

import { ConfigError, DataError, UnsupportedError } from '../../core/base/errors.js'
import { objectOf } from '../../core/base/options.js'
import { joinedUp } from '../../core/base/tensor.js'
import { appendDense } from '../../model/dense-layer.js'
import { appendPooling, textVectors, tokenVectors, trainedPooling } from '../../model/heads/head-rows.js'
import { type EncodedTexts, encoderFeeds, encodeTexts } from '../../model/inputs/token-batch.js'
import { encoderInputs } from '../../model/inputs/tokens.js'
import type { Model } from '../../model/model-folder.js'
import type { SentenceModules } from '../../model/sentence-modules.js'
import { fieldsOf } from '../../model/text/records.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Value } from '../../onnx/view/builder.js'
import { readGraph } from '../../onnx/view/graph.js'
import type { ObjectiveGraph } from '../graph/objective-graph.js'
import { EMBEDDING_OPTIONS } from './gen/options.js'
import { meansOf, retrievalValues, spearman } from './metrics.js'
import type { Evaluated, Examples, OpenTask, StepRun, Task } from './task.js'
import { predictedRows, tokenProbe } from './token-probe.js'

export interface RelatedTexts {
  /** A text, its partner, and perhaps a negative. */
  readonly texts: readonly string[]
  /** How alike a pair is, from −1 to 1. */
  readonly score: number | undefined
}

export interface RelatedExample {
  readonly texts: readonly Omit<EncodedTexts, 'isTruncated'>[]
  readonly score: number | undefined
}

export interface EmbeddingOptions {
  /** Default: cosine if rows have scores, else in-batch. */
  readonly loss?: 'in-batch' | 'cosine' | 'triplet' | undefined
  /**
   * Divisor of the cosines in the loss in-batch.
   * @range a finite number above 0
   * @default 0.05
   */
  readonly temperature?: number | undefined
  /**
   * Distance that the loss triplet asks for between partner and negative.
   * @range a finite number above 0
   * @default 0.2
   */
  readonly margin?: number | undefined
}

const FIELDS = [
  ['text', 'textPair'],
  ['anchor', 'positive'],
  ['query', 'answer'],
  ['sentence1', 'sentence2'],
] as const

const GRADIENT = 'loss/vector-gradients'
const MASK = 'attention_mask'
const RECALLS = [1, 10]

export const embedding: Task<RelatedTexts, RelatedExample, EmbeddingOptions> = {
  name: 'embedding',
  peftType: 'FEATURE_EXTRACTION',
  learningRate: 3e-4,
  learns: 'to turn texts into vectors, like ones for like meanings',
  records: [
    { text: 'How was the sea?', textPair: 'The sea was calm.' },
    { text: 'How was the sea?', textPair: 'The sea was calm.', negative: 'The soup was hot.' },
    { text: 'The sea was calm.', textPair: 'The water lay still.', score: 0.9 },
  ],
  use: {
    command: ['embed', '--text', 'The'],
    pipeline: 'feature-extraction',
    autoClass: 'AutoModel',
    tags: ['sentence-similarity'],
  },
  page: {
    lesson: 'The adapter will learn which texts belong together.',
    unit: 'tokens',
    settings: { maxSteps: 20, learningRate: 0.002, batchSize: 8 },
  },
  options: EMBEDDING_OPTIONS,

  check(model) {
    const graph = readGraph(model.onnx)
    encoderInputs(graph)
    if (textVectors(graph, model.sentence) === undefined) {
      tokenVectors(graph)
      trainedPooling(model.sentence)
    }
    if (graph.inputs.some(({ name }) => name === MASK)) return
    throw new UnsupportedError({
      where: 'ONNX model',
      what: `no input ${MASK}, so texts and padding cannot be told apart`,
    })
  },

  reads: (row) => [...(FIELDS.find((pair) => pair.every((name) => name in row)) ?? []), 'negative', 'score'],

  parse: parseRelatedTexts,

  encode({ texts, score }, { model, maxLength }) {
    const limit = Math.min(maxLength, model.sentence.maxLength ?? Number.POSITIVE_INFINITY)
    const { prompt } = model.sentence
    const encoded = texts.map((text) => encodeTexts(model, prompt + text, undefined, limit))
    return { examples: [{ texts: encoded, score }], isTruncated: encoded.some(({ isTruncated }) => isTruncated) }
  },

  tokens: ({ texts: [{ inputIds: ids }] }) => ({ ids, counts: () => false }),

  open: (model, examples, options = {}) => new Embedding(model, examples, options),
}

function parseRelatedTexts(row: unknown, where: string): RelatedTexts {
  const record = objectOf(row)
  const refuse = (what: string, got: string) =>
    new DataError({
      where,
      what,
      expected: '"text" and "textPair" (or anchor and positive, sentence1 and sentence2), and "negative" or "score"',
      got,
      hint: 'If the fields have other names, give them with `columns: { text: …, textPair: … }`',
    })
  const names = FIELDS.find(([first, second]) => first in record && second in record)
  if (names === undefined) throw refuse('no pair of texts', fieldsOf(record))
  const fields = [...names, ...(record.negative === undefined || record.negative === null ? [] : ['negative'])]
  const texts = fields.map((name) => record[name])
  const bad = texts.findIndex((text) => typeof text !== 'string' || text.trim() === '')
  if (bad !== -1) throw refuse(`${fields[bad]} is no text, or an empty one`, JSON.stringify(texts[bad]) ?? 'nothing')
  const { score } = record
  if (score === undefined || score === null) return { texts: texts as string[], score: undefined }
  const isScore = typeof score === 'number' && score >= -1 && score <= 1
  if (!isScore) throw refuse('score is no number between −1 and 1', JSON.stringify(score))
  return { texts: texts as string[], score }
}

class Embedding implements OpenTask<RelatedExample> {
  readonly probe: OpenTask['probe']
  readonly #feeds: ReturnType<typeof encoderFeeds>
  readonly #sentence: SentenceModules
  readonly #loss: NonNullable<EmbeddingOptions['loss']>
  readonly #options: EmbeddingOptions
  readonly rowsOfExample: number

  constructor(model: Model, examples: Examples<RelatedExample>, options: EmbeddingOptions) {
    const graph = readGraph(model.onnx)
    this.#feeds = encoderFeeds(model, graph)
    this.#sentence = model.sentence
    const first = examples.at(0)!
    this.rowsOfExample = first.texts.length
    this.#options = options
    this.#loss = options.loss ?? (first.score === undefined ? 'in-batch' : 'cosine')
    for (const example of examples) this.checkEvaluation(example)
    const { batches, lengths } = tokenProbe(graph)
    const [a, b] = batches.map(({ batch, sequence }) => {
      const inputIds = new Int32Array(sequence)
      return this.#feeds(Array(batch).fill({ inputIds, tokenTypeIds: inputIds }), sequence)
    })
    this.probe = { feeds: [a, b], lengths }
  }

  async forward(graph: ObjectiveGraph): Promise<Value> {
    const vectors = textVectors(graph.graph, this.#sentence) ?? (await this.#appendModules(graph))
    return graph.fedGradient(graph.predict(vectors), GRADIENT)
  }

  async #appendModules({ g, graph }: ObjectiveGraph): Promise<Value> {
    const { layers } = this.#sentence
    let x = appendPooling(g, tokenVectors(graph), trainedPooling(this.#sentence))
    // The loss normalizes vectors itself.
    for (const layer of layers.slice(0, layers.findLastIndex((layer) => layer !== undefined) + 1)) {
      if (layer !== undefined) x = appendDense(g, x, await layer())
      else x = g.div(x, g.op('Sqrt', [g.reduceSum(g.mul(x, x), [1])]))
    }
    return x
  }

  cost({ texts }: RelatedExample): number {
    return Math.max(...texts.map(({ inputIds }) => inputIds.length))
  }

  collate(examples: readonly RelatedExample[], length: number): Feeds {
    const all = Array.from({ length: this.rowsOfExample }, (_, i) => examples.map(({ texts }) => texts[i])).flat()
    return this.#feeds(all, length)
  }

  normalizer(examples: readonly RelatedExample[]): number {
    return examples.length
  }

  predict(outputs: Readonly<Feeds>, examples: readonly RelatedExample[]): Float32Array[][] {
    const found = predictedRows(outputs)
    return examples.map((_, row) => found.filter((_, at) => at % examples.length === row))
  }

  stepLoss(runs: readonly StepRun<RelatedExample>[]): { loss: number; feeds: Feeds[] } {
    const examples = runs.flatMap((run) => run.examples)
    const cosines = new Cosines(runs.flatMap((run) => this.predict(run.outputs, run.examples)))
    const loss = this.#lossOf(cosines, examples)
    const gradients = cosines.gradients()
    let from = 0
    const feeds = runs.map((run): Feeds => {
      const ofRun = gradients.flatMap((group) => group.slice(from, from + run.examples.length))
      from += run.examples.length
      return { [GRADIENT]: { type: 'float32', data: joinedUp(ofRun), dims: [ofRun.length, ofRun[0].length] } }
    })
    return { loss, feeds }
  }

  #lossOf(cosines: Cosines, examples: readonly RelatedExample[]): number {
    const { temperature = 0.05, margin = 0.2 } = this.#options
    switch (this.#loss) {
      case 'cosine':
        return cosineLoss(cosines, scoresOf(examples))
      case 'triplet':
        return tripletLoss(cosines, margin)
      case 'in-batch':
        return inBatchLoss(cosines, temperature, sameTexts(examples))
    }
  }

  metrics({ examples, predictions }: Evaluated<RelatedExample>): Record<string, number> {
    if (this.#loss !== 'cosine') return meansOf(this.values({ examples, predictions }))
    const cosines = new Cosines(predictions as readonly Float32Array[][])
    const found = predictions.map((_, row) => cosines.of(row, 1, row))
    return { spearman: spearman(found, scoresOf(examples)) }
  }

  values({ examples, predictions }: Omit<Evaluated<RelatedExample>, 'loss'>): Record<string, number[]> {
    if (this.#loss === 'cosine') return {}
    const cosines = new Cosines(predictions as readonly Float32Array[][])
    const score = (query: number, candidate: number) => cosines.of(query, 1, candidate)
    return retrievalValues(predictions.length, score, RECALLS, sameTexts(examples))
  }

  checkEvaluation({ texts, score }: RelatedExample): void {
    const refuse = (what: string, expected: string, got: string) =>
      new DataError({ where: 'data', what, expected, got })
    if (texts.length !== this.rowsOfExample) {
      throw refuse('some records have a negative, others have none', `${this.rowsOfExample} texts`, `${texts.length}`)
    }
    if (this.#loss === 'cosine' && score === undefined) {
      throw refuse('a record has no score, which the loss cosine needs', 'a score', 'none')
    }
    if (this.#loss !== 'cosine' && score !== undefined && this.#options.loss === undefined) {
      throw refuse('some records have a score, others have none', 'no score', String(score))
    }
    if (this.#loss === 'triplet' && texts.length < 3) {
      throw new ConfigError({ where: 'taskOptions.loss', what: 'triplet needs a "negative" in each record' })
    }
  }
}

function scoresOf(examples: readonly RelatedExample[]): number[] {
  return examples.map(({ score }) => score!)
}

/**
 * Returns a test of whether a candidate is no document of its own for a text: a copy of an earlier candidate, of the
 * text, or of a partner that the same text has in any record. Candidates are the partners, then the negatives.
 */
export function sameTexts(examples: readonly RelatedExample[]): (text: number, candidate: number) => boolean {
  const key = ({ inputIds }: RelatedExample['texts'][number]) => inputIds.join()
  const texts = examples.map(({ texts: [first] }) => key(first))
  const partners = examples.map(({ texts: [, second] }) => key(second))
  const candidates = [
    ...partners,
    ...examples.flatMap(({ texts: [, , third] }) => (third === undefined ? [] : [key(third)])),
  ]
  const right = new Map(texts.map((text) => [text, new Set([text])]))
  for (const [i, text] of texts.entries()) right.get(text)!.add(partners[i])
  const first = new Map([...candidates.entries()].reverse().map(([i, candidate]) => [candidate, i]))
  return (text, candidate) =>
    first.get(candidates[candidate]) !== candidate || right.get(texts[text])!.has(candidates[candidate])
}

interface Vector {
  /** The vector, scaled to length 1. */
  readonly direction: Float64Array
  readonly norm: number
  /** The derivative of the loss by `direction`. */
  gradient?: Float64Array
}

/**
 * Cosines between texts and the other texts of a step, and the gradients of a loss over them for each vector. They are
 * computed outside the graph because they compare vectors of different runs (GradCache: Gao et al. 2021, arXiv
 * 2101.06983).
 */
export class Cosines {
  readonly count: number
  readonly #groups: readonly (readonly Vector[])[]

  /** `rows`: for each example the vectors (k) of its text, its partner and perhaps its negative. */
  constructor(rows: readonly (readonly Float32Array[])[]) {
    this.count = rows.length
    this.#groups = rows[0].map((_, group) => rows.map((vectors) => directed(vectors[group])))
  }

  /** How many candidates each text has in an example: 1 for a partner alone, 2 for a partner and a negative. */
  get groups(): number {
    return this.#groups.length - 1
  }

  /** Returns the cosine between text i and the partner (group 1) or the negative (group 2) of example j. */
  of(i: number, group: number, j: number): number {
    const [a, b] = [this.#groups[0][i].direction, this.#groups[group][j].direction]
    let sum = 0
    for (let k = 0; k < a.length; k++) sum += a[k] * b[k]
    return sum
  }

  /** Adds to the gradients what a cosine contributes. `slope` is the derivative of the loss by this cosine. */
  add(i: number, group: number, j: number, slope: number): void {
    const [a, b] = [this.#groups[0][i], this.#groups[group][j]]
    a.gradient ??= new Float64Array(a.direction.length)
    b.gradient ??= new Float64Array(b.direction.length)
    for (let k = 0; k < a.direction.length; k++) {
      a.gradient[k] += slope * b.direction[k]
      b.gradient[k] += slope * a.direction[k]
    }
  }

  /** Returns the gradients for the unscaled vectors v of each group: (g − (g·u)·u) / ‖v‖ with u = v / ‖v‖. */
  gradients(): Float32Array[][] {
    return this.#groups.map((vectors) =>
      vectors.map(({ direction, norm, gradient = new Float64Array(direction.length) }) => {
        const along = gradient.reduce((sum, value, k) => sum + value * direction[k], 0)
        return Float32Array.from(gradient, (value, k) => (value - along * direction[k]) / norm)
      }),
    )
  }
}

function directed(vector: Float32Array): Vector {
  let sum = 0
  for (const value of vector) sum += value * value
  const norm = Math.max(Math.sqrt(sum), 1e-12)
  return { direction: Float64Array.from(vector, (value) => value / norm), norm }
}

/**
 * Makes each text find its partner among the partners of all examples and the negatives: cross-entropy of cos /
 * temperature, as MultipleNegativesRankingLoss of sentence-transformers (scale = 1 / temperature).
 *
 * @param isSame whether a candidate is a copy of a right or an earlier one, and so does not count as a negative
 */
export function inBatchLoss(
  cosines: Cosines,
  temperature: number,
  isSame: (text: number, candidate: number) => boolean = () => false,
): number {
  const { count } = cosines
  let loss = 0
  for (let i = 0; i < count; i++) {
    const logits = Array.from({ length: cosines.groups }, (_, g) =>
      Float64Array.from({ length: count }, (_, j) => {
        const isLeftOut = (g > 0 || j !== i) && isSame(i, g * count + j)
        return isLeftOut ? Number.NEGATIVE_INFINITY : cosines.of(i, g + 1, j) / temperature
      }),
    )
    const most = Math.max(...logits.map((list) => list.reduce((a, b) => Math.max(a, b))))
    const sum = logits.reduce((total, list) => total + list.reduce((a, logit) => a + Math.exp(logit - most), 0), 0)
    loss += (most + Math.log(sum) - logits[0][i]) / count
    for (const [g, list] of logits.entries()) {
      for (let j = 0; j < count; j++) {
        const probability = Math.exp(list[j] - most) / sum
        const slope = (probability - (g === 0 && i === j ? 1 : 0)) / (count * temperature)
        if (slope !== 0) cosines.add(i, g + 1, j, slope)
      }
    }
  }
  return loss
}

/** CosineSimilarityLoss of sentence-transformers: the mean of (cos − score)² over the pairs. */
function cosineLoss(cosines: Cosines, scores: readonly number[]): number {
  const { count } = cosines
  let loss = 0
  for (let i = 0; i < count; i++) {
    const difference = cosines.of(i, 1, i) - scores[i]
    loss += (difference * difference) / count
    cosines.add(i, 1, i, (2 * difference) / count)
  }
  return loss
}

/** TripletLoss of sentence-transformers: the mean of max(0, cos(text, negative) − cos(text, partner) + margin). */
function tripletLoss(cosines: Cosines, margin: number): number {
  const { count } = cosines
  let loss = 0
  for (let i = 0; i < count; i++) {
    const excess = cosines.of(i, 2, i) - cosines.of(i, 1, i) + margin
    if (excess <= 0) continue
    loss += excess / count
    cosines.add(i, 2, i, 1 / count)
    cosines.add(i, 1, i, -1 / count)
  }
  return loss
}
