// Training: opens what the options name, trains, and closes it again. What trains loads with the first call.

import type { ByteSource } from '../base/bytes.js'
import {
  BOOLEAN,
  checkOptions,
  FUNCTION,
  hasMethods,
  isObject,
  kind,
  OBJECT,
  type OptionTable,
  oneOf,
  SIGNAL,
  unknownOption,
} from '../base/options.js'
import type { CausalModel } from '../graph/model-folder.js'
import { CONFIG_FIELDS } from '../lora/config.js'
import { TASK_NAMES } from '../tasks/tasks.js'
import type { TextRecord } from '../text/records.js'
import type { TrainConfig, TrainerOptions, TrainResult } from '../train/options.js'
import type { TrainEvents } from '../train/report.js'
import { SETTINGS_KINDS } from '../train/settings.js'
import { ADAPTER } from './adapters.js'
import { loadModel } from './model.js'
import { openOneFile, openTarget, SOURCE, type Source, TARGET, type Target } from './sources.js'

/** What {@link train} takes. */
export interface TrainOptions extends Omit<TrainerOptions, 'model' | 'data' | 'evalData' | 'out'> {
  /** The base: a model that is open, which stays open, or what {@link loadModel} takes. Its weights are read, never changed. */
  readonly model: CausalModel | Source
  /** What to learn from: records, or a JSONL file of them, by its path or as a Blob. */
  readonly data: readonly TextRecord[] | string | Blob | ByteSource
  /** As `data`, for the loss before and after. */
  readonly evalData?: readonly TextRecord[] | string | Blob | ByteSource | undefined
  /** The folder for adapter, metrics and state. Without it nothing is written. */
  readonly out?: Target | undefined
}

/** A model that is open. */
export const MODEL = kind('a model of loadModel', (value) => isObject(value) && 'onnx' in value && 'runtime' in value)

const DATA = kind(
  'a list of records, or the path of a JSONL file',
  (value) =>
    Array.isArray(value) ||
    (typeof value === 'string' && value !== '') ||
    hasMethods(value, 'read') ||
    hasMethods(value, 'slice', 'arrayBuffer'),
)

const OPTIONS: OptionTable<TrainOptions> = {
  ...SETTINGS_KINDS,
  model: kind(`${MODEL.expected}, ${SOURCE.expected}`, (value) => MODEL.accepts(value) || SOURCE.accepts(value)),
  task: oneOf(...TASK_NAMES),
  data: DATA,
  evalData: DATA,
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
  const openData = async (data: TrainOptions['data'], where: string) => {
    if (Array.isArray(data)) return data as readonly TextRecord[]
    const { file, isOpenedHere } = await openOneFile(data as string | Blob | ByteSource, where)
    if (isOpenedHere) closers.push(() => file.close())
    return file
  }
  try {
    let { model } = options
    if (!MODEL.accepts(model)) {
      const opened = await loadModel(model as Source)
      closers.push(() => opened.close())
      model = opened
    }
    const { Trainer } = await import('../train/trainer.js')
    const trainer = new Trainer({
      ...options,
      config: await withDefaultTargets(options.config, model as CausalModel),
      model: model as CausalModel,
      data: await openData(options.data, 'data'),
      evalData: options.evalData === undefined ? undefined : await openData(options.evalData, 'evalData'),
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
async function withDefaultTargets(
  config: TrainConfig | undefined,
  model: CausalModel,
): Promise<TrainConfig | undefined> {
  if (config?.targetModules !== 'default') return config
  const { defaultTargetModules } = await import('../peft/default-targets.js')
  return { ...config, targetModules: defaultTargetModules(String(model.config.model_type)) }
}
