// Opens the model and the data, trains, and closes them. The code that trains loads with the first call.

import type { ByteSource, Source } from '../core/base/bytes.js'
import { ConfigError } from '../core/base/errors.js'
import { checkArgument, checkOptions, isObject } from '../core/base/options.js'
import { checkAddress } from '../core/base/post-json.js'
import { readRows } from '../files/data/read-rows.js'
import { isByteSource, isDirectory } from '../files/data/row.js'
import { type LoraConfigInput, resolveConfig } from '../lora/config.js'
import { LORA_CONFIG } from '../lora/gen/options.js'
import { defaultTargetModules } from '../lora/peft/default-targets.js'
import type { Model, TextModel } from '../model/model-folder.js'
import { MODEL } from '../model/source-values.js'
import type { GraderModel } from '../train/loop/graders/forms.js'
import { endReward, type Reward } from '../train/loop/graders/rewards.js'
import type { TrainInput, TrainingData, TrainOptions, TrainResult } from '../train/options.js'
import type { DataReport } from '../train/rows/check.js'
import type { RunContext, RunSources } from '../train/run.js'
import { defaultsOf } from '../train/settings.js'
import { noTemplateForChats } from '../train/tasks/causal-lm.js'
import type { TaskFacts, TeacherServer } from '../train/tasks/task.js'
import { checkReadByTask, checkTaskName, tasksFor } from '../train/tasks/tasks.js'
import { train as trainOpened } from '../train/train.js'
import { openAdapter } from './adapters.js'
import { CHECK_DATA_OPTIONS, TRAIN_OPTIONS } from './gen/options.js'
import { type LoadModelOptions, loadForRecords, loadModel, requireChatTemplate } from './model.js'
import { memoryLimits } from './platform/memory.js'
import { platform } from './platform/platform.js'
import { openData, openTarget } from './sources.js'

/** Options of {@link checkData}: the options of {@link TrainOptions} that change how records are read. */
export interface CheckDataOptions
  extends Pick<
    TrainOptions,
    | 'dtype'
    | 'data'
    | 'evalData'
    | 'task'
    | 'columns'
    | 'maxLength'
    | 'chatTemplate'
    | 'chatTemplateArgs'
    | 'decodeImage'
    | 'termsRead'
    | 'signal'
  > {
  /** The model whose tokenizer and chat template are used. Without it, records are read but not encoded. */
  readonly model?: Model | Source | undefined
  /**
   * The number of examples that the report shows as tokens. Needs a model.
   * @range an integer of at least 0
   * @default 0
   */
  readonly preview?: number | undefined
  /**
   * Reading a file ends at this many records that cannot be used. Default: the whole file is read.
   * @range an integer of at least 1
   */
  readonly maxInvalid?: number | undefined
}

export async function train(options: TrainOptions, wait?: () => Promise<void> | undefined): Promise<TrainResult> {
  return withTraining(options, (opened, around) => trainOpened(opened, { ...around, wait }))
}

export async function withTraining<T>(
  options: TrainOptions,
  work: (opened: TrainInput, context: RunContext) => Promise<T>,
): Promise<T> {
  const nested = { config: Object.keys(LORA_CONFIG) }
  checkOptions(options, 'train', TRAIN_OPTIONS, { nested })
  await checkReadByTask(options)
  resolveConfig(options.config)
  const { openExampleFile } = platform()
  let file: ReturnType<NonNullable<typeof openExampleFile>> | undefined
  let input: TrainInput | undefined
  return withOpened(options, async (model, data, evalData) => {
    const { dtype: _, ...rest } = options
    const adapter = options.adapter === undefined ? undefined : await openAdapter(options.adapter, 'adapter')
    const config = withDefaultTargets(options, model)
    input = {
      ...rest,
      model,
      data,
      evalData,
      config,
      adapter,
      teacher: await openTeacher(options),
      rewards: await openRewards(options),
      decodeImage: options.decodeImage ?? platform().decodeImage,
      out: options.out === undefined ? undefined : openTarget(options.out, 'out'),
    }
    return work(input, {
      limits: memoryLimits(model),
      memoryUse: platform().memoryUse,
      exampleFile: openExampleFile && (() => (file ??= openExampleFile())),
      sources: sourcesOf(options),
      embedForGuide: async (...parts) => (await import('../train/tasks/vectors/guide.js')).embedForGuide(...parts),
      page: async (...parts) => (await import('./run-page.js')).pageOfRun(...parts),
    })
  }).finally(async () => {
    file?.close()
    const { teacher, rewards = [] } = input ?? {}
    for (const reward of rewards) endReward(reward)
    if (teacher !== undefined && teacher !== options.teacher && !('url' in teacher)) await teacher.close()
  })
}

async function openTeacher({ teacher, signal }: TrainOptions): Promise<Model | TeacherServer | undefined> {
  if (teacher === undefined) return undefined
  if (typeof teacher === 'string' && /^https?:.*\/v1\/?$/.test(teacher))
    return { url: checkAddress(teacher, 'teacher') }
  return MODEL.accepts(teacher) ? (teacher as Model) : loadModel(teacher as Source, { signal })
}

async function openRewards({ rewards, graderModels }: TrainOptions): Promise<readonly Reward[] | undefined> {
  if (rewards === undefined) return undefined
  const { rewardOf } = await import('../train/loop/graders/grader.js')
  const list = typeof rewards === 'string' ? await platform().loadRewards(rewards) : rewards
  return list.map((reward) => (typeof reward === 'function' ? reward : rewardOf(reward, graderModels)))
}

export async function checkData(options: CheckDataOptions): Promise<DataReport> {
  checkOptions(options, 'checkData', CHECK_DATA_OPTIONS)
  const { decodeImage = platform().decodeImage, preview } = options
  const work = async (model: Model | TextModel | undefined, data: TrainingData, evalData: TrainingData | undefined) => {
    const { checkRecords } = await import('../train/rows/check.js')
    return checkRecords({ ...options, model, data, evalData, decodeImage }, preview)
  }
  return withOpened(options, work, loadForRecords)
}

export async function trainingTasks(model?: Model): Promise<TaskFacts[]> {
  if (model !== undefined) checkArgument(model, MODEL, 'model')
  const tasks = await tasksFor(model)
  return tasks.map(({ name, learns, records, use, page, learningRate }) => {
    return { name, learns, records, use, ...(page && { page }), ...(learningRate !== undefined && { learningRate }) }
  })
}

/**
 * Returns what a file needs to repeat the run: paths, ids, URLs and graders. Returns undefined if a source is in
 * memory, a function or a session, which no file can name.
 */
function sourcesOf(options: TrainOptions): RunSources | undefined {
  const { model, dtype, data, evalData, teacher, rewards, graderModels, onTurn } = options
  const trained = named(data)
  const evaluated = evalData === undefined ? undefined : named(evalData)
  if (typeof model !== 'string' || trained === undefined || (evalData !== undefined && evaluated === undefined)) {
    return undefined
  }
  const judges = Object.entries(graderModels ?? {}).map(([name, judge]) => [name, withoutKey(judge)] as const)
  const functions = [onTurn, ...(Array.isArray(rewards) ? rewards : [])].filter((part) => typeof part === 'function')
  const isWritten = typeof (teacher ?? '') === 'string' && judges.every(([, judge]) => judge !== undefined)
  if (functions.length > 0 || !isWritten) return undefined
  const models = graderModels && (Object.fromEntries(judges) as typeof graderModels)
  return { model, dtype, data: trained, evalData: evaluated, teacher, rewards, graderModels: models }
}

/** The address of a model that judges. Undefined for a function and a session, which no file can name. */
function withoutKey(judge: GraderModel): GraderModel | undefined {
  if (typeof judge === 'string') return judge
  if (typeof judge === 'function' || !('url' in judge)) return undefined
  const { url, model } = judge
  return model === undefined ? url : { url, model }
}

function named(data: TrainOptions['data']): string | readonly string[] | undefined {
  if (data === '-') return undefined
  if (typeof data === 'string') return data
  return Array.isArray(data) && data.length > 0 && data.every((item) => typeof item === 'string')
    ? (data as readonly string[])
    : undefined
}

type OpenedOptions = Pick<
  CheckDataOptions,
  'task' | 'dtype' | 'data' | 'evalData' | 'columns' | 'chatTemplate' | 'signal'
>

/** Opens the data first, so that a wrong path is found before a model is downloaded. */
export async function withOpened<T, M extends Model | Source | undefined, L extends Model | TextModel = Model>(
  options: OpenedOptions & { readonly model?: M },
  work: (model: Model | L | (M & undefined), data: TrainingData, evalData: TrainingData | undefined) => Promise<T>,
  load: (source: Source, options: LoadModelOptions) => Promise<Model | L> = loadModel,
): Promise<T> {
  const { model, dtype, data, evalData, signal, task } = options
  if (task !== undefined) checkTaskName(task)
  const isOpen = model === undefined || MODEL.accepts(model)
  if (isOpen && dtype !== undefined) {
    throw new ConfigError({ where: 'dtype', what: 'only for models that are not open yet' })
  }
  const closers: (() => Promise<void>)[] = []
  const closeLater = (file: ByteSource) => void closers.push(() => file.close())
  try {
    const openedData = await openData(data, 'data', closeLater)
    const openedEvalData = evalData === undefined ? undefined : await openData(evalData, 'evalData', closeLater)
    if (!isOpen) await requireTemplateFor(openedData, options, model as Source)
    const opened = isOpen ? (model as unknown as Model) : await load(model as Source, { dtype, signal })
    if (!isOpen && 'close' in opened) closers.push(() => opened.close())
    return await work(opened, openedData, openedEvalData)
  } finally {
    await Promise.all(closers.map((close) => close()))
  }
}

/** Throws FormatError if the data are chats and the model has no chat template, before the weights are loaded. */
async function requireTemplateFor(data: TrainingData, options: OpenedOptions, model: Source) {
  const isFile = isByteSource(data) || isDirectory(data) || Array.isArray(data)
  if (!isFile || options.chatTemplate !== undefined) return
  for await (const { row } of readRows(data, { columns: options.columns, onInvalid: () => {} })) {
    const isChat = isObject(row) && (Array.isArray(row.messages) || Array.isArray(row.conversations))
    if (isChat) await requireChatTemplate(model, noTemplateForChats)
    return
  }
}

export function withDefaultTargets(
  { config, preset, adapter }: Pick<TrainOptions, 'config' | 'preset' | 'adapter'>,
  model: Model,
): LoraConfigInput | undefined {
  const targets = config?.targetModules ?? (adapter === undefined ? defaultsOf(preset).config.targetModules : undefined)
  if (targets !== 'default') return config
  return { ...config, targetModules: defaultTargetModules(String(model.config.model_type)) }
}
