// Trainer: model + records → adapter. Checks what is asked for; what does it is loaded with the first run, so that the
// entry of the package stays small.

import type { ByteSource, Directory } from '../base/bytes.js'
import { ConfigError } from '../base/errors.js'
import type { ModuleMap } from '../graph/linears.js'
import type { CausalModel } from '../graph/model-folder.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { type LoraConfig, type LoraConfigInput, resolveConfig, TRAIN_DEFAULTS } from '../lora/config.js'
import type { TextRecord } from '../text/records.js'
import type { TrainEvents, TrainReport } from './report.js'
import { resolveSettings, type TrainSettings } from './settings.js'

/** Records, or a JSONL file of them. */
export type TrainingData = readonly TextRecord[] | ByteSource

type Optional<T> = { readonly [K in keyof T]?: T[K] | undefined }

export interface TrainerOptions extends Optional<TrainSettings> {
  readonly model: CausalModel
  readonly data: TrainingData
  /** For the loss before and after. */
  readonly evalData?: TrainingData | undefined
  /** Of the new adapter; what it leaves open is as in TRAIN_DEFAULTS. */
  readonly config?: LoraConfigInput | undefined
  /** Goes on with this adapter, whose factors it changes, instead of a new one. */
  readonly adapter?: LoraAdapter | undefined
  /** Module name → name of the node or of its weight, where the graph's own names do not tell. */
  readonly modules?: ModuleMap | undefined
  /** Where adapter, metrics and state go. Without it nothing is written. */
  readonly out?: Directory | undefined
  /** Goes on with the run in `out`: the result is that of a run which was never stopped. */
  readonly resume?: boolean | undefined
  /** Replaces the run in `out`. */
  readonly overwrite?: boolean | undefined
  /** Ends the run after the step under way: it is saved and reported as interrupted. */
  readonly signal?: AbortSignal | undefined
  readonly on?: TrainEvents | undefined
}

export interface TrainResult {
  readonly adapter: LoraAdapter
  readonly report: TrainReport
}

export class Trainer {
  readonly settings: TrainSettings
  readonly config: LoraConfig
  readonly #options: TrainerOptions

  /** @throws ConfigError when a setting or the adapter's config is out of range, or two options contradict */
  constructor(options: TrainerOptions) {
    this.#options = options
    this.settings = resolveSettings(options)
    if (options.adapter !== undefined && options.config !== undefined) {
      throw new ConfigError({ where: 'config', what: 'an adapter to go on with has a config of its own' })
    }
    if (options.out === undefined && (options.resume || options.overwrite || this.settings.saveEvery !== undefined)) {
      throw new ConfigError({ where: 'out', what: 'resume, overwrite and saveEvery need an output folder' })
    }
    if (options.resume && options.overwrite) {
      throw new ConfigError({ where: 'resume', what: 'a run is resumed or overwritten, not both' })
    }
    const given = Object.entries(options.config ?? {}).filter(([, value]) => value !== undefined)
    this.config =
      options.adapter?.config ??
      resolveConfig({
        ...TRAIN_DEFAULTS,
        taskType: 'CAUSAL_LM',
        baseModel: options.model.name,
        ...Object.fromEntries(given),
      })
  }

  /**
   * Trains. Nothing is written before the model, the data and the folder have been found usable.
   *
   * @throws DataError for records, FileError for the folder, MismatchError when no module matches or a run to resume is of
   *   other parts, UnsupportedError for graphs that cannot be trained, NumericError naming the step when the loss is not finite
   *   (the adapter is saved as it was when it last was finite)
   */
  async train(): Promise<TrainResult> {
    const { runTraining } = await import('./run-training.js')
    return runTraining(this.#options, this.settings, this.config)
  }
}
