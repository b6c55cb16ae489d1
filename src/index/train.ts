// Training: opens what the options name, trains, and closes it again. What trains loads with the first call.

import type { ByteSource } from '../base/bytes.js'
import { ConfigError } from '../base/errors.js'
import {
  BOOLEAN,
  COUNT,
  checkArgument,
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
import { defaultTargetModules } from '../peft/default-targets.js'
import type { TaskFacts } from '../tasks/task.js'
import { TASK_NAMES, tasksFor } from '../tasks/tasks.js'
import type { RunSources } from '../train/about-run.js'
import type { TrainConfig, TrainingData, TrainingOptions, TrainResult } from '../train/options.js'
import { type PreviewExample, previewExamples } from '../train/preview.js'
import type { TrainEvents } from '../train/report.js'
import { defaultsOf, PRESETS, SETTINGS_KINDS } from '../train/settings.js'
import { train as trainOpened } from '../train/train.js'
import { ADAPTER } from './adapters.js'
import { DATA, type Data, openData } from './data.js'
import { memoryLimits } from './memory.js'
import { DTYPE, loadModel, MODEL } from './model.js'
import { platform } from './platform.js'
import { openTarget, SOURCE, type Source, TARGET, type Target } from './sources.js'

/** Options of {@link train}. */
export interface TrainOptions extends Omit<TrainingOptions, 'model' | 'data' | 'evalData' | 'out' | 'tensorboard'> {
  /**
   * The base: an open model (`train` does not close it), or any source that {@link loadModel} accepts. Its weights are read, never
   * changed.
   */
  readonly model: Model | Source
  /** Which graph of a model that is not open yet: see {@link loadModel}. */
  readonly dtype?: DtypeChoice | undefined
  /** The training data: records; the path of a file or folder with records (JSONL, JSON, CSV, TSV, Parquet, text); a Blob; or a list of files. */
  readonly data: Data
  /** Records for measuring the loss before and after training. Same forms as `data`. */
  readonly evalData?: Data | undefined
  /** The folder for adapter, metrics and state. Without it nothing is written. */
  readonly out?: Target | undefined
  /**
   * A folder for TensorBoard: `train` adds an event file with the loss, the learning rate and the norm of the gradients of each step, and
   * with the metrics of each evaluation. Each run should have a folder of its own. A resumed run takes the same folder.
   */
  readonly tensorboard?: Target | undefined
}

const OPTIONS: OptionTable<TrainOptions> = {
  ...SETTINGS_KINDS,
  model: kind(`${MODEL.expected}, ${SOURCE.expected}`, (value) => MODEL.accepts(value) || SOURCE.accepts(value)),
  dtype: DTYPE,
  task: oneOf(...TASK_NAMES),
  taskOptions: OBJECT,
  data: DATA,
  evalData: DATA,
  evalSplit: numberKind('a number between 0 and 1, such as 0.1', (value) => value > 0 && value < 1),
  columns: OBJECT,
  chatTemplate: STRING,
  chatTemplateArgs: OBJECT,
  decodeImage: FUNCTION,
  preset: oneOf(...PRESETS),
  trainedTokens: kind('a list of tokens', (value) => Array.isArray(value) || isObject(value)),
  config: OBJECT,
  adapter: ADAPTER,
  modules: OBJECT,
  out: TARGET,
  tensorboard: TARGET,
  resume: BOOLEAN,
  overwrite: BOOLEAN,
  signal: SIGNAL,
  on: OBJECT,
}

const EVENTS: OptionTable<TrainEvents> = {
  stage: FUNCTION,
  progress: FUNCTION,
  step: FUNCTION,
  evaluation: FUNCTION,
  warning: FUNCTION,
}

/** Options of {@link previewData}: the options of {@link TrainOptions} that change how records become tokens. */
export interface PreviewDataOptions
  extends Pick<
    TrainOptions,
    'model' | 'dtype' | 'data' | 'task' | 'columns' | 'maxLength' | 'chatTemplate' | 'chatTemplateArgs'
  > {
  /** How many examples. Default 3. */
  readonly count?: number | undefined
}

const PREVIEW_OPTIONS: OptionTable<PreviewDataOptions> = {
  model: OPTIONS.model,
  dtype: OPTIONS.dtype,
  data: OPTIONS.data,
  task: OPTIONS.task,
  columns: OPTIONS.columns,
  maxLength: OPTIONS.maxLength,
  chatTemplate: OPTIONS.chatTemplate,
  chatTemplateArgs: OPTIONS.chatTemplateArgs,
  count: COUNT,
}

/** Examples that a preview shows. */
const PREVIEW_COUNT = 3

/** See the entry. */
export async function train(options: TrainOptions, wait?: () => Promise<void> | undefined): Promise<TrainResult> {
  const nested = { config: CONFIG_FIELDS, on: Object.keys(EVENTS) }
  checkOptions(options, { of: 'train', table: OPTIONS, required: ['model', 'data'], nested })
  if (options.on !== undefined) checkOptions(options.on, { of: 'train’s `on`', table: EVENTS })
  checkConfig(options.config)
  return withOpened(options, async (model, data, evalData) => {
    const { dtype: _, ...rest } = options
    return await trainOpened(
      {
        ...rest,
        config: withDefaultTargets(options, model),
        model,
        data,
        evalData,
        decodeImage: options.decodeImage ?? platform().decodeImage,
        out: options.out === undefined ? undefined : openTarget(options.out, 'out'),
        tensorboard: options.tensorboard === undefined ? undefined : openTarget(options.tensorboard, 'tensorboard'),
      },
      { limits: memoryLimits(model), sources: sourcesOf(options), wait },
    )
  })
}

/** See the entry. */
export async function previewData(options: PreviewDataOptions): Promise<PreviewExample[]> {
  checkOptions(options, { of: 'previewData', table: PREVIEW_OPTIONS, required: ['model', 'data'] })
  return withOpened(options, async (model, data) => {
    return previewExamples({ ...options, model, data }, options.count ?? PREVIEW_COUNT)
  })
}

/** See the entry. */
export async function trainingTasks(model?: Model): Promise<TaskFacts[]> {
  if (model !== undefined) checkArgument(model, MODEL, 'model')
  const tasks = await tasksFor(model)
  return tasks.map(({ name, learns, records, use, page, learningRate }) => {
    return { name, learns, records, use, ...(page && { page }), ...(learningRate !== undefined && { learningRate }) }
  })
}

/** Names for a file that repeats the run: paths, ids and URLs. Undefined if model or data came from memory. */
function sourcesOf({ model, dtype, data, evalData }: TrainOptions): RunSources | undefined {
  const own = named(data)
  const evaluated = evalData === undefined ? undefined : named(evalData)
  if (typeof model !== 'string' || own === undefined || (evalData !== undefined && evaluated === undefined)) {
    return undefined
  }
  return { model, dtype, data: own, evalData: evaluated }
}

function named(data: Data): string | readonly string[] | undefined {
  if (typeof data === 'string') return data
  return Array.isArray(data) && data.length > 0 && data.every((item) => typeof item === 'string')
    ? (data as readonly string[])
    : undefined
}

/**
 * Opens data and model, runs `work`, and closes what it opened. The data come first: a wrong path should not be found after the
 * download of a model.
 */
async function withOpened<T>(
  { model, dtype, data, evalData, signal }: Pick<TrainOptions, 'model' | 'dtype' | 'data' | 'evalData' | 'signal'>,
  work: (model: Model, data: TrainingData, evalData: TrainingData | undefined) => Promise<T>,
): Promise<T> {
  const isOpen = MODEL.accepts(model)
  if (isOpen && dtype !== undefined) {
    throw new ConfigError({ where: 'dtype', what: 'only for models that are not open yet' })
  }
  const closers: (() => Promise<void>)[] = []
  const closeLater = (file: ByteSource) => void closers.push(() => file.close())
  try {
    const openedData = await openData(data, 'data', closeLater)
    const openedEvalData = evalData === undefined ? undefined : await openData(evalData, 'evalData', closeLater)
    const opened = isOpen ? (model as Model) : await loadModel(model as Source, { dtype, signal })
    if (!isOpen) closers.push(() => opened.close())
    return await work(opened, openedData, openedEvalData)
  } finally {
    await Promise.all(closers.map((close) => close()))
  }
}

/** PEFT reads an alpha of 0, with which an adapter changes nothing and no gradient reaches it. */
const ALPHA = numberKind('a finite number above 0', (value) => value > 0 && Number.isFinite(value))

/** A setting of training is easily written into the config. */
function checkConfig(config: TrainConfig | undefined): void {
  for (const name of Object.keys(config ?? {})) {
    if (CONFIG_FIELDS.includes(name)) continue
    throw unknownOption(name, { of: 'train’s `config`', names: CONFIG_FIELDS })
  }
  if (config?.alpha !== undefined) checkArgument(config.alpha, ALPHA, 'alpha')
}

/** `default` as targetModules: what PEFT adapts in a model of that type. */
function withDefaultTargets({ config, preset, adapter }: TrainOptions, model: Model): TrainConfig | undefined {
  const targets = config?.targetModules ?? (adapter === undefined ? defaultsOf(preset).config.targetModules : undefined)
  if (targets !== 'default') return config
  return { ...config, targetModules: defaultTargetModules(String(model.config.model_type)) }
}
