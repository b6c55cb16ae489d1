// Trainer: model + records → adapter. Checks what is asked for; what does it is loaded with the first run, so that the
// entry of the package stays small.

import { ConfigError, StateError } from '../base/errors.js'
import { checkColumnNames } from '../data/columns.js'
import { isDataSource } from '../data/source.js'
import { planSplit } from '../data/split.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { type LoraConfig, resolveConfig } from '../lora/config.js'
import { requireHandled, requirePlainConfig } from '../lora/requirements.js'
import { checkTaskName, DEFAULT_TASK } from '../tasks/tasks.js'
import type { TrainerOptions, TrainResult } from './options.js'
import { resolveSettings, TRAIN_DEFAULTS, type TrainSettings } from './settings.js'

/** Trains an adapter of a causal language model. What the options name is open. */
export class Trainer {
  /** The options' settings, with defaults where they have none. */
  readonly settings: TrainSettings
  /** Of the adapter: the options', with defaults; the given adapter's own, if there is one. */
  readonly config: LoraConfig
  readonly #options: TrainerOptions

  /**
   * @throws ConfigError when a setting or the adapter's config is out of range, or options contradict or lack one another;
   *   UnsupportedError when the adapter or its config has more than plain linear layers; StateError when it has no layer, or one
   *   that is merged
   */
  constructor(options: TrainerOptions) {
    this.#options = options
    this.settings = resolveSettings(options)
    checkTaskName(options.task ?? DEFAULT_TASK)
    checkData('data', options.data)
    if (options.evalData !== undefined) checkData('evalData', options.evalData)
    checkTogether(options, this.settings)
    checkColumnNames(options.columns)
    if (options.evalSplit !== undefined) planSplit(options.evalSplit, 0)
    const given = Object.entries(options.config ?? {}).filter(([, value]) => value !== undefined)
    this.config =
      options.adapter?.config ??
      resolveConfig({
        ...TRAIN_DEFAULTS.config,
        baseModel: options.model.name,
        ...Object.fromEntries(given),
      })
    if (options.adapter !== undefined) checkAdapter(options.adapter)
    // What of a head is saved whole, the task decides.
    requirePlainConfig({ ...this.config, modulesToSave: [] }, 'training')
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

function checkData(where: string, data: unknown): void {
  if (isDataSource(data)) return
  throw new ConfigError({
    where,
    what: 'neither records nor a file or folder that is open',
    got: data === null ? 'null' : typeof data,
  })
}

function checkAdapter(adapter: LoraAdapter): void {
  requireHandled(adapter, ['linear', 'replacement'], 'training')
  if (adapter.size === 0) throw new StateError({ where: 'adapter', what: 'it has no layers to train' })
  for (const [name, { merged }] of adapter) {
    if (merged) throw new StateError({ where: name, what: 'it is merged', hint: 'Call unmergeAll() first' })
  }
}

/** Throws ConfigError for options that contradict one another, or lack what they need. */
function checkTogether(options: TrainerOptions, settings: TrainSettings): void {
  if (options.adapter !== undefined && options.config !== undefined) {
    throw new ConfigError({ where: 'config', what: 'an adapter to go on with has a config of its own' })
  }
  if (options.out === undefined && (options.resume || options.overwrite || settings.saveEvery !== undefined)) {
    throw new ConfigError({ where: 'out', what: 'resume, overwrite and saveEvery need an output folder' })
  }
  const { evalData, evalSplit } = options
  if (evalData === undefined && evalSplit === undefined && settings.evaluateEvery !== undefined) {
    throw new ConfigError({ where: 'evalData', what: 'evaluateEvery needs records to evaluate' })
  }
  if (evalData !== undefined && evalSplit !== undefined) {
    throw new ConfigError({ where: 'evalSplit', what: 'there is evalData already' })
  }
  if (options.resume && options.overwrite) {
    throw new ConfigError({ where: 'resume', what: 'a run is resumed or overwritten, not both' })
  }
}
