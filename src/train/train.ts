// Training: model + records → adapter. Checks what is asked for, encodes the records, makes the adapter, and runs the steps.

import { ConfigError, listed, MismatchError, StateError, UnsupportedError } from '../base/errors.js'
import { checkOptions as checkTable } from '../base/options.js'
import { checkColumnNames } from '../data/columns.js'
import { readRows } from '../data/read-rows.js'
import { isByteSource, isDataSource, isDirectory } from '../data/source.js'
import { planSplit } from '../data/split.js'
import type { ModuleMap } from '../graph/match/linears.js'
import { type MemoryLimit, memoryWarning, trainingMemory } from '../graph/memory.js'
import type { Model } from '../graph/model-folder.js'
import { checkTrainableForm } from '../graph/training/trainable-form.js'
import { readGraph } from '../graph/view/graph.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { type LoraConfig, resolveConfig } from '../lora/config.js'
import { requireHandled, requirePlainConfig } from '../lora/requirements.js'
import type { Examples, OpenTask, Task } from '../tasks/task.js'
import { checkTaskName, defaultTask, loadTask, tasksFor } from '../tasks/tasks.js'
import { type EncodedSource, encodeRows } from './examples.js'
import { newAdapter } from './new-adapter.js'
import type { TrainingData, TrainingOptions, TrainResult } from './options.js'
import type { TrainReport } from './report.js'
import { trainAdapter } from './run.js'
import type { FolderUse } from './run-folder.js'
import type { RunSources } from './run-record.js'
import {
  defaultsOf,
  resolveSettings,
  TRAIN_DEFAULTS,
  type TrainSettings,
  usesBest,
  withRateOfTask,
} from './settings.js'

/** What a run has beside its options. */
export interface RunContext {
  /** Memory that there is: a run that needs more says so. */
  readonly limits?: readonly MemoryLimit[]
  /** What model and data were opened from, where it can be written into run.json. */
  readonly sources?: RunSources | undefined
  /** What the next step waits for; undefined while it need not wait. */
  readonly wait?: (() => Promise<void> | undefined) | undefined
}

/**
 * Trains an adapter of a model that is open. Nothing is written before the model, the data and the folder have been found usable.
 *
 * @throws ConfigError when a setting or the adapter's config is out of range, or options contradict or lack one another;
 *   UnsupportedError for graphs, adapters and configs that cannot be trained; StateError when the adapter has no layer, or one that is
 *   merged; DataError for records, FileError for the folder, MismatchError when no module matches or a run to resume is of other parts,
 *   NumericError naming the step when the loss is not finite (the adapter is saved as it was when it last was finite)
 */
export async function train(
  given: TrainingOptions,
  { limits = [], sources, wait }: RunContext = {},
): Promise<TrainResult> {
  const plain = resolveSettings(given)
  const config = checkOptions(given, plain)
  const startedAt = performance.now()
  const options = {
    ...given,
    model: await asOneGraph(given.model),
    task: given.task ?? (await defaultTask(given.model)),
  }
  const { model, out, on, modules, signal } = options
  const task = await loadTask(options.task)
  checkTaskOptions(task, options.taskOptions)
  const settings = withRateOfTask(plain, given, task.learningRate)
  checkTrainableForm(readGraph(model.onnx.proto))
  await checkTask(task, model)
  const use: FolderUse = options.resume ? 'resume' : options.overwrite ? 'overwrite' : 'new'
  if (out !== undefined) await (await import('./run-folder.js')).checkRunFolder(out, use)
  on?.stage?.('encode')
  const { evalSplit } = options
  const isHeldOut = evalSplit === undefined ? undefined : planSplit(evalSplit, config.seed)
  const {
    kept: records,
    heldOut,
    chatTemplate,
  } = await encode(options, settings, task, options.data, 'data', isHeldOut)
  const evalRecords =
    options.evalData === undefined
      ? heldOut
      : (await encode(options, settings, task, options.evalData, 'evalData', undefined)).kept
  const examples = settings.packing ? await pack(task, records.examples, settings, model) : records.examples
  const open = task.open(model, examples, options.taskOptions, { newHead: settings.newHead })
  checkNewHead(settings, task, open)
  for (const warning of open.warnings ?? []) on?.warning?.(warning)
  if (open.checkEvaluation !== undefined) {
    for (const example of evalRecords.examples) open.checkEvaluation(example)
  }
  warnOfMemory(options, settings, limits, examples, open)
  on?.stage?.('prepare')
  const adapter = options.adapter ?? (await newAdapter(model, config, { ...options, task, open }))
  adapter.chatTemplate = chatTemplate ?? adapter.chatTemplate
  await checkReplaced(adapter, model, open, modules)
  if (open.labels !== undefined) adapter.labels = open.labels
  if (open.problemType !== undefined) adapter.problemType = open.problemType
  const { tensorboard } = options
  const log = tensorboard && (await (await import('./event-log.js')).EventLog.open(tensorboard, use === 'resume'))
  // A page that keeps the adapter in memory fetches none of what writes a folder.
  const written = out && (await Promise.all([import('./run-record.js'), import('./card.js')]))
  const result = await trainAdapter({
    model,
    task: task.name,
    taskOptions: options.taskOptions,
    open,
    adapter,
    modules,
    settings,
    examples,
    evalExamples: evalRecords.rows === 0 ? undefined : evalRecords.examples,
    out: out === undefined ? undefined : { directory: out, use },
    record: written && sources && written[0].runRecord(options, sources, { settings, config }),
    card: written && ((report) => written[1].cardOf(report, { options, sources, task, adapter, settings })),
    signal,
    wait,
    on: log === undefined ? (on ?? {}) : log.heard(on ?? {}),
  }).finally(() => log?.close())
  const { totalTrainable, totalParams } = adapter.summary()
  const report: TrainReport = {
    ...result,
    truncatedRecords: records.truncatedRecords,
    skippedRecords: records.skippedRecords,
    trainableParams: totalTrainable - (settings.loraFa ? elementsOfA(adapter) : 0),
    totalParams,
    labels: open.labels === undefined ? null : [...open.labels],
    newHead: open.head === undefined || options.adapter !== undefined ? null : open.head.isNew,
    seconds: (performance.now() - startedAt) / 1000,
  }
  return { adapter, report }
}

function elementsOfA(adapter: LoraAdapter): number {
  return adapter.parts('linear').reduce((sum, { rank, k }) => sum + rank * k, 0)
}

/** The model, whose encoder and decoder become one graph. */
async function asOneGraph(model: Model): Promise<Model> {
  if (model.graphs.encoder === undefined || model.graphs.decoder === undefined) return model
  return (await import('../graph/training/joined-graph.js')).joinGraphs(model)
}

/** Tokens of a packed row where nothing is said. */
const PACKED_LENGTH = 512

/** Throws ConfigError for a task whose examples cannot share a row. */
async function pack(
  task: Task,
  examples: Examples<unknown>,
  { maxLength }: TrainSettings,
  { contextLength = PACKED_LENGTH }: Model,
): Promise<Examples<unknown>> {
  if (task.pack !== undefined) return task.pack(examples, maxLength ?? Math.min(contextLength, PACKED_LENGTH))
  throw new ConfigError({ where: 'packing', what: `the task ${task.name} cannot put several records into one row` })
}

function warnOfMemory<Example>(
  { model, on }: TrainingOptions,
  { batchSize: batch, lowMemory }: TrainSettings,
  limits: readonly MemoryLimit[],
  examples: Iterable<Example>,
  task: OpenTask<Example>,
): void {
  let sequence = 0
  for (const example of examples) sequence = Math.max(sequence, task.cost(example))
  const { rowsOfExample: rows = 1 } = task
  // Pictures all have one size.
  const isCut = task.probe.lengths.some(({ name }) => name !== 'batch')
  const warning = memoryWarning(trainingMemory(model, { batch: rows * batch, sequence, lowMemory }), limits, {
    what: `Training with ${batch} records of ${isCut ? 'up to ' : ''}${sequence} tokens in a batch`,
    help: [
      ...(batch > 1 ? ['a smaller batchSize (--batch-size) with more gradientAccumulation'] : []),
      ...(isCut ? ['a shorter maxLength (--max-length)'] : []),
      ...(lowMemory ? [] : ['lowMemory (--low-memory)']),
    ],
  })
  if (warning !== undefined) (on?.warning ?? console.warn)(warning)
}

/** Throws what the task's check throws, with the tasks that the model can be trained for. */
async function checkTask(task: Task, model: Model): Promise<void> {
  try {
    task.check(model)
  } catch (error) {
    const others = error instanceof UnsupportedError ? await tasksFor(model) : []
    if (!(error instanceof UnsupportedError) || others.length === 0) throw error
    const { where, what, expected, got } = error
    const hint = `This model can be trained for ${others.join(' or ')}: set the option task (--task)`
    throw new UnsupportedError({ what, hint, cause: error, ...defined({ where, expected, got }) })
  }
}

/** Without what is undefined. */
function defined(parts: Record<string, string | undefined>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(parts).flatMap(([key, value]) => (value === undefined ? [] : [[key, value]])),
  )
}

async function encode(
  { model, on, columns, chatTemplate, chatTemplateArgs, decodeImage }: TrainingOptions,
  settings: TrainSettings,
  task: Task,
  data: TrainingData,
  name: string,
  isHeldOut: ((index: number) => boolean) | undefined,
): Promise<EncodedSource> {
  const where = nameOf(data, name)
  const { maxLength } = settings
  const encoding = { task, model, maxLength, chatTemplate, chatTemplateArgs, decodeImage, isHeldOut, name: where }
  const encoded = await encodeRows(readRows(data, { name, columns }), encoding)
  const { kept, heldOut } = encoded
  const all = kept.rows + heldOut.rows
  const warn = (count: number, what: string) => {
    if (count > 0) on?.warning?.(`${where}: ${count} of ${all} records ${what}`)
  }
  warn(kept.truncatedRecords + heldOut.truncatedRecords, `cut to ${encoded.maxLength} tokens`)
  warn(kept.skippedRecords + heldOut.skippedRecords, 'left out, because they have no target')
  return encoded
}

/** What messages call the data: files and folders by their own names. */
function nameOf(data: TrainingData, name: string): string {
  const files = Array.isArray(data) ? data : [data]
  const names = files.map((file) => (isByteSource(file) || isDirectory(file) ? file.name : undefined))
  return names.length > 0 && !names.includes(undefined) ? listed(names as string[]) : name
}

/**
 * Throws MismatchError unless the adapter has the tensors of the task's head, and the base has all others that it replaces;
 * UnsupportedError for one that cannot be trained.
 */
async function checkReplaced(
  adapter: LoraAdapter,
  model: Model,
  open: OpenTask,
  modules: ModuleMap | undefined,
): Promise<void> {
  const own = new Map(adapter.parts('replacement').map(({ name, shape }) => [name, shape.join()]))
  const wanted = new Map((open.head?.tensors ?? []).map(({ name, shape }) => [name, shape.join()]))
  const other = [...wanted.keys()].find((name) => own.get(name) !== wanted.get(name))
  const unknown = adapter.config.modulesToSave.find((module) => !isSaved(module, [...own.keys(), ...wanted.keys()]))
  if (other === undefined && unknown === undefined) {
    if (own.size > 0) (await import('./whole-tensors.js')).wholeTensors(adapter, { model, open, modules })
    return
  }
  throw new MismatchError({
    where: other ?? 'modulesToSave',
    what: 'the adapter replaces other tensors than this task trains',
    expected: [...wanted].map(([name, shape]) => `${name} (${shape})`).join(', ') || 'layers of LoRA alone',
    got: [...own].map(([name, shape]) => `${name} (${shape})`).join(', ') || adapter.config.modulesToSave.join(', '),
  })
}

/** PEFT takes each classifier for trained, whatever it is called. */
function isSaved(module: string, tensors: readonly string[]): boolean {
  return /^(classifier|score)$/.test(module) || tensors.some((name) => `.${name}`.includes(`.${module}.`))
}

/** Checks all that can be checked before anything is read. Returns the config of the adapter, with defaults. */
function checkOptions(options: TrainingOptions, settings: TrainSettings): LoraConfig {
  const { adapter, data, evalData, evalSplit, model } = options
  if (options.task !== undefined) checkTaskName(options.task)
  checkData('data', data)
  if (evalData !== undefined) checkData('evalData', evalData)
  checkTogether(options, settings)
  checkColumnNames(options.columns)
  if (evalSplit !== undefined) planSplit(evalSplit, 0)
  const given = Object.entries(options.config ?? {}).filter(([, value]) => value !== undefined)
  const defaults = { ...defaultsOf(options.preset).config, baseModel: model.name }
  const config = adapter?.config ?? resolveConfig({ ...defaults, ...Object.fromEntries(given) })
  if (adapter !== undefined) checkAdapter(adapter)
  if (config.dropout >= 1) {
    throw new ConfigError({
      where: 'dropout',
      what: 'nothing would be learned',
      expected: 'a number below 1',
      got: '1',
    })
  }
  if (settings.loraFa && config.useDora) {
    throw new ConfigError({ where: 'loraFa', what: 'not together with DoRA: use one of the two' })
  }
  const others = { modulesToSave: [], bias: 'none', useDora: false, trainableTokenIndices: undefined } as const
  requirePlainConfig({ ...config, ...others }, 'training')
  return config
}

/** Throws ConfigError naming an option that the task does not have, or that is out of range. */
function checkTaskOptions({ name, options = {} }: Task, given: unknown): void {
  checkTable(given, { of: `the task ${name}`, table: options })
}

/** Throws ConfigError where a new head is asked of a task that trains none. */
function checkNewHead({ newHead }: TrainSettings, { name }: Task, { head }: OpenTask): void {
  if (newHead && head === undefined) {
    throw new ConfigError({ where: 'newHead', what: `the task ${name} trains no head` })
  }
}

function checkData(where: string, data: unknown): void {
  if (isDataSource(data)) return
  throw new ConfigError({
    where,
    what: 'neither records nor an open file or folder',
    got: data === null ? 'null' : typeof data,
  })
}

function checkAdapter(adapter: LoraAdapter): void {
  requireHandled(adapter, ['linear', 'replacement', 'magnitude', 'token-rows'], 'training')
  if (adapter.size === 0) throw new StateError({ where: 'adapter', what: 'it has no layers to train' })
  for (const [name, { merged }] of adapter) {
    if (merged) throw new StateError({ where: name, what: 'it is merged', hint: 'Call unmergeAll() first' })
  }
}

/** Throws ConfigError for options that contradict one another, or lack what they need. */
function checkTogether(options: TrainingOptions, settings: TrainSettings): void {
  const ofAdapter = [
    ['config', options.config !== undefined, 'config'],
    ['trainedTokens', options.trainedTokens !== undefined, 'trained tokens'],
    ['newHead', settings.newHead, 'head'],
  ] as const
  for (const [where, isGiven, own] of options.adapter === undefined ? [] : ofAdapter) {
    if (isGiven) throw new ConfigError({ where, what: `not together with adapter: the adapter has its own ${own}` })
  }
  if (options.out === undefined && (options.resume || options.overwrite || settings.saveEvery !== undefined)) {
    throw new ConfigError({ where: 'out', what: 'resume, overwrite and saveEvery need an output folder' })
  }
  const { evalData, evalSplit } = options
  const evaluates = [
    ['evalEvery', settings.evalEvery !== undefined],
    ['keep best', settings.keep === 'best'],
    ['earlyStopping', settings.earlyStopping !== undefined],
  ].find(([, isOn]) => isOn)
  if (evalData === undefined && evalSplit === undefined && evaluates !== undefined) {
    throw new ConfigError({
      where: 'evalData',
      what: `${evaluates[0]} needs records to evaluate`,
      hint: 'Give evalData (--eval-data), or evalSplit (--eval-split)',
    })
  }
  if (settings.bestMetric !== TRAIN_DEFAULTS.bestMetric && !usesBest(settings)) {
    throw new ConfigError({
      where: 'bestMetric',
      what: 'it has no effect without keep: best (--keep best) or earlyStopping',
    })
  }
  if (evalData !== undefined && evalSplit !== undefined) {
    throw new ConfigError({ where: 'evalSplit', what: 'not together with evalData (--eval-data): use one of the two' })
  }
  if (options.resume && options.overwrite) {
    throw new ConfigError({ where: 'resume', what: 'not together with overwrite: use one of the two' })
  }
}
