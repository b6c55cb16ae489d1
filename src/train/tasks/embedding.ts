// Embedding: one vector for each text, so that texts with similar meanings have similar vectors, pooled as the model
// does it. The loss compares all vectors of a step, so a step takes two passes.

import { ConfigError, DataError, UnsupportedError } from '../../core/base/errors.js'
import { Random } from '../../core/base/random.js'
import { joinedUp } from '../../core/base/tensor.js'
import { appendDense } from '../../model/dense-layer.js'
import { appendPooling, textVectors, tokenVectors, trainedPooling } from '../../model/heads/head-rows.js'
import { type EncodedTexts, encoderFeeds, encodeTexts } from '../../model/inputs/token-batch.js'
import { encoderInputs } from '../../model/inputs/tokens.js'
import type { Model } from '../../model/model-folder.js'
import { type Prompts, promptOf, type SentenceModules } from '../../model/sentence-modules.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Value } from '../../onnx/view/builder.js'
import { readGraph } from '../../onnx/view/graph.js'
import type { ObjectiveGraph } from '../graph/objective-graph.js'
import { similarities } from '../search/nearest.js'
import { EMBEDDING_OPTIONS } from './gen/options.js'
import { meansOf, retrievalValues, spearman } from './metrics.js'
import type { Evaluated, Examples, GuideVectors, OpenTask, StepRun, Task } from './task.js'
import { predictedRows, tokenProbe } from './token-probe.js'
import * as losses from './vectors/losses.js'
import { LOSSES, type LossName } from './vectors/losses.js'
import { parseRelatedTexts, type RelatedTexts, relatedFields } from './vectors/related-texts.js'
import { StepVectors } from './vectors/step-vectors.js'

export interface RelatedExample {
  /** A query, its document, and documents that are wrong. `text` is kept only for a guide, without prompts. */
  readonly texts: readonly (Omit<EncodedTexts, 'isTruncated'> & { readonly text?: string })[]
  readonly score: RelatedTexts['score']
}

export interface EmbeddingOptions {
  /**
   * The loss, by the names of sentence-transformers: MultipleNegativesRanking, CachedGISTEmbed (its guide is the option
   * `teacher`, or else the base), MarginMSE and DistillKLDiv (from the scores of a teacher), CoSENT, AnglE,
   * CosineSimilarity or Triplet. Default: CosineSimilarity if rows have scores, else MultipleNegativesRanking.
   */
  readonly loss?: LossName | undefined
  /**
   * Factor of the cosines in MultipleNegativesRanking, CoSENT and AnglE.
   * @range a finite number above 0
   * @default 20
   */
  readonly scale?: number | undefined
  /**
   * Divisor of the similarities: 0.01 in CachedGISTEmbed, 1 in DistillKLDiv.
   * @range a finite number above 0
   */
  readonly temperature?: number | undefined
  /**
   * How much further a negative must be: 0.2 in Triplet, in cosines, and 0 in CachedGISTEmbed, by the guide.
   * @range a finite number of at least 0
   */
  readonly margin?: number | undefined
  /**
   * Whether the margin of CachedGISTEmbed is a cosine, or a share of the right document's.
   * @default absolute
   */
  readonly marginStrategy?: 'absolute' | 'relative' | undefined
  /**
   * MultipleNegativesRanking also makes each document find its query.
   * @default false
   */
  readonly symmetric?: boolean | undefined
  /** Sums the loss over the first numbers of the vectors, such as [384, 128, 64] (Matryoshka). Default: all alone. */
  readonly matryoshkaDims?: readonly number[] | undefined
  /** What is put before queries, such as "query: ". Default: as the adapter or the model says. */
  readonly queryPrompt?: string | undefined
  /** What is put before documents, such as "passage: ". Default: as the adapter or the model says. */
  readonly documentPrompt?: string | undefined
}

const GRADIENT = 'loss/vector-gradients'
const MASK = 'attention_mask'
const RECALLS = [1, 10]
/** More documents would make evaluations as slow as training. */
const MOST_OTHERS = 2000

const promptsOf = ({ queryPrompt: query, documentPrompt: document }: EmbeddingOptions): Prompts | undefined =>
  query === undefined && document === undefined
    ? undefined
    : { ...(query !== undefined && { query }), ...(document !== undefined && { document }) }

export const embedding: Task<RelatedTexts, RelatedExample, EmbeddingOptions> = {
  name: 'embedding',
  peftType: 'FEATURE_EXTRACTION',
  learningRate: 2e-4,
  loraPlusRatio: 1,
  epochs: 5,
  stepSize: 64,
  learns: 'to turn texts into vectors, like ones for like meanings',
  takes: (options) => (options?.loss === 'CachedGISTEmbed' ? ['teacher'] : []),
  records: [
    { text: 'How was the sea?', textPair: 'The sea was calm.' },
    { query: 'How was the sea?', passage: 'The sea was calm.', negatives: ['The soup was hot.', 'It rained.'] },
    { anchor: 'How was the sea?', positive: 'The sea was calm.', negative: 'The soup was hot.' },
    { text: 'The sea was calm.', textPair: 'The water lay still.', score: 0.9 },
    ...[
      { anchor: 'How was the sea?', positive: 'The sea was calm.' },
      { query: 'How was the sea?', positive: 'The sea was calm.' },
    ],
    { query: 'How was the sea?', passage: 'The sea was calm.' },
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

  reads: relatedFields,

  parse: parseRelatedTexts,

  pairs: ({ groups, score }) => (typeof score === 'number' && groups[0].length === 2 ? undefined : groups),

  encode({ groups, score, isSymmetric }, { model, maxLength, taskOptions = {} }) {
    const options: EmbeddingOptions = taskOptions
    const limit = Math.min(maxLength, model.sentence.maxLength ?? Number.POSITIVE_INFINITY)
    const isGuided = options.loss === 'CachedGISTEmbed'
    let isTruncated = false
    const examples = groups.map((group): RelatedExample => {
      const texts = group.map((text, i) => {
        const type = isSymmetric ? undefined : i === 0 ? 'query' : 'document'
        const prompt = promptOf(model.sentence, type, promptsOf(options))
        const { isTruncated: isCut, ...encoded } = encodeTexts(model, prompt + text, undefined, limit)
        isTruncated ||= isCut
        return isGuided ? { ...encoded, text } : encoded
      })
      return { texts, score }
    })
    return { examples, isTruncated }
  },

  tokens: ({ texts: [{ inputIds: ids }] }) => ({ ids, counts: () => false }),

  open: (model, examples, options = {}) => new Embedding(model, examples, options),
}

class Embedding implements OpenTask<RelatedExample> {
  readonly probe: OpenTask['probe']
  readonly prompts: Prompts | undefined
  readonly guided: OpenTask<RelatedExample>['guided']
  readonly #feeds: ReturnType<typeof encoderFeeds>
  readonly #sentence: SentenceModules
  readonly #loss: LossName
  readonly #options: EmbeddingOptions
  #guide: GuideVectors | undefined
  readonly rowsOfExample: number
  readonly chooses: string | undefined

  constructor(model: Model, examples: Examples<RelatedExample>, options: EmbeddingOptions) {
    const graph = readGraph(model.onnx)
    this.#feeds = encoderFeeds(model, graph)
    this.#sentence = model.sentence
    this.prompts = promptsOf(options)
    const first = examples.at(0)!
    this.rowsOfExample = first.texts.length
    this.#options = options
    this.#loss = options.loss ?? (first.score === undefined ? 'MultipleNegativesRanking' : 'CosineSimilarity')
    this.#checkOptions()
    if (!this.#isScored(first)) this.chooses = 'corpusRecall@10,corpusMrr'
    if (this.#loss === 'CachedGISTEmbed') {
      this.guided = {
        texts: (example) => example.texts.map(({ text }) => text!),
        take: (vectors) => {
          this.#guide = vectors
        },
      }
    }
    for (const example of examples) this.checkEvaluation(example)
    const { batches, lengths } = tokenProbe(graph)
    const [a, b] = batches.map(({ batch, sequence }) => {
      const inputIds = new Int32Array(sequence)
      return this.#feeds(Array(batch).fill({ inputIds, tokenTypeIds: inputIds }), sequence)
    })
    this.probe = { feeds: [a, b], lengths }
  }

  #checkOptions(): void {
    const { scale, temperature, margin, marginStrategy, symmetric } = this.#options
    const only = (name: string, value: unknown, names: readonly LossName[], expected?: string) => {
      if (value === undefined || names.includes(this.#loss)) return
      const what = `the loss ${this.#loss} has no ${name}`
      throw new ConfigError({
        where: `taskOptions.${name}`,
        what,
        expected: expected ?? `the loss ${names.join(' or ')}`,
      })
    }
    const scaled = ['MultipleNegativesRanking', 'CoSENT', 'AnglE'] as const
    const hint = (scaled as readonly string[]).includes(this.#loss) ? 'scale, which is 1 / temperature' : undefined
    only('temperature', temperature, ['CachedGISTEmbed', 'DistillKLDiv'], hint)
    only('scale', scale, scaled)
    only('margin', margin, ['Triplet', 'CachedGISTEmbed'])
    only('marginStrategy', marginStrategy, ['CachedGISTEmbed'])
    only('symmetric', symmetric, ['MultipleNegativesRanking'])
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

  /** The documents of training that are no candidates of the evaluation. Each is an example of one text. */
  others(trained: Examples<RelatedExample>, evaluated: Examples<RelatedExample>): RelatedExample[] {
    if (this.chooses === undefined) return []
    const documents = (examples: Examples<RelatedExample>) =>
      [...examples].flatMap(({ texts }) => texts.slice(1).map((text) => [text.inputIds.join(), text] as const))
    const known = new Set(documents(evaluated).map(([key]) => key))
    const others = [...new Map(documents(trained).filter(([key]) => !known.has(key))).values()]
    const drawn = others.length > MOST_OTHERS ? new Random(0, 'corpus').shuffle(others).slice(0, MOST_OTHERS) : others
    return drawn.map((text) => ({ texts: [text], score: undefined }))
  }

  collate(examples: readonly RelatedExample[], length: number): Feeds {
    const all = Array.from({ length: examples[0].texts.length }, (_, i) => examples.map(({ texts }) => texts[i])).flat()
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
    const rows = runs.flatMap((run) => this.predict(run.outputs, run.examples))
    const width = rows[0][0].length
    const { matryoshkaDims = [width] } = this.#options
    const tooLong = matryoshkaDims.find((size) => size > width)
    if (tooLong !== undefined) {
      const what = 'larger than the vectors of the model'
      throw new ConfigError({
        where: 'taskOptions.matryoshkaDims',
        what,
        expected: `at most ${width}`,
        got: `${tooLong}`,
      })
    }
    // These losses compare products, as sentence-transformers does; vectors that are cut always have the length 1.
    const isProduct = LOSSES[this.#loss] === 'teacher' && this.#options.matryoshkaDims === undefined
    let loss = 0
    const gradients = new StepVectors(rows).zeros()
    for (const size of matryoshkaDims) {
      const vectors = new StepVectors(rows, size, !isProduct || this.#sentence.normalize)
      loss += this.#lossOf(vectors, examples)
      vectors.addGradients(gradients)
    }
    let from = 0
    const feeds = runs.map((run): Feeds => {
      const ofRun = gradients.flatMap((group) => group.slice(from, from + run.examples.length))
      from += run.examples.length
      const data = joinedUp(ofRun.map((vector) => Float32Array.from(vector)))
      return { [GRADIENT]: { type: 'float32', data, dims: [ofRun.length, width] } }
    })
    return { loss, feeds }
  }

  #lossOf(vectors: StepVectors, examples: readonly RelatedExample[]): number {
    const { scale = 20, temperature, margin, marginStrategy, symmetric } = this.#options
    const numbers = () => examples.map(({ score }) => score as number)
    const lists = () => examples.map(({ score }) => [score!].flat())
    switch (this.#loss) {
      case 'MultipleNegativesRanking':
        return losses.multipleNegatives(vectors, scale, symmetric, sameTexts(examples))
      case 'CachedGISTEmbed': {
        const guide = new StepVectors(
          examples.map(({ texts }) => texts.map(({ text }, i) => this.#guide!(text!, i === 0))),
        )
        const isRelative = marginStrategy === 'relative'
        return losses.guidedLoss(vectors, guide, { temperature: temperature ?? 0.01, margin: margin ?? 0, isRelative })
      }
      case 'CosineSimilarity':
        return losses.cosineSimilarity(vectors, numbers())
      case 'CoSENT':
      case 'AnglE': {
        const scores = examples[0].score === undefined ? undefined : numbers()
        return losses.orderLoss(vectors, scores, scale, this.#loss === 'AnglE')
      }
      case 'Triplet':
        return losses.tripletLoss(vectors, margin ?? 0.2)
      case 'MarginMSE':
        return losses.marginMse(vectors, lists())
      case 'DistillKLDiv':
        return losses.distillLoss(vectors, lists(), temperature ?? 1)
    }
  }

  /** True if the metric is how well the scores of pairs are met, and not which document is found. */
  #isScored(example: RelatedExample): boolean {
    return LOSSES[this.#loss] === 'score' && example.score !== undefined
  }

  metrics({ examples, predictions, others }: Evaluated<RelatedExample>): Record<string, number> {
    if (!this.#isScored(examples[0])) {
      const values = meansOf(this.values({ examples, predictions }))
      if (others === undefined) return values
      const [rows, documents] = [predictions, others] as (readonly Float32Array[][])[]
      return { ...values, ...inCorpus(examples, rows, documents.flat()) }
    }
    const vectors = new StepVectors(predictions as readonly Float32Array[][])
    const found = predictions.map((_, row) => vectors.product(0, row, 1, row))
    return {
      spearman: spearman(
        found,
        examples.map(({ score }) => score as number),
      ),
    }
  }

  values({ examples, predictions }: Omit<Evaluated<RelatedExample>, 'loss'>): Record<string, number[]> {
    if (this.#isScored(examples[0])) return {}
    const vectors = new StepVectors(predictions as readonly Float32Array[][])
    const score = (query: number, candidate: number) => vectors.product(0, query, 1, candidate)
    return retrievalValues(predictions.length, score, RECALLS, sameTexts(examples))
  }

  checkEvaluation({ texts, score }: RelatedExample): void {
    const refuse = (what: string, expected: string, got: string) =>
      new DataError({ where: 'data', what, expected, got })
    const [loss, negatives] = [this.#loss, texts.length - 2]
    if (texts.length !== this.rowsOfExample) {
      const few = texts.length === 2 || this.rowsOfExample === 2
      const what = few
        ? 'some records have a negative, others have none'
        : 'records have different numbers of negatives'
      throw refuse(what, `${this.rowsOfExample} texts`, `${texts.length}`)
    }
    const isNumber = typeof score === 'number'
    if (loss === 'CosineSimilarity' && isNumber && Math.abs(score) > 1) {
      throw refuse('score is no number between −1 and 1', 'a cosine', String(score))
    }
    const needs = LOSSES[loss]
    if (needs === 'score' && !isNumber && !(loss === 'AnglE' && score === undefined && negatives > 0)) {
      throw refuse(
        `a record has no score, which the loss ${loss} needs`,
        'a score',
        score === undefined ? 'none' : 'a list',
      )
    }
    if (needs === 'texts' && score !== undefined && this.#options.loss === undefined) {
      throw refuse('some records have a score, others have none', 'no score', String(score))
    }
    if (loss === 'Triplet' && negatives !== 1) {
      throw new ConfigError({ where: 'taskOptions.loss', what: 'Triplet needs one "negative" in each record' })
    }
    if (needs !== 'teacher') return
    const count = score === undefined ? 0 : [score].flat().length
    const counts = loss === 'MarginMSE' ? [negatives, negatives + 1] : [negatives + 1]
    if (negatives > 0 && counts.includes(count)) return
    throw refuse(
      `a record has not the scores that the loss ${loss} needs`,
      `negatives, and "scores": ${loss === 'MarginMSE' ? 'a margin for each negative, or ' : ''}a score for each document`,
      `${negatives} negatives, ${count} scores`,
    )
  }
}

/** How many documents are found among the first ten of all: those of the examples, and others. */
function inCorpus(
  examples: readonly RelatedExample[],
  rows: readonly (readonly Float32Array[])[],
  others: readonly Float32Array[],
): Record<string, number> {
  const unit = (vector: Float32Array) => {
    const norm = Math.hypot(...vector) || 1
    return vector.map((value) => value / norm)
  }
  const ofExamples = rows[0].slice(1).flatMap((_, column) => rows.map((vectors) => vectors[column + 1]))
  const candidates = [...ofExamples, ...others].map(unit)
  const queries = rows.map(([query]) => unit(query))
  const scores = [...similarities(queries, candidates)].map(({ scores }) => scores.slice())
  const isSame = sameTexts(examples)
  const found = retrievalValues(
    rows.length,
    (query, candidate) => scores[query][candidate],
    RECALLS,
    (query, candidate) => candidate < ofExamples.length && isSame(query, candidate),
    candidates.length,
  )
  return meansOf({ 'corpusRecall@10': found['recall@10'], corpusMrr: found.mrr })
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
    ...examples[0].texts.slice(2).flatMap((_, column) => examples.map(({ texts }) => key(texts[column + 2]))),
  ]
  const right = new Map(texts.map((text) => [text, new Set([text])]))
  for (const [i, text] of texts.entries()) right.get(text)!.add(partners[i])
  const first = new Map([...candidates.entries()].reverse().map(([i, candidate]) => [candidate, i]))
  return (text, candidate) =>
    first.get(candidates[candidate]) !== candidate || right.get(texts[text])!.has(candidates[candidate])
}
