// Opens the model and the adapters, evaluates or mines negatives, and closes them. Code loads with the first call.

import type { ByteSource, Source } from '../core/base/bytes.js'
import { checkOptions } from '../core/base/options.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { Model } from '../model/model-folder.js'
import { MODEL } from '../model/source-values.js'
import type { EvaluateSettings } from '../train/evaluate/evaluate-adapters.js'
import type { EvaluateReport } from '../train/evaluate/report.js'
import type { Data, TrainingData, TrainOptions } from '../train/options.js'
import type { Mined } from '../train/search/mine.js'
import type { MineCorpusSettings } from '../train/search/mine-corpus.js'
import { openAdapter } from './adapters.js'
import { EVALUATE_OPTIONS, MINE_OPTIONS } from './gen/options.js'
import type { AdapterToMerge } from './merge-options.js'
import { loadModel } from './model.js'
import { withOpened } from './open-run.js'
import { platform } from './platform/platform.js'
import { openData } from './sources.js'

/** Options of {@link evaluate}. */
export interface EvaluateOptions extends EvaluateSettings, Pick<TrainOptions, 'dtype'> {
  /** The base: an open model (`evaluate` does not close it), or any source that {@link loadModel} accepts. */
  readonly model: Model | Source
  /** Adapters by their names in the report; a list is a mix, with the sum of their changes. Default: the base alone. */
  readonly adapters?: Readonly<Record<string, LoraAdapter | Source | readonly AdapterToMerge[]>> | undefined
  /** The records: in the same forms as for `train`. They should not be in the training data. */
  readonly data: Data
  /**
   * Documents, for embedding models: each record of `data` is a question with the text of its document, and the
   * measures tell how well the question finds it among all documents. A folder of texts, records with `id` and `text`,
   * or a folder in BEIR's layout, with its qrels as `data`. Default: the loss and metrics of the task.
   */
  readonly corpus?: Data | undefined
}

export async function evaluate(options: EvaluateOptions): Promise<EvaluateReport> {
  checkOptions(options, 'evaluate', EVALUATE_OPTIONS)
  const { model: _model, dtype: _dtype, adapters: named = {}, data: _data, corpus, ...settings } = options
  const adapters: Record<string, LoraAdapter> = {}
  for (const [name, adapter] of Object.entries(named)) {
    if (Array.isArray(adapter)) {
      const { combine } = await import('./tools.js')
      adapters[name] = (await combine({ adapters: adapter })).adapter
    } else adapters[name] = await openAdapter(adapter as LoraAdapter | Source, `adapters.${name}`)
  }
  if (corpus !== undefined) {
    return withCorpus(corpus, async (documents) => {
      const { evaluateSearch } = await import('../train/search/evaluate-search.js')
      return withOpened(options, (model, data) =>
        evaluateSearch(model, adapters, { data, corpus: documents! }, settings),
      )
    })
  }
  if (options.measure === 'calls') {
    const { evaluateCalls } = await import('../train/calls/evaluate-calls.js')
    return withOpened(options, (model, data) => evaluateCalls(model, adapters, data, settings))
  }
  return withOpened(options, async (model, data) => {
    const { evaluateAdapters } = await import('../train/evaluate/evaluate-adapters.js')
    const { decodeImage = platform().decodeImage } = settings
    return evaluateAdapters(model, adapters, data, { ...settings, decodeImage })
  })
}

/** Options of {@link mineNegatives}. */
export interface MineOptions extends MineCorpusSettings, Pick<TrainOptions, 'dtype'> {
  /** The model whose vectors find negatives: an open one, which stays open, or any source of {@link loadModel}. */
  readonly model: Model | Source
  /** An adapter of this model. */
  readonly adapter?: LoraAdapter | Source | undefined
  /** Pairs of questions and documents, as for training. */
  readonly data: Data
  /**
   * Questions that are held out: their documents are never negatives. Default: of the pairs those that `train` would
   * hold out.
   */
  readonly evalData?: Data | undefined
  /**
   * A reranker, whose scores replace those of the vectors if a margin or `maxScore` is set.
   * @flag DIR|ID
   */
  readonly reranker?: Model | Source | undefined
  /**
   * Documents to mine from: a folder of texts, records with `id` and `text`, or BEIR's layout. Default: those of the
   * pairs.
   */
  readonly corpus?: Data | undefined
}

export async function mineNegatives(options: MineOptions): Promise<Mined> {
  checkOptions(options, 'mineNegatives', MINE_OPTIONS)
  const {
    adapter,
    corpus,
    reranker,
    model: _model,
    data: _data,
    evalData: _evalData,
    dtype: _dtype,
    ...settings
  } = options
  const lora = adapter === undefined ? undefined : await openAdapter(adapter, 'adapter')
  return withCorpus(corpus, async (documents) => {
    const { mineCorpus } = await import('../train/search/mine-corpus.js')
    return withOpened(options, async (model, data, evalData) => {
      const isOpen = reranker === undefined || MODEL.accepts(reranker)
      const scorer = isOpen ? (reranker as Model | undefined) : await loadModel(reranker as Source)
      const mining = mineCorpus(model, lora, { data, evalData, corpus: documents, reranker: scorer }, settings)
      return mining.finally(() => (isOpen ? undefined : scorer?.close()))
    })
  })
}

async function withCorpus<T>(corpus: Data | undefined, work: (corpus: TrainingData | undefined) => Promise<T>) {
  const opened: ByteSource[] = []
  try {
    const documents =
      corpus === undefined ? undefined : await openData(corpus, 'corpus', (file) => void opened.push(file))
    return await work(documents)
  } finally {
    await Promise.all(opened.map((file) => file.close()))
  }
}
