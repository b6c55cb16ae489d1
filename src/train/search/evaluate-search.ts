// Measures how well vectors find the documents of a corpus: for the base and each adapter, over the same questions.

import { ConfigError, counted, DataError } from '../../core/base/errors.js'
import { Steps } from '../../core/base/progress.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { otherWeights } from '../../model/base-record.js'
import { encodeTexts } from '../../model/inputs/token-batch.js'
import type { Model } from '../../model/model-folder.js'
import { type InputType, promptOf } from '../../model/sentence-modules.js'
import { ModelSession } from '../../run/model-session.js'
import type { Precision } from '../../run/readings/options.js'
import { quantized, rangesOf, restored } from '../../run/readings/quantize.js'
import { bootstrap, meansOf } from '../evaluate/bootstrap.js'
import { type EvaluateSettings, withVerdicts } from '../evaluate/evaluate-adapters.js'
import type { DifferingRecord, EvaluatedModel, EvaluateReport } from '../evaluate/report.js'
import type { TrainingData } from '../options.js'
import { type CorpusDocument, type Question, readCorpus, readQuestions } from './corpus.js'
import { measuresOf } from './measures.js'
import { best, rankOf, similarities } from './nearest.js'

/** Texts that are embedded between two signs of progress. */
const TOGETHER = 128
const SHOWN_RESULTS = 5
const SHOWN_TEXT = 300
const MAX_RECORD = 2000

interface Contender {
  readonly name: string | null
  /** The measures of each question, and its first results. */
  readonly measures: readonly Readonly<Record<string, number>>[]
  readonly results: readonly (readonly number[])[]
  readonly seconds: number
}

export async function evaluateSearch(
  model: Model,
  adapters: Readonly<Record<string, LoraAdapter>>,
  { data, corpus }: { readonly data: TrainingData; readonly corpus: TrainingData },
  settings: EvaluateSettings,
): Promise<EvaluateReport> {
  const { resamples = 1000, seed = 42, differing = 10, at = [1, 10], against = null, device, threads } = settings
  const { on = { warning: console.warn } } = settings
  const names = [null, ...Object.keys(adapters)]
  if (!names.includes(against)) throw new ConfigError({ where: 'against', what: 'no such adapter', got: against! })
  const documents = await readCorpus(corpus)
  const asked = await readQuestions(data, corpus, documents, settings.columns)
  const questions = asked.filter(({ grades }) => [...grades.values()].some((grade) => grade >= 1))
  if (questions.length === 0) throw new DataError({ where: 'data', what: 'no question has a relevant document' })
  const left = asked.length - questions.length
  if (left > 0) on.warning?.(`left out, because they have no relevant document: ${counted(left, 'question')}`)
  for (const [name, { trainedOn }] of Object.entries(adapters)) {
    const difference = await otherWeights(trainedOn, model)
    if (difference !== undefined) on.warning?.(`${name}: ${difference}`)
  }
  const steps = new Steps(names.length * (documents.length + questions.length), settings)
  const session = await ModelSession.open(model, { adapters, device, threads }, false, {
    onWarning: on.warning ?? (() => {}),
  })
  const contenders: Contender[] = []
  try {
    for (const name of [against, ...names.filter((name) => name !== against)]) {
      const startedAt = performance.now()
      const embedAll = async (texts: readonly string[], inputType: InputType) => {
        const prompt = promptFor(model, adapters, name, inputType, settings)
        const vectors: Float32Array[] = []
        for (let from = 0; from < texts.length; from += TOGETHER) {
          const part = texts.slice(from, from + TOGETHER)
          const { maxLength, batchSize = 32, dimensions, signal } = settings
          const how = { adapter: name, prompt, maxLength, batchSize, dimensions, signal }
          vectors.push(...(await session.embed(part, how)))
          for (const _ of part) await steps.next(name ?? 'base')
        }
        return vectors
      }
      const ofDocuments = await embedAll(
        documents.map(({ text }) => text),
        'document',
      )
      const ofQuestions = await embedAll(
        questions.map(({ text }) => text),
        'query',
      )
      contenders.push({
        name,
        ...ranked(ofQuestions, ofDocuments, questions, settings),
        seconds: (performance.now() - startedAt) / 1000,
      })
    }
  } finally {
    await session.dispose()
  }
  const statistics = contenders.map(({ measures }) => meansOf(measures))
  const intervals = bootstrap(statistics, questions.length, { resamples, seed })
  const tokensOf = (text: string) => encodeTexts(model, text, undefined, Number.POSITIVE_INFINITY).inputIds.length
  const models = contenders.map(({ name, seconds }, i): EvaluatedModel => {
    const { metrics, differences } = intervals[i]
    return { name, metrics, differences: differences && withVerdicts(differences, []), seconds }
  })
  const differBy = `ndcg@${Math.max(...at)}`
  return {
    task: 'search',
    records: questions.length,
    tokens: [...documents, ...questions].reduce((sum, { text }) => sum + tokensOf(text), 0),
    documents: documents.length,
    lowerIsBetter: [],
    models,
    differBy: contenders.length > 1 ? differBy : null,
    differing: wonAndLost(contenders, questions, documents, { differBy, count: differing }),
  }
}

/** The base gets the prompts of the first adapter, so that only the weights differ. */
function promptFor(
  { sentence }: Model,
  adapters: Readonly<Record<string, LoraAdapter>>,
  name: string | null,
  type: InputType,
  { taskOptions = {} }: EvaluateSettings,
): string {
  const given = taskOptions[type === 'query' ? 'queryPrompt' : 'documentPrompt']
  const own = (name === null ? Object.values(adapters)[0] : adapters[name])?.prompts
  return typeof given === 'string' ? given : promptOf(sentence, type, own)
}

function ranked(
  ofQuestions: readonly Float32Array[],
  ofDocuments: readonly Float32Array[],
  questions: readonly Question[],
  { at = [1, 10], precision = 'float32', rescore = 2 }: EvaluateSettings,
): Pick<Contender, 'measures' | 'results'> {
  const measures: Record<string, number>[] = []
  const results: number[][] = []
  const asStored = precision === 'float32' ? undefined : storedBy(precision, ofDocuments)
  const [queries, documents] = [ofQuestions, ofDocuments].map((vectors) => (asStored ? vectors.map(asStored) : vectors))
  for (const { query, scores: first } of similarities(queries, documents)) {
    const scores =
      asStored === undefined
        ? first
        : rescored(first, best(first, rescore * Math.max(...at)), ofQuestions[query], documents)
    const graded = [...questions[query].grades].filter(([, grade]) => grade > 0)
    measures.push(
      measuresOf(
        graded.map(([document, grade]) => ({ rank: rankOf(scores, document), grade })),
        at,
      ),
    )
    results.push(best(scores, SHOWN_RESULTS))
  }
  return { measures, results }
}

/** Gives what an index of few bits knows of a vector. */
function storedBy(precision: Exclude<Precision, 'float32'>, documents: readonly Float32Array[]) {
  const ranges = rangesOf(documents)
  return (vector: Float32Array) =>
    restored(quantized(vector, precision, ranges), precision, { ranges, size: vector.length })
}

/** Orders the first results by the question's whole vector, before all others. */
function rescored(
  scores: Float32Array,
  first: readonly number[],
  question: Float32Array,
  documents: readonly Float32Array[],
): Float64Array {
  // Scores of bits go up to the number of bits.
  const all = Float64Array.from(scores, (score) => score - 4 * question.length)
  for (const place of first) all[place] = documents[place].reduce((sum, value, i) => sum + value * question[i], 0)
  return all
}

/** The questions that the second model answers best and worst, compared with the first, in about equal numbers. */
function wonAndLost(
  [first, ...others]: readonly Contender[],
  questions: readonly Question[],
  documents: readonly CorpusDocument[],
  { differBy, count }: { readonly differBy: string; readonly count: number },
): DifferingRecord[] {
  if (others.length === 0) return []
  const gain = (i: number) => others[0].measures[i][differBy] - first.measures[i][differBy]
  const order = [...questions.keys()].filter((i) => gain(i) !== 0).sort((a, b) => gain(b) - gain(a))
  const [won, lost] = [order.filter((i) => gain(i) > 0), order.filter((i) => gain(i) < 0).reverse()]
  const half = Math.ceil(count / 2)
  const shown = [
    ...won.slice(0, Math.max(half, count - lost.length)),
    ...lost.slice(0, Math.max(count - half, count - won.length)),
  ]
  const textOf = (document: number) => {
    const { id, text } = documents[document]
    return `${id}: ${text.length > SHOWN_TEXT ? `${text.slice(0, SHOWN_TEXT)}…` : text}`
  }
  return shown.map((i) => {
    const { where, record, grades } = questions[i]
    const relevant = [...grades].filter(([, grade]) => grade >= 1).map(([document]) => document)
    const mark = (document: number) => (relevant.includes(document) ? ' ✓' : '')
    const list = (results: readonly number[]) =>
      results.map((document, place) => `${place + 1}.${mark(document)} ${textOf(document)}`).join('\n')
    return {
      where,
      record: record.slice(0, MAX_RECORD),
      values: [first, ...others].map(({ measures }) => measures[i][differBy]),
      wanted: relevant.map(textOf).join('\n'),
      answers: [first, ...others].map(({ results }) => list(results[i])),
    }
  })
}
