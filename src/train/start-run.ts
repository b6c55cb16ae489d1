// The start of a run, whoever asks for it: options, model, folder, records, memory, adapter and learning rate are
// checked and worked out here and nowhere else.

import { attempt, ConfigError, counted, DataError, listed, UnsupportedError } from '../core/base/errors.js'
import { checkOptions as checkTable } from '../core/base/options.js'
import { readRows } from '../files/data/read-rows.js'
import { isByteSource, isDirectory, planSplit, type Row } from '../files/data/row.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { LoraConfig } from '../lora/config.js'
import { otherWeights } from '../model/base-record.js'
import { chooseCopies, gigabytes, memoryWarning, trainingMemory } from '../model/memory.js'
import type { Model } from '../model/model-folder.js'
import { placedModel, placeFactors } from '../model/place/place.js'
import { ExampleStore } from '../model/text/example-store.js'
import { readGraph } from '../onnx/view/graph.js'
import { checkEvaluated, checkOptions, checkParts } from './check-options.js'
import { copiesOf, rowsOfRun } from './engine/sessions.js'
import { joinGraphs } from './graph/joined-graph.js'
import { checkReach } from './graph/reach.js'
import { checkTrainableForm } from './graph/trainable-form.js'
import { Learner } from './learner.js'
import { findTargets, newAdapter, type Targets } from './new-adapter.js'
import type { TrainInput, TrainingData } from './options.js'
import { costsOf, longestOf } from './rows/batches.js'
import { type EncodedRows, type EncodeOptions, encodeContext, encodeRows } from './rows/examples.js'
import { DataFacts } from './rows/facts.js'
import type { Run, RunContext } from './run.js'
import { placeOf } from './saved/run-place.js'
import { holdOut, PairsToHoldOut } from './search/held-out.js'
import { resolveSettings, type TrainSettings, withBest, withDefaultRate, withTaskDefaults } from './settings.js'
import { type Examples, isEvaluatedWhole, type OpenTask, type Task } from './tasks/task.js'
import { taskOfRow } from './tasks/task-of-row.js'
import { loadTask, tasksFor } from './tasks/tasks.js'
import { withPrompts } from './tasks/vectors/prompts.js'

/** The longest text for which memory is planned if the texts come during the run, and no option limits them. */
const USUAL_LENGTH = 1024

export async function startRun(given: TrainInput, around: RunContext = {}): Promise<Run> {
  let asked = resolveSettings(given)
  const config = checkOptions(given, asked)
  const { on = {}, modules, evalData } = given
  const model = await joinGraphs(given.model)
  const joined = { ...given, model }
  const targets = await checkLayers(joined, config)
  if (!around.isElsewhere) await Learner.check(model, given)
  const source = await sourceOf(given, given.data, 'data', around)
  const task = around.task ?? (await taskFor(given, source.first))
  checkTable(given.taskOptions, `the task ${task.name}`, task.options ?? {})
  await checkTask(task, joined)
  asked = withTaskDefaults(asked, given, task)
  const place = await placeOf(given)
  const taskOptions = withPrompts(task, given.taskOptions, given.adapter)
  const options = { ...joined, taskOptions, task: task.name as TrainInput['task'] }
  on.task?.(task.name)

  on.stage?.('encode')
  const facts = new DataFacts()
  const reading = { options, task, around, facts, config, settings: asked }
  const part = (given.evalSplit ?? 0) > 0 ? 'split' : 'data'
  const { heldOut, pairs, ...records } = around.task ? noRecords() : await encode(reading, source, part)
  const isAsked = evalData !== undefined || given.evalSplit !== undefined
  const held = isAsked || around.isElsewhere ? undefined : pairs && holdOut(records.kept.examples, pairs)
  if (held?.note !== undefined) on.note?.(held.note)
  const evaluated =
    evalData === undefined
      ? (held?.evaluated ?? heldOut.examples)
      : (await encode(reading, await sourceOf(given, evalData, 'evalData', around), 'evalData')).kept.examples
  const kept = held?.trained ?? records.kept.examples
  const examples = asked.packing ? pack(task, kept, asked, model) : kept
  const open = task.open(model, examples, taskOptions, { newHead: asked.newHead, teacher: given.teacher })
  const chosen = withBest(asked, given, evaluated.length > 0 ? open.chooses : undefined)
  checkEvaluated(chosen, evaluated.length > 0)
  checkOpen(task, open, asked, (given.sample ?? []).length > 0)
  for (const warning of open.warnings ?? []) on.warning?.(warning)
  if (open.checkEvaluation !== undefined) for (const example of evaluated) open.checkEvaluation(example)
  if (open.guided !== undefined) await around.embedForGuide?.(open.guided, options, [examples, evaluated])
  const encoding = await encodeContext({ ...options, pictures: around.pictures })
  const { maxLength = USUAL_LENGTH } = asked
  const costs = task.writesTexts ? new Int32Array(examples.length) : costsOf(open, examples)
  const longest = task.writesTexts ? Math.min(encoding.maxLength, maxLength) : longestOf(costs)
  const evalLongest = task.writesTexts ? longest : Math.max(longest, longestOf(costsOf(open, evaluated)))
  const copiedBytes = planMemory({ model, open, settings: asked, longest, on }, around.limits)

  on.stage?.('prepare')
  const adapter = given.adapter ?? (await newAdapter(model, targets!, { ...options, task, open }))
  const difference = await otherWeights(adapter.trainedOn, model)
  if (difference !== undefined) on.warning?.(difference)
  adapter.chatTemplate = records.chatTemplate ?? adapter.chatTemplate
  if (open.prompts !== undefined) adapter.prompts = { ...open.prompts }
  await checkParts(adapter, { model, open, modules })
  if (open.labels !== undefined) adapter.labels = open.labels
  if (open.problemType !== undefined) adapter.problemType = open.problemType
  const settings = withDefaultRate(chosen, given, task, layersOf(adapter))
  return {
    ...{
      options,
      around,
      task,
      config,
      place,
      on,
      model,
      open,
      adapter,
      modules,
      settings,
      copiedBytes,
      encoding,
      facts,
    },
    ...{ records, examples, costs, longest, evalLongest },
    evalExamples: evaluated.length === 0 ? undefined : evaluated,
    doubts: held?.doubt === undefined ? [] : [held.doubt],
  }
}

function taskFor({ task, model }: TrainInput, first: Row | undefined): Promise<Task> {
  return task === undefined ? taskOfRow(first?.row, model) : loadTask(task)
}

/** Layers for a new adapter; undefined for one that is there. Gradients reach them. */
async function checkLayers(options: TrainInput, config: LoraConfig): Promise<Targets | undefined> {
  const { model, adapter, modules } = options
  const graph = readGraph(model.onnx)
  checkTrainableForm(graph)
  const targets = adapter === undefined ? await findTargets(model, config, options) : undefined
  const placements = () =>
    placeFactors(placedModel(graph, 'training', {}, modules), { layers: adapter!.parts('linear') })
  checkReach(model.onnx, targets?.targets ?? placements().flatMap((at) => (at.kind === 'layer' ? at.linear : [])))
  return targets
}

function noRecords() {
  const none = (): EncodedRows => {
    return { examples: new ExampleStore(), rows: 0, truncatedRecords: 0, skippedRecords: 0, notes: new Map() }
  }
  return { kept: none(), heldOut: none(), maxLength: 0, chatTemplate: undefined, pairs: undefined }
}

/** Refuses options that need more of the task. */
function checkOpen({ name, writing }: Task, open: OpenTask, { newHead, batchSize }: TrainSettings, isSampled: boolean) {
  if (isSampled && writing === undefined) {
    throw new ConfigError({
      where: 'sample',
      what: `the task ${name} writes no texts while it trains`,
      hint: 'The metrics of its evaluations tell what it has learned: give records as `evalData`',
    })
  }
  if (newHead && open.head === undefined) {
    throw new ConfigError({ where: 'newHead', what: `the task ${name} trains no head` })
  }
  if (open.needsNeighbors && batchSize < 2) {
    const what = `the task ${name} compares records of a batch`
    throw new ConfigError({ where: 'batchSize', what, expected: 'at least 2' })
  }
}

function layersOf(adapter: LoraAdapter) {
  return {
    widths: adapter.parts('linear').map(({ k }) => k),
    trainsBase: adapter.parts('replacement', 'token-rows').some((part) => {
      return part.shape.length > 1 && !(part.kind === 'replacement' && !part.isTrained)
    }),
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
  run: Pick<Run, 'model' | 'open' | 'settings' | 'longest' | 'on'>,
  limits: RunContext['limits'] = [],
): number {
  const { model, open, on, longest: sequence } = run
  const { memory, batchSize } = run.settings
  // All pictures have the same size, so none is cut.
  const isCut = open.probe.lengths.some(({ name }) => name !== 'batch')
  const needOf = (lowMemory: boolean) => trainingMemory(model, { batch: rowsOfRun(run), sequence, lowMemory })
  const copiedBytes = memory === 'auto' ? chooseCopies(needOf(false), limits) : copiesOf(memory)
  const isLow = copiedBytes < Number.POSITIVE_INFINITY
  const need = needOf(isLow)
  if (isLow && memory === 'auto') {
    const most = copiedBytes === 0 ? 'none are' : `at most ${gigabytes(copiedBytes)} are`
    on.note?.(
      `Of the weights (${gigabytes(need.weights)}), ${most} copied for faster products. \`memory: 'fast'\` copies all of them, which needs up to two copies of the weights in memory`,
    )
  }
  const warning = memoryWarning(need, limits, {
    what: `Training with ${open.rowsOfBatch ?? batchSize} records of ${isCut ? 'up to ' : ''}${sequence} tokens in a batch`,
    help: [
      ...(batchSize > 1 ? ['a smaller `batchSize` with more `gradientAccumulation`'] : []),
      ...(isCut ? ['a shorter `maxLength`'] : []),
      ...(isLow ? [] : ["`memory: 'low'`"]),
    ],
  })
  if (warning !== undefined) (on.warning ?? console.warn)(warning)
  return copiedBytes
}

async function checkTask(task: Task, given: TrainInput): Promise<void> {
  const [error] = attempt(() => task.check(given.model, given)).problems
  if (error === undefined) return
  const others = error instanceof UnsupportedError ? await tasksFor(given.model) : []
  if (others.length === 0) throw error
  const { where, what, expected, got } = error
  const hint = `This model can be trained for ${others.map(({ name }) => name).join(' or ')}: set \`task\``
  throw new UnsupportedError({ where, what, expected, got, hint, cause: error })
}

interface Source {
  /** Names the data in messages. */
  readonly where: string
  readonly first: Row | undefined
  /** All rows, with the first. */
  readonly rows: AsyncIterable<Row>
  readonly invalid: { readonly count: number; readonly first: string }
  readonly onInvalid: RunContext['onInvalid']
}

async function sourceOf(options: TrainInput, data: TrainingData, name: string, around: RunContext): Promise<Source> {
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
  const taking = around.onInvalid ?? (most > 0 ? onInvalid : undefined)
  const left = readRows(data, { name, columns, onInvalid: taking })
  const { value: first, done = false } = await left.next()
  const rows = (async function* () {
    if (!done) yield first as Row
    yield* left
  })()
  return { where, first: done ? undefined : (first as Row), rows, invalid, onInvalid: taking }
}

interface Reading extends Pick<Run, 'options' | 'task' | 'around' | 'facts' | 'settings' | 'config'> {}

/** The records of a source as examples. With `split`, some of them are held out for evaluation. */
async function encode(
  { options, task, around, facts, settings, config }: Reading,
  { rows, where, invalid, onInvalid }: Source,
  part: 'data' | 'split' | 'evalData',
) {
  const isHeldOutWhole = isEvaluatedWhole(task)
  let pairs = task.pairs && new PairsToHoldOut()
  const onRow: EncodeOptions['onRow'] = (row, encoded, isHeldOut, record) => {
    const isEvaluation = isHeldOut || part === 'evalData'
    facts.add(record, isEvaluation)
    around.onRow?.(row, encoded, isEvaluation)
    const ofRow = pairs && task.pairs!(row)
    if (ofRow === undefined) pairs = undefined
    else for (const pair of ofRow) pairs!.add(pair)
  }
  const encoded = await encodeRows(rows, {
    ...options,
    ...{ task, onInvalid, onRow, isHeldOutWhole, name: where, file: around.exampleFile, pictures: around.pictures },
    maxLength: part === 'evalData' && isHeldOutWhole ? undefined : settings.maxLength,
    isHeldOut: part === 'split' ? planSplit(options.evalSplit!, config.seed) : undefined,
  })
  const { kept, heldOut } = encoded
  const all = kept.rows + heldOut.rows
  const warn = (count: number, what: string) => {
    if (count > 0) options.on?.warning?.(`${where}: ${count} of ${all} records ${what}`)
  }
  const cutHere = isHeldOutWhole ? 0 : heldOut.truncatedRecords
  warn(kept.truncatedRecords + cutHere, `cut to ${encoded.maxLength} tokens`)
  warn(heldOut.truncatedRecords - cutHere, 'for evaluation are longer than the model reads')
  warn(invalid.count, `left out, because they are not valid: ${invalid.first}`)
  warn(kept.skippedRecords + heldOut.skippedRecords, 'left out, because they have no target')
  for (const note of new Set([...kept.notes.keys(), ...heldOut.notes.keys()])) {
    warn((kept.notes.get(note) ?? 0) + (heldOut.notes.get(note) ?? 0), note)
  }
  return { ...encoded, pairs }
}

function nameOf(data: TrainingData, name: string): string {
  const files = Array.isArray(data) ? data : [data]
  const names = files.map((file) => (isByteSource(file) || isDirectory(file) ? file.name : undefined))
  return names.length > 0 && !names.includes(undefined) ? listed(names as string[]) : name
}
