// Reads pairs and a corpus, embeds them, and mines negatives. Questions that a training would hold out keep their
// documents: nobody gets them as negatives.

import { DataError } from '../../core/base/errors.js'
import { Steps } from '../../core/base/progress.js'
import { readRows } from '../../files/data/read-rows.js'
import type { ColumnNames } from '../../files/data/row.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { encodeTexts } from '../../model/inputs/token-batch.js'
import type { Model } from '../../model/model-folder.js'
import { type InputType, promptOf } from '../../model/sentence-modules.js'
import { ModelSession } from '../../run/model-session.js'
import type { EvaluateEvents } from '../evaluate/evaluate-adapters.js'
import type { TrainingData, TrainOptions } from '../options.js'
import { parseRelatedTexts } from '../tasks/vectors/related-texts.js'
import { type ChunkSettings, chunksOf } from './chunks.js'
import { readCorpus } from './corpus.js'
import { PairsToHoldOut } from './held-out.js'
import { type Mined, type MineSettings, mine } from './mine.js'

/** Texts that are embedded between two signs of progress. */
const TOGETHER = 128

export interface MineCorpusSettings
  extends MineSettings,
    ChunkSettings,
    Pick<TrainOptions, 'device' | 'threads' | 'signal'> {
  /** Field of a record → its name in your data. */
  readonly columns?: ColumnNames | undefined
  /** What is put before queries. Default: as the adapter or the model says. */
  readonly queryPrompt?: string | undefined
  /** What is put before documents. Default: as the adapter or the model says. */
  readonly documentPrompt?: string | undefined
  /**
   * Seed of the strategy `random`.
   * @range a safe integer
   * @default 42
   */
  readonly seed?: number | undefined
  /** Callbacks. Default: warnings go to console.warn. `{}` is silent. */
  readonly on?: EvaluateEvents | undefined
}

interface Sources {
  readonly data: TrainingData
  readonly evalData: TrainingData | undefined
  readonly corpus: TrainingData | undefined
  /** Scores candidates anew. */
  readonly reranker?: Model | undefined
}

type Pairs = readonly (readonly [query: string, document: string])[]

async function readPairs(data: TrainingData, columns: ColumnNames | undefined): Promise<Pairs> {
  const pairs: [string, string][] = []
  for await (const { row, where } of readRows(data, { columns })) {
    const { groups, score } = parseRelatedTexts(row, where)
    if (typeof score === 'number') throw new DataError({ where, what: 'a pair with a score: no document is right' })
    for (const [query, document] of groups) pairs.push([query, document])
  }
  if (pairs.length === 0) throw new DataError({ where: 'data', what: 'it has no pairs' })
  return pairs
}

export async function mineCorpus(
  model: Model,
  adapter: LoraAdapter | undefined,
  { data, evalData, corpus, reranker }: Sources,
  settings: MineCorpusSettings,
): Promise<Mined> {
  const { columns, device, threads, signal, queryPrompt, documentPrompt, seed = 42 } = settings
  const pairs = await readPairs(data, columns)
  const evaluated = evalData === undefined ? heldOutOf(pairs) : await readPairs(evalData, columns)
  const byQuery = new Map<string, string[]>()
  for (const [query, document] of pairs) byQuery.set(query, [...(byQuery.get(query) ?? []), document])
  const mostPositives = [...byQuery.values()].reduce((most, { length }) => Math.max(most, length), 0)

  const given = corpus === undefined ? [] : (await readCorpus(corpus)).map(({ text }) => text)
  const documents = [...new Set([...given, ...pairs.map(([, document]) => document)])]
  const tokensOf = (text: string) => encodeTexts(model, text, undefined, Number.POSITIVE_INFINITY).inputIds.length
  const parts = documents.flatMap((text, document) => {
    return chunksOf(text, tokensOf, settings).map((part) => ({ document, text: part }))
  })
  const places = new Map(documents.map((text, place) => [text, place]))
  const placesOf = (texts: readonly string[]) => [...new Set(texts.flatMap((text) => places.get(text) ?? []))]
  /** Documents that contain one of the passages. */
  const around = (texts: readonly string[]) =>
    documents.flatMap((text, i) => (texts.some((passage) => text.includes(passage)) ? [i] : []))

  const steps = new Steps(parts.length + byQuery.size, settings)
  const adapters = adapter === undefined ? undefined : { adapter }
  const { on = { warning: console.warn } } = settings
  const session = await ModelSession.open(model, { adapters, device, threads }, false, {
    onWarning: on.warning ?? (() => {}),
  })
  try {
    const embedAll = async (texts: readonly string[], type: InputType) => {
      const prompt =
        (type === 'query' ? queryPrompt : documentPrompt) ?? promptOf(model.sentence, type, adapter?.prompts)
      const vectors: Float32Array[] = []
      for (let from = 0; from < texts.length; from += TOGETHER) {
        const some = texts.slice(from, from + TOGETHER)
        const name = adapter === undefined ? null : 'adapter'
        vectors.push(...(await session.embed(some, { adapter: name, prompt, batchSize: 32, signal })))
        for (const _ of some) await steps.next(type)
      }
      return vectors
    }
    const vectors = await embedAll(
      parts.map(({ text }) => text),
      'document',
    )
    const ofQueries = await embedAll([...byQuery.keys()], 'query')
    const queries = [...byQuery].map(([text, positives], i) => {
      return { text, vector: ofQueries[i], positives: placesOf(positives), alsoRight: around(positives) }
    })
    const kept = new Set(around([...new Set(evaluated.map(([, document]) => document))]))
    const scorer = reranker && (await ModelSession.open(reranker, { device, threads }))
    const rerank =
      scorer &&
      (async (query: string, texts: readonly string[]) => {
        const ranked = await scorer.rerank(query, texts, { batchSize: 32, signal })
        return ranked.sort((a, b) => a.index - b.index).map(({ score }) => score)
      })
    const found = mine({ queries, mostPositives, documents, vectors, parts, kept, rerank }, settings, seed)
    return await found.finally(() => scorer?.dispose())
  } finally {
    await session.dispose()
  }
}

/** The pairs that a training without evaluation data would hold out. */
function heldOutOf(pairs: Pairs): Pairs {
  const toHoldOut = new PairsToHoldOut()
  for (const pair of pairs) toHoldOut.add(pair)
  return [...toHoldOut.choose().heldOut].map((place) => pairs[place])
}
