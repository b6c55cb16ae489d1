// Training: opens what the options name, trains, and closes it again. What trains loads with the first call.

import type { ByteSource } from '../base/bytes.js'
import { ConfigError } from '../base/errors.js'
import {
  BOOLEAN,
  checkOptions,
  FUNCTION,
  isObject,
  kind,
  numberKind,
  OBJECT,
  type OptionTable,
  oneOf,
  SIGNAL,
  STRING,
  unknownOption,
} from '../base/options.js'
import type { DtypeChoice } from '../graph/graph-file.js'
import type { Model } from '../graph/model-folder.js'
import { CONFIG_FIELDS } from '../lora/config.js'
import { TASK_NAMES } from '../tasks/tasks.js'
import type { TrainConfig, TrainerOptions, TrainResult } from '../train/options.js'
import type { TrainEvents } from '../train/report.js'
import { SETTINGS_KINDS } from '../train/settings.js'
import { ADAPTER } from './adapters.js'
import { DATA, type Data, openData } from './data.js'
import { DTYPE, loadModel } from './model.js'
import { openTarget, SOURCE, type Source, TARGET, type Target } from './sources.js'

/** What {@link train} takes. */
export interface TrainOptions extends Omit<TrainerOptions, 'model' | 'data' | 'evalData' | 'out'> {
  /** The base: a model that is open, which stays open, or what {@link loadModel} takes. Its weights are read, never changed. */
  readonly model: Model | Source
  /** Which graph of a model that is not open yet: see {@link loadModel}. */
  readonly dtype?: DtypeChoice | undefined
  /** What to learn from: records; the path of a file or folder of them (JSONL, JSON, CSV, TSV, Parquet, text), or a Blob; or several. */
  readonly data: Data
  /** As `data`, for the loss before and after. */
  readonly evalData?: Data | undefined
  /** The folder for adapter, metrics and state. Without it nothing is written. */
  readonly out?: Target | undefined
}

/** A model that is open. */
export const MODEL = kind('a model of loadModel', (value) => isObject(value) && 'onnx' in value && 'runtime' in value)

const OPTIONS: OptionTable<TrainOptions> = {
  ...SETTINGS_KINDS,
  model: kind(`${MODEL.expected}, ${SOURCE.expected}`, (value) => MODEL.accepts(value) || SOURCE.accepts(value)),
  dtype: DTYPE,
  task: oneOf(...TASK_NAMES),
  data: DATA,
  evalData: DATA,
  evalSplit: numberKind('a number between 0 and 1, such as 0.1', (value) => value > 0 && value < 1),
  columns: OBJECT,
  chatTemplate: STRING,
  chatTemplateArgs: OBJECT,
  config: OBJECT,
  adapter: ADAPTER,
  modules: OBJECT,
  out: TARGET,
  resume: BOOLEAN,
  overwrite: BOOLEAN,
  signal: SIGNAL,
  on: OBJECT,
}

const EVENTS: OptionTable<TrainEvents> = { stage: FUNCTION, step: FUNCTION, evaluation: FUNCTION, warning: FUNCTION }

/** See the entry. */
export async function train(options: TrainOptions): Promise<TrainResult> {
  const nested = { config: CONFIG_FIELDS, on: Object.keys(EVENTS) }
  checkOptions(options, { of: 'train', table: OPTIONS, required: ['model', 'data'], nested })
  if (options.on !== undefined) checkOptions(options.on, { of: 'train’s `on`', table: EVENTS })
  checkConfigNames(options.config)
  const closers: (() => Promise<void>)[] = []
  const closeLater = (file: ByteSource) => void closers.push(() => file.close())
  try {
    let { model } = options
    const { dtype, ...rest } = options
    if (MODEL.accepts(model) && dtype !== undefined) {
      throw new ConfigError({ where: 'dtype', what: 'only where the model is not open yet' })
    }
    if (!MODEL.accepts(model)) {
      const opened = await loadModel(model as Source, { dtype, signal: options.signal })
      closers.push(() => opened.close())
      model = opened
    }
    const { Trainer } = await import('../train/trainer.js')
    const trainer = new Trainer({
      ...rest,
      config: await withDefaultTargets(options.config, model as Model),
      model: model as Model,
      data: await openData(options.data, 'data', closeLater),
      evalData: options.evalData === undefined ? undefined : await openData(options.evalData, 'evalData', closeLater),
      out: options.out === undefined ? undefined : openTarget(options.out, 'out'),
    })
    return await trainer.train()
  } finally {
    await Promise.all(closers.map((close) => close()))
  }
}

/** A setting of training is easily written into the config. */
function checkConfigNames(config: TrainConfig | undefined): void {
  for (const name of Object.keys(config ?? {})) {
    if (CONFIG_FIELDS.includes(name)) continue
    throw unknownOption(name, { of: 'train’s `config`', names: CONFIG_FIELDS })
  }
}

/** `default` as targetModules: what PEFT adapts in a model of that type. */
async function withDefaultTargets(config: TrainConfig | undefined, model: Model): Promise<TrainConfig | undefined> {
  if (config?.targetModules !== 'default') return config
  const { defaultTargetModules } = await import('../peft/default-targets.js')
  return { ...config, targetModules: defaultTargetModules(String(model.config.model_type)) }
}
