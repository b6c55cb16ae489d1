// Opens the model and the adapters, evaluates, and closes them. The code that evaluates loads with the first call.

import type { ByteSource, Source } from '../core/base/bytes.js'
import { checkOptions } from '../core/base/options.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { Model } from '../model/model-folder.js'
import type { EvaluateReport, EvaluateSettings } from '../train/evaluate/evaluate-adapters.js'
import type { Data, TrainOptions } from '../train/options.js'
import { openAdapter } from './adapters.js'
import { EVALUATE_OPTIONS } from './gen/options.js'
import type { AdapterToMerge } from './merge-options.js'
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
    const opened: ByteSource[] = []
    const documents = await openData(corpus, 'corpus', (file) => void opened.push(file))
    const { evaluateSearch } = await import('../train/search/evaluate-search.js')
    const search = withOpened(options, (model, data) =>
      evaluateSearch(model, adapters, { data, corpus: documents }, settings),
    )
    return search.finally(() => Promise.all(opened.map((file) => file.close())))
  }
  return withOpened(options, async (model, data) => {
    const { evaluateAdapters } = await import('../train/evaluate/evaluate-adapters.js')
    const { decodeImage = platform().decodeImage } = settings
    return evaluateAdapters(model, adapters, data, { ...settings, decodeImage })
  })
}
