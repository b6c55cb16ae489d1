// Opens the model and the adapters, evaluates, and closes them. The code that evaluates loads with the first call.

import type { Source } from '../core/base/bytes.js'
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

/** Options of {@link evaluate}. */
export interface EvaluateOptions extends EvaluateSettings, Pick<TrainOptions, 'dtype'> {
  /** The base: an open model (`evaluate` does not close it), or any source that {@link loadModel} accepts. */
  readonly model: Model | Source
  /** Adapters by their names in the report; a list is a mix, with the sum of their changes. Default: the base alone. */
  readonly adapters?: Readonly<Record<string, LoraAdapter | Source | readonly AdapterToMerge[]>> | undefined
  /** The records: in the same forms as for `train`. They should not be in the training data. */
  readonly data: Data
}

export async function evaluate(options: EvaluateOptions): Promise<EvaluateReport> {
  checkOptions(options, 'evaluate', EVALUATE_OPTIONS)
  const { model: _model, dtype: _dtype, adapters: named = {}, data: _data, ...settings } = options
  const adapters: Record<string, LoraAdapter> = {}
  for (const [name, adapter] of Object.entries(named)) {
    if (Array.isArray(adapter)) {
      const { combine } = await import('./tools.js')
      adapters[name] = (await combine({ adapters: adapter })).adapter
    } else adapters[name] = await openAdapter(adapter as LoraAdapter | Source, `adapters.${name}`)
  }
  return withOpened(options, async (model, data) => {
    const { evaluateAdapters } = await import('../train/evaluate/evaluate-adapters.js')
    const { decodeImage = platform().decodeImage } = settings
    return evaluateAdapters(model, adapters, data, { ...settings, decodeImage })
  })
}
