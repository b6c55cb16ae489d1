// Training: model + records → adapter. `train` prepares what the options ask for, runs the steps, and reports.

// What is in src/train/, in reading order:
//   options.ts, settings.ts  what a run can be asked for
//   tasks/                   what a model learns, a file for each task; task.ts first
//   rows/                    batches from rows of data
//   graph/                   the training graph; passes.ts has the order
//   engine/                  the steps, and AdamW, in a worker
//   saved/                   folders of runs, and how a stopped run goes on
//   evaluate/                metrics of finished adapters
//   search/                  questions to a corpus
//   loop/                    loops of the caller, and runs in which the model writes the texts
//   handoff/                 a run that goes on in TRL

import { attempt, ConfigError, counted, DataError, listed, UnsupportedError } from '../core/base/errors.js'
import { checkOptions as checkTable } from '../core/base/options.js'
import { readRows } from '../files/data/read-rows.js'
import { isByteSource, isDirectory, planSplit, type Row } from '../files/data/row.js'
import type { LoraConfig } from '../lora/config.js'
import { otherWeights } from '../model/base-record.js'
import { chooseCopies, gigabytes, type MemoryLimit, memoryWarning, trainingMemory } from '../model/memory.js'
import type { Model } from '../model/model-folder.js'
import { placedModel, placeFactors } from '../model/place/place.js'
import type { ExampleFile } from '../model/text/example-store.js'
import { readGraph } from '../onnx/view/graph.js'
import { type RunSources, runRecord } from './about-run.js'
import { checkOptions, checkParts } from './check-options.js'
import { copiesOf } from './engine/sessions.js'
import { joinGraphs } from './graph/joined-graph.js'
import { checkReach } from './graph/reach.js'
import { checkTrainableForm } from './graph/trainable-form.js'
import { Learner } from './learner.js'
import { findTargets, newAdapter, type Targets } from './new-adapter.js'
import type { TrainInput, TrainingData, TrainResult } from './options.js'
import { costsOf, longestOf, recordLessons } from './record-lessons.js'
import type { MemoryUse } from './report.js'
import { type EncodedSource, type EncodeOptions, encodeContext, encodeRows, withPictures } from './rows/examples.js'
import { DataFacts, tokenLengths } from './rows/facts.js'
import { samplerOf } from './samples.js'
import type { CardSources } from './saved/model-card.js'
import { placeOf, withRunPlace } from './saved/run-place.js'
import { resolveSettings, type TrainSettings, withDefaultRate } from './settings.js'
import type { PictureEncoder } from './tasks/pictures/encoder.js'
import { withPrompts } from './tasks/prompts.js'
import type { Encoded, Examples, Task } from './tasks/task.js'
import { taskOfRow } from './tasks/task-of-row.js'
import { loadTask, type TaskName, tasksFor } from './tasks/tasks.js'
import type { embedForGuide } from './tasks/vectors/guide.js'
import { type RunPage, runLessons } from './training-loop.js'

export interface RunContext {
  readonly limits?: readonly MemoryLimit[]
  /** Opens a file that stands in for memory, once. */
  readonly exampleFile?: (() => ExampleFile) | undefined
  readonly memoryUse?: (() => MemoryUse | undefined) | undefined
  readonly sources?: RunSources | undefined
  readonly page?: RunPage | undefined
  /** Gives the vectors of the guide to a task whose loss has one. */
  readonly embedForGuide?: typeof embedForGuide | undefined
  /** Gives what the next step waits for; undefined while it need not wait. */
  readonly wait?: (() => Promise<void> | undefined) | undefined
  /** Hears of each row: as the task parsed it, as it was encoded, and for which data. */
  readonly onRow?: ((row: unknown, encoded: Encoded<unknown>, isEvaluation: boolean) => void) | undefined
  readonly pictures?: PictureEncoder | undefined
  /** Throws if the runtime lacks an operator of the model. Undefined if the training happens elsewhere. */
  readonly checkOperators?: ((model: Model) => Promise<void>) | undefined
}

/** Nothing is written before the model, the data and the folder have been found usable. */
export async function train(given: TrainInput, context: RunContext = {}): Promise<TrainResult> {
  return withPictures(given, async (pictures) => {
    const startedAt = performance.now()
    const checkOperators = (model: Model) => Learner.check(model, given)
    const prepared = await prepare(given, { ...context, pictures, checkOperators })
    const { parts, run } = prepared
    const result = await withRunPlace(run.out, async (out) => {
      const trainer = await Learner.open(parts)
      try {
        const lessons = recordLessons(trainer, parts)
        const facts = { ...run, ...parts, totalSteps: lessons.totalSteps }
        return await runLessons(trainer, lessons, { ...run, out, facts })
      } finally {
        await trainer.close()
      }
    })
    const seconds = (performance.now() - startedAt) / 1000
    return {
      adapter: parts.adapter,
      report: { ...result, ...reportOf(prepared, given.adapter === undefined), seconds },
    }
  })
}

/** @internal Also for a handoff, which trains elsewhere. */
export async function prepare(given: TrainInput, context: RunContext) {
  const job = await checkJob(given, context)
  const { options, config } = job
  const { on = {}, signal, taskOptions, modules, model } = options
  on.task?.(job.task.name)
  on.stage?.('encode')
  const records = await encodeAll(job, context)
  const learned = await openExamples(job, records, context)
  const copiedBytes = planMemory(job, context.limits ?? [], learned)
  on.stage?.('prepare')
  const { adapter, settings } = await startAdapter(job, records, learned)
  const { sources, page } = context
  const { examples } = records.encoded.kept
  const card: CardSources = {
    ...{ options: { ...options, task: job.task.name as TaskName }, sources, task: job.task.name },
    ...{ use: learned.open.plainUse ?? job.task.use, adapter, settings, facts: records.facts },
    evalMaxLength: isWhole(job.task) ? undefined : settings.maxLength,
    lengths: () => tokenLengths(job.task, examples),
  }
  const parts = {
    ...{ model, adapter, modules, settings, copiedBytes, signal, on },
    ...learned,
    sampler: await samplerFor(job, records.encoded),
  }
  const run = {
    ...{ task: job.task.name, taskOptions, lowerIsBetter: job.task.lowerIsBetter, settings, card },
    out: job.place,
    record: sources && runRecord(card.options, sources, { settings, config }),
    page,
    keepState: options.keepState ?? false,
    ...{ signal, wait: context.wait, memoryUse: context.memoryUse, on },
  }
  return { parts, run, encoded: records.encoded, config }
}

type Job = Awaited<ReturnType<typeof checkJob>>

/** Options that fit one another, the model, the task and the folder. Of the data, only the first record is read. */
async function checkJob(given: TrainInput, { pictures, checkOperators }: RunContext) {
  const settings = resolveSettings(given)
  const config = checkOptions(given, settings)
  const options: TrainInput & { pictures: typeof pictures; taskOptions?: TrainInput['taskOptions'] } = {
    ...given,
    model: await joinGraphs(given.model),
    pictures,
  }
  const { model, taskOptions } = options
  const targets = await checkLayers(options, config)
  await checkOperators?.(model)
  const data = await sourceOf(options, options.data, 'data')
  const task = given.task === undefined ? await taskOfRow(data.first?.row, given.model) : await loadTask(given.task)
  checkTable(taskOptions, `the task ${task.name}`, task.options ?? {})
  await checkTask(task, model)
  const place = await placeOf(options)
  options.taskOptions = withPrompts(task, taskOptions, given.adapter)
  return { options, settings, config, targets, data, task, place }
}

/** Layers for a new adapter; undefined for one that is there. Gradients reach them. */
export async function checkLayers(options: TrainInput, config: LoraConfig): Promise<Targets | undefined> {
  const { model, adapter, modules } = options
  const graph = readGraph(model.onnx)
  checkTrainableForm(graph)
  const targets = adapter === undefined ? await findTargets(model, config, options) : undefined
  const placements = () =>
    placeFactors(placedModel(graph, 'training', {}, modules), { layers: adapter!.parts('linear') })
  checkReach(model.onnx, targets?.targets ?? placements().flatMap((at) => (at.kind === 'layer' ? at.linear : [])))
  return targets
}

type Records = Awaited<ReturnType<typeof encodeAll>>

/** All records as examples: those to learn from, and those to evaluate. */
async function encodeAll(job: Job, { onRow, exampleFile: file }: RunContext) {
  const { options, config } = job
  const { evalSplit, evalData } = options
  const facts = new DataFacts()
  const told: EncodeOptions['onRow'] = (row, encoded, isEvaluation, record) => {
    facts.add(record, isEvaluation)
    onRow?.(row, encoded, isEvaluation)
  }
  const isHeldOut = evalSplit === undefined ? undefined : planSplit(evalSplit, config.seed)
  const isHeldOutWhole = isWhole(job.task)
  const encoded = await encode(job, job.data, { isHeldOut, isHeldOutWhole, onRow: told, file })
  if (evalData === undefined) return { encoded, evaluation: encoded.heldOut, facts }
  const evaluationOnly: EncodeOptions['onRow'] = (row, encoded, _, record) => told(row, encoded, true, record)
  const source = await sourceOf(options, evalData, 'evalData')
  const settings = isHeldOutWhole ? { ...job.settings, maxLength: undefined } : job.settings
  const { kept: evaluation } = await encode({ ...job, settings }, source, { onRow: evaluationOnly, file })
  return { encoded, evaluation, facts }
}

/**
 * `classify` and `embed` read a text as far as the model can, whatever the run's `maxLength` is, so that is what an
 * evaluation measures.
 */
function isWhole({ use: { command } }: Task): boolean {
  return command !== undefined && command[0] !== 'generate'
}

type Learned = Awaited<ReturnType<typeof openExamples>>

/** The task, opened for the examples, which are packed if the settings say so. */
async function openExamples(
  { options, settings, task }: Job,
  { encoded, evaluation }: Records,
  { embedForGuide }: Pick<RunContext, 'embedForGuide'>,
) {
  const { model, taskOptions, on } = options
  const { newHead } = settings
  const examples = settings.packing ? pack(task, encoded.kept.examples, settings, model) : encoded.kept.examples
  const open = task.open(model, examples, taskOptions, { newHead })
  if (newHead && open.head === undefined) {
    throw new ConfigError({ where: 'newHead', what: `the task ${task.name} trains no head` })
  }
  if (open.needsNeighbors && settings.batchSize < 2) {
    throw new ConfigError({
      where: 'batchSize',
      what: `the task ${task.name} compares records of a batch`,
      expected: 'at least 2',
    })
  }
  for (const warning of open.warnings ?? []) on?.warning?.(warning)
  if (open.checkEvaluation !== undefined) {
    for (const example of evaluation.examples) open.checkEvaluation(example)
  }
  if (open.guided !== undefined) await embedForGuide?.(open.guided, options, [examples, evaluation.examples])
  const costs = costsOf(open, examples)
  const longest = longestOf(costs)
  return {
    ...{ open, examples, costs, longest },
    evalExamples: evaluation.rows === 0 ? undefined : evaluation.examples,
    evalLongest: Math.max(longest, longestOf(costsOf(open, evaluation.examples))),
  }
}

/** The adapter as the run begins with it, and the settings with the learning rate that fits it. */
async function startAdapter({ options, settings, targets, task }: Job, { encoded }: Records, { open }: Learned) {
  const { model, modules, on } = options
  const adapter = options.adapter ?? (await newAdapter(model, targets!, { ...options, task, open }))
  const difference = await otherWeights(adapter.trainedOn, model)
  if (difference !== undefined) on?.warning?.(difference)
  adapter.chatTemplate = encoded.chatTemplate ?? adapter.chatTemplate
  if (open.prompts !== undefined) adapter.prompts = { ...open.prompts }
  await checkParts(adapter, { model, open, modules })
  if (open.labels !== undefined) adapter.labels = open.labels
  if (open.problemType !== undefined) adapter.problemType = open.problemType
  const layers = {
    widths: adapter.parts('linear').map(({ k }) => k),
    trainsBase: adapter.parts('replacement', 'token-rows').some((part) => {
      return part.shape.length > 1 && !(part.kind === 'replacement' && !part.isTrained)
    }),
  }
  return { adapter, settings: withDefaultRate(settings, options, task, layers) }
}

async function samplerFor({ options, task }: Job, { chatTemplate }: EncodedSource) {
  const { sample = [] } = options
  if (sample.length === 0) return undefined
  return samplerOf(sample, task, await encodeContext(options), chatTemplate !== undefined)
}

function reportOf({ run, parts, encoded: { kept } }: Awaited<ReturnType<typeof prepare>>, isNew: boolean) {
  const { adapter, open } = parts
  return {
    task: run.task,
    truncatedRecords: kept.truncatedRecords,
    skippedRecords: kept.skippedRecords,
    trainableParams: adapter.totalTrainableParams(),
    totalParams: adapter.totalParams(),
    labels: open.labels === undefined ? null : [...open.labels],
    newHead: open.head !== undefined && isNew ? open.head.isNew : null,
  }
}

const PACKED_LENGTH = 512

function pack(
  task: Task,
  examples: Examples<unknown>,
  { maxLength }: TrainSettings,
  { contextLength = PACKED_LENGTH }: Model,
): Examples<unknown> {
  if (task.pack !== undefined) return task.pack(examples, maxLength ?? Math.min(contextLength, PACKED_LENGTH))
  throw new ConfigError({ where: 'packing', what: `the task ${task.name} cannot put several records into one row` })
}

/** The most bytes of copies of weights. A line tells of a choice that costs speed. */
function planMemory(
  { options: { model, on }, settings: { batchSize: batch, memory } }: Job,
  limits: readonly MemoryLimit[],
  { open, longest: sequence }: Learned,
): number {
  const { rowsOfExample: rows = 1 } = open
  // All pictures have the same size, so none is cut.
  const isCut = open.probe.lengths.some(({ name }) => name !== 'batch')
  const needOf = (lowMemory: boolean) => trainingMemory(model, { batch: rows * batch, sequence, lowMemory })
  const copiedBytes = memory === 'auto' ? chooseCopies(needOf(false), limits) : copiesOf(memory)
  const isLow = copiedBytes < Number.POSITIVE_INFINITY
  const need = needOf(isLow)
  if (isLow && memory === 'auto') {
    const most = copiedBytes === 0 ? 'none are' : `at most ${gigabytes(copiedBytes)} are`
    on?.note?.(
      `Of the weights (${gigabytes(need.weights)}), ${most} copied for faster products. \`memory: 'fast'\` copies all of them, which needs up to two copies of the weights in memory`,
    )
  }
  const warning = memoryWarning(need, limits, {
    what: `Training with ${batch} records of ${isCut ? 'up to ' : ''}${sequence} tokens in a batch`,
    help: [
      ...(batch > 1 ? ['a smaller `batchSize` with more `gradientAccumulation`'] : []),
      ...(isCut ? ['a shorter `maxLength`'] : []),
      ...(isLow ? [] : ["`memory: 'low'`"]),
    ],
  })
  if (warning !== undefined) (on?.warning ?? console.warn)(warning)
  return copiedBytes
}

async function checkTask(task: Task, model: Model): Promise<void> {
  const [error] = attempt(() => task.check(model)).problems
  if (error === undefined) return
  const others = error instanceof UnsupportedError ? await tasksFor(model) : []
  if (others.length === 0) throw error
  const { where, what, expected, got } = error
  const hint = `This model can be trained for ${others.map(({ name }) => name).join(' or ')}: set \`task\``
  throw new UnsupportedError({ where, what, expected, got, hint, cause: error })
}

async function sourceOf(options: TrainInput, data: TrainingData, name: string) {
  const { columns, skipInvalid: most = 0 } = options
  const where = nameOf(data, name)
  const invalid = { count: 0, first: '' }
  const onInvalid = (error: DataError) => {
    invalid.first ||= error.message
    if (++invalid.count <= most) return
    throw new DataError({
      where,
      what: `more than ${counted(most, 'record')} cannot be used`,
      got: error.message,
      hint: '`lowrank data` shows all of them',
    })
  }
  const taking = most > 0 ? onInvalid : undefined
  const left = readRows(data, { name, columns, onInvalid: taking })
  const { value: first, done = false } = await left.next()
  const rows = (async function* () {
    if (!done) yield first as Row
    yield* left
  })()
  return { where, first: done ? undefined : (first as Row), rows, invalid, onInvalid: taking }
}

async function encode(
  { options, settings: { maxLength }, task }: Job,
  { rows, where, invalid, onInvalid }: Awaited<ReturnType<typeof sourceOf>>,
  watch: Pick<EncodeOptions, 'isHeldOut' | 'isHeldOutWhole' | 'onRow' | 'file'>,
): Promise<EncodedSource> {
  const encoded = await encodeRows(rows, { ...options, ...watch, task, maxLength, onInvalid, name: where })
  const { kept, heldOut } = encoded
  const all = kept.rows + heldOut.rows
  const warn = (count: number, what: string) => {
    if (count > 0) options.on?.warning?.(`${where}: ${count} of ${all} records ${what}`)
  }
  const cutHere = watch.isHeldOutWhole ? 0 : heldOut.truncatedRecords
  warn(kept.truncatedRecords + cutHere, `cut to ${encoded.maxLength} tokens`)
  warn(heldOut.truncatedRecords - cutHere, 'for evaluation are longer than the model reads')
  warn(invalid.count, `left out, because they are not valid: ${invalid.first}`)
  warn(kept.skippedRecords + heldOut.skippedRecords, 'left out, because they have no target')
  for (const note of new Set([...kept.notes.keys(), ...heldOut.notes.keys()])) {
    warn((kept.notes.get(note) ?? 0) + (heldOut.notes.get(note) ?? 0), note)
  }
  return encoded
}

function nameOf(data: TrainingData, name: string): string {
  const files = Array.isArray(data) ? data : [data]
  const names = files.map((file) => (isByteSource(file) || isDirectory(file) ? file.name : undefined))
  return names.length > 0 && !names.includes(undefined) ? listed(names as string[]) : name
}
