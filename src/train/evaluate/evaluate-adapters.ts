// Compares finished adapters with the base: metrics with intervals, the records that differ most, and written answers.

import { ConfigError, counted, DataError, UnsupportedError } from '../../core/base/errors.js'
import { checkOptions, toJson } from '../../core/base/options.js'
import { Steps, type ToolEvents, type ToolRun } from '../../core/base/progress.js'
import { Random } from '../../core/base/random.js'
import { readRows } from '../../files/data/read-rows.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { otherWeights } from '../../model/base-record.js'
import { namedLabels } from '../../model/heads/heads.js'
import type { Model } from '../../model/model-folder.js'
import { placedModel, placeFactors } from '../../model/place/place.js'
import type { CallMatch } from '../../model/text/calls/compare.js'
import { readGraph } from '../../onnx/view/graph.js'
import { ModelSession } from '../../run/model-session.js'
import type { Precision } from '../../run/readings/options.js'
import { checkParts } from '../check-options.js'
import type { SessionParts } from '../engine/sessions.js'
import { joinGraphs } from '../graph/joined-graph.js'
import { checkTrainableForm } from '../graph/trainable-form.js'
import { Learner } from '../learner.js'
import type { TrainInput } from '../options.js'
import { batchOf, longestOf, planEvaluation } from '../rows/batches.js'
import { encodeContext, encodeRow, withPictures } from '../rows/examples.js'
import { resolveSettings } from '../settings.js'
import type { EncodeContext, OpenTask, Question, Task } from '../tasks/task.js'
import { defaultTask } from '../tasks/task-of-row.js'
import { loadTask, taskOfType } from '../tasks/tasks.js'
import { withPrompts } from '../tasks/vectors/prompts.js'
import { checkJudge, countTexts, type JudgeSettings, judge, type TextCounts, textMetrics } from './answers.js'
import { bootstrap, type Interval, type Statistic } from './bootstrap.js'
import type { Difference, DifferingRecord, EvaluatedModel, EvaluateReport } from './report.js'

/** Callbacks of an evaluation. If one throws an error, the evaluation stops. */
export interface EvaluateEvents extends ToolEvents {
  /** Called once for each warning, such as records that were left out. */
  warning?(message: string): void
}

/** Settings of an evaluation. The settings of data and task are the same as in training. */
export interface EvaluateSettings
  extends ToolRun,
    Pick<TrainInput, 'task' | 'taskOptions' | 'columns' | 'maxLength' | 'decodeImage'>,
    Pick<TrainInput, 'chatTemplate' | 'chatTemplateArgs' | 'device' | 'threads' | 'memory'> {
  /**
   * How many records run together if a loss belongs to several records, and how many texts are written together.
   * @range an integer of at least 1
   * @default 8
   */
  readonly batchSize?: number | undefined
  /** Also writes an answer to each record, and compares it: exact match, ROUGE-L and chrF. Default false. */
  readonly generate?: boolean | undefined
  /**
   * Address of a server with OpenAI's API, up to /v1. Its model compares the answers of each adapter with the answers
   * of the first model, in both orders. The metric `judged` is the share of wins, and half of the ties. Implies
   * `generate`. Default: none.
   * @flag URL
   */
  readonly judge?: string | undefined
  /**
   * Name of the model that judges.
   * @flag NAME
   */
  readonly judgeModel?: string | undefined
  /** Key for the judge's server, if it wants one. */
  readonly judgeKey?: string | undefined
  /**
   * With `corpus`: the numbers of first results for which recall, precision, MRR, MAP and nDCG are computed.
   * @default 1,10
   */
  readonly at?: readonly number[] | undefined
  /**
   * With `corpus`: how many numbers of each vector are kept. Default: all.
   * @range an integer of at least 1
   */
  readonly dimensions?: number | undefined
  /**
   * With `corpus`: the form of vectors, as in `embed`. Bytes stand for values between the least and the highest of the
   * documents.
   * @default float32
   */
  readonly precision?: Precision | undefined
  /**
   * With `precision`: this many times the largest number of `at` first results are ordered again, by the whole vector
   * of the question. 0: none.
   * @range an integer of at least 0
   * @default 2
   */
  readonly rescore?: number | undefined
  /**
   * `calls`: whether chats with tools are answered by the right calls of functions, in place of the loss. A request is
   * each answer of a chat, with the chat before it.
   */
  readonly measure?: 'calls' | undefined
  /**
   * When calls count as equal. `values`: equal numbers and texts, with the defaults of the schema, in any order.
   * `bfcl`: as the checker of the Berkeley Function Calling Leaderboard does it; records may have `answers` with
   * possible values.
   * @default values
   */
  readonly match?: CallMatch | undefined
  /** The name of the adapter that all other models are compared with. Default: the base. */
  readonly against?: string | undefined
  /**
   * With `generate`: the most new tokens of an answer.
   * @range an integer of at least 1
   * @default 128
   */
  readonly maxNewTokens?: number | undefined
  /**
   * How many times the records are drawn for the intervals.
   * @range an integer of at least 1
   * @default 1000
   */
  readonly resamples?: number | undefined
  /**
   * Seed of the draws for the intervals.
   * @range a safe integer
   * @default 42
   */
  readonly seed?: number | undefined
  /**
   * How many of the records that differ most are in the report.
   * @range an integer of at least 0
   * @default 10
   */
  readonly differing?: number | undefined
  /** Callbacks. Default: warnings go to console.warn. `{}` is silent. */
  readonly on?: EvaluateEvents | undefined
}

const MAX_RECORD = 2000

interface EvaluatedRecord {
  readonly where: string
  readonly record: string
  readonly examples: readonly number[]
  readonly question: Question | undefined
}

interface Contender {
  readonly name: string | null
  readonly open: OpenTask
  readonly adapter: LoraAdapter
  /** `judged`: 1 if it is better than the first model's, 0.5 for a tie, 0 if it is worse. */
  texts: { readonly text: string; readonly counts: TextCounts; judged: number }[]
}

export async function evaluateAdapters(
  given: Model,
  adapters: Readonly<Record<string, LoraAdapter>>,
  data: TrainInput['data'],
  asked: EvaluateSettings,
): Promise<EvaluateReport> {
  return withPictures({ ...asked, model: given }, (pictures) => evaluateOpened(given, adapters, data, asked, pictures))
}

async function evaluateOpened(
  given: Model,
  adapters: Readonly<Record<string, LoraAdapter>>,
  data: TrainInput['data'],
  asked: EvaluateSettings,
  pictures: EncodeContext['pictures'],
): Promise<EvaluateReport> {
  const judging = checkJudge(asked.judge, asked.judgeModel, asked.judgeKey)
  // Chats get the template that the adapters were trained with, as in sessions.
  const recorded = new Set(Object.values(adapters).flatMap(({ chatTemplate }) => chatTemplate ?? []))
  const chatTemplate = asked.chatTemplate ?? (recorded.size === 1 ? [...recorded][0] : undefined)
  const wanted = { ...asked, chatTemplate, ...(judging !== undefined && { generate: true }) }
  const { resamples = 1000, seed = 42, differing = 10, on = { warning: console.warn } } = wanted
  const onWarning = (message: string) => on.warning?.(message)
  const { device, threads, memory, batchSize } = wanted
  const settings = resolveSettings({ device, threads, memory, batchSize })
  const model = await joinGraphs(given)
  const task = await taskOf(given, Object.values(adapters), wanted.task)
  const options = { ...wanted, taskOptions: withPrompts(task, wanted.taskOptions, Object.values(adapters)[0]) }
  checkOptions(options.taskOptions, `the task ${task.name}`, task.options ?? {})
  task.check(model)
  checkTrainableForm(readGraph(model.onnx))
  await Learner.check(model, settings)
  const { records, examples } = await read(model, task, data, { ...options, pictures }, onWarning)
  const contenders = inOrder(await contendersOf(model, task, adapters, examples, options, onWarning), options.against)
  for (const [name, { trainedOn }] of Object.entries(adapters)) {
    const difference = await otherWeights(trainedOn, model)
    if (difference !== undefined) onWarning(`${name}: ${difference}`)
  }
  const judgements = judging === undefined ? 0 : (contenders.length - 1) * records.length
  const runs = contenders.length * (examples.length + (options.generate ? records.length : 0)) + judgements
  const steps = new Steps(runs, options)
  const measured: Measured[] = []
  for (const [index, contender] of contenders.entries()) {
    const next = () => steps.next(contender.name ?? 'base')
    measured.push(await measure({ ...contender, model, examples, settings, next }, index === 0))
    const { loss } = measured[index]
    if (!Number.isFinite(loss)) onWarning(`${contender.name ?? 'the base'}: the loss is ${loss}`)
  }
  if (options.generate) await writeAnswers(given, contenders, records, options, (name) => steps.next(name))
  if (judging !== undefined) await judgeAnswers(contenders, records, judging, options, steps)
  const statistics = contenders.map((contender, i) =>
    statisticOf(contender, measured[i], records, examples, judging !== undefined),
  )
  const intervals = bootstrap(statistics, records.length, { resamples, seed })
  const lowerIsBetter = ['loss', ...(task.lowerIsBetter ?? [])]
  const models = contenders.map(({ name }, i): EvaluatedModel => {
    const { loss, losses, seconds } = measured[i]
    const { metrics, differences } = intervals[i]
    const judged = judging && i > 0 ? { judged: judgedOf(contenders[i]) } : {}
    const fixed = (value: number): Record<string, Interval> =>
      losses === undefined ? { loss: { value, low: null, high: null } } : {}
    return {
      name,
      metrics: { ...fixed(loss), ...metrics },
      differences: differences && withVerdicts({ ...fixed(loss - measured[0].loss), ...differences }, lowerIsBetter),
      ...judged,
      seconds,
    }
  })
  const { open } = contenders[0]
  return {
    task: task.name,
    records: records.length,
    tokens: examples.reduce<number>((sum, example) => sum + open.cost(example), 0),
    lowerIsBetter,
    models,
    ...differingRecords(contenders, measured, records, differing),
  }
}

export function withVerdicts(
  differences: Readonly<Record<string, Interval>>,
  lowerIsBetter: readonly string[],
): Record<string, Difference> {
  const judged = Object.entries(differences).map(([name, difference]): [string, Difference] => {
    const { low, high } = difference
    const isNoWorse = lowerIsBetter.includes(name) ? high !== null && high <= 0 : low !== null && low >= 0
    return [name, { ...difference, isNoWorse }]
  })
  return Object.fromEntries(judged)
}

async function taskOf(model: Model, adapters: readonly LoraAdapter[], name: string | undefined): Promise<Task> {
  if (name !== undefined) {
    const task = await loadTask(name)
    if (!task.writesTexts) return task
    throw new ConfigError({ where: 'task', what: `the task ${name} learns from texts of its own, not from records` })
  }
  const { taskType } = adapters[0]?.config ?? {}
  const taskOfHead = taskType === undefined ? undefined : await taskOfType(taskType)
  return taskOfHead ?? loadTask(defaultTask(model))
}

async function read(
  model: Model,
  task: Task,
  data: TrainInput['data'],
  options: EvaluateSettings & Pick<EncodeContext, 'pictures'>,
  onWarning: (message: string) => void,
): Promise<{ records: EvaluatedRecord[]; examples: unknown[] }> {
  const context = await encodeContext({ ...options, termsRead: true, model })
  const records: EvaluatedRecord[] = []
  const examples: unknown[] = []
  let [cut, skipped] = [0, 0]
  for await (const { row, where } of readRows(data, { columns: options.columns })) {
    const { parsed, encoded } = await encodeRow(task, row, where, context)
    if (encoded.isTruncated) cut++
    if (encoded.examples.length === 0) {
      skipped++
      continue
    }
    const question = options.generate ? questionOf(task, parsed, context, where) : undefined
    const places = encoded.examples.map((example) => examples.push(example) - 1)
    records.push({ where, record: toJson(row).slice(0, MAX_RECORD), examples: places, question })
  }
  if (cut > 0) onWarning(`${cut} of ${records.length} records are cut to ${context.maxLength} tokens`)
  if (skipped > 0) onWarning(`left out, because they have no target: ${counted(skipped, 'record')}`)
  if (records.length === 0) throw new DataError({ where: 'data', what: 'it has no record to evaluate' })
  return { records, examples }
}

function questionOf(
  task: Task,
  row: unknown,
  context: Parameters<NonNullable<Task['question']>>[1],
  where: string,
): Question {
  if (task.question === undefined) {
    throw new UnsupportedError({ where: 'generate', what: `adapters of the task ${task.name} write no answers` })
  }
  const question = task.question(row, context)
  if (question !== undefined) return question
  throw new DataError({
    where,
    what: 'it has no answer that a text could be compared with',
    expected: 'a prompt with a completion, a question with an answer, or a chat that ends with the assistant',
    hint: 'Leave out `generate` and `judge` to measure the loss of texts',
  })
}

/**
 * Returns the models to compare, each with the task for its labels: the base, if it has a head for the labels, and the
 * adapters.
 */
async function contendersOf(
  model: Model,
  task: Task,
  adapters: Readonly<Record<string, LoraAdapter>>,
  examples: readonly unknown[],
  { taskOptions }: EvaluateSettings,
  onWarning: (message: string) => void,
): Promise<Contender[]> {
  const openFor = (joined: Model, adapter: LoraAdapter | undefined): OpenTask => {
    const problemType = 'problemType' in (task.options ?? {}) ? adapter?.problemType : undefined
    return task.open(joined, examples, { ...(problemType && { problemType }), ...taskOptions })
  }
  const contenders: Contender[] = []
  const graph = readGraph(model.onnx)
  const wanted = Object.values(adapters).find(({ labels }) => labels !== undefined)?.labels
  const isComparable = wanted === undefined || namedLabels(model.config).join('\n') === wanted.join('\n')
  const open = isComparable ? openFor(model, undefined) : undefined
  const base = open && (await noAdapter(open))
  if (open !== undefined && base !== undefined) contenders.push({ name: null, open, adapter: base, texts: [] })
  else if (wanted !== undefined) onWarning('the base is left out: it has no head for these labels')
  else {
    throw new UnsupportedError({
      where: 'model',
      what: 'it has no head for these labels',
      hint: 'Give an adapter that has one',
    })
  }
  for (const [name, adapter] of Object.entries(adapters)) {
    const { labels } = adapter
    const labelled =
      labels === undefined ? model : { ...model, config: { ...model.config, id2label: { ...labels }, label2id: {} } }
    const open = openLabelled(name, labels, () => openFor(labelled, adapter))
    for (const example of examples) open.checkEvaluation?.(example)
    placeFactors(placedModel(graph, 'training'), { layers: adapter.parts('linear') })
    await checkParts(adapter, { model: labelled, open, modules: undefined })
    contenders.push({ name, open, adapter, texts: [] })
  }
  return contenders
}

function inOrder(contenders: Contender[], against: string | undefined): Contender[] {
  if (against === undefined) return contenders
  const first = contenders.find(({ name }) => name === against)
  if (first !== undefined) return [first, ...contenders.filter((contender) => contender !== first)]
  throw new ConfigError({ where: 'against', what: 'no such adapter', got: against })
}

function openLabelled(name: string, labels: readonly string[] | undefined, open: () => OpenTask): OpenTask {
  const refuse = (got: string | undefined, cause?: Error) =>
    new DataError({
      where: 'data',
      what: `its labels are not those of ${name}`,
      expected: labels?.join(', '),
      ...(got !== undefined && { got }),
      cause,
    })
  try {
    const opened = open()
    const unknown = labels && opened.labels?.find((label) => !labels.includes(label))
    if (unknown !== undefined) throw refuse(JSON.stringify(unknown))
    return opened
  } catch (error) {
    if (labels === undefined || !(error instanceof DataError)) throw error
    throw error.where === 'data' ? error : refuse(error.got, error)
  }
}

function statisticOf(
  { open, texts }: Contender,
  { losses, weights, predictions, values }: Measured,
  records: readonly EvaluatedRecord[],
  examples: readonly unknown[],
  isJudged: boolean,
): Statistic {
  return (chosen) => {
    let [sum, total] = [0, 0]
    const places: number[] = []
    for (let i = 0; i < chosen.length; i++) {
      for (const place of records[chosen[i]].examples) {
        sum += (losses?.[place] ?? 0) * weights[place]
        total += weights[place]
        places.push(place)
      }
    }
    const loss = sum / total
    const overall = (): Record<string, number> =>
      open.metrics({
        loss,
        examples: places.map((place) => examples[place]),
        predictions: places.map((place) => predictions[place]),
      })
    const means = values.map(([name, of]) => {
      return [name, places.reduce((all, place) => all + of[place], 0) / places.length] as const
    })
    return {
      ...(losses !== undefined && { loss }),
      ...(values.length > 0 ? Object.fromEntries(means) : overall()),
      ...(texts.length > 0 && textMetrics(Array.from(chosen, (record) => texts[record].counts))),
      ...(isJudged && {
        judged: Array.from(chosen, (record) => texts[record].judged).reduce((a, b) => a + b, 0) / chosen.length,
      }),
    }
  }
}

async function writeAnswers(
  model: Model,
  contenders: readonly Contender[],
  records: readonly EvaluatedRecord[],
  { batchSize = 8, maxNewTokens = 128, chatTemplate, chatTemplateArgs, ...options }: EvaluateSettings,
  next: (name: string) => Promise<void>,
): Promise<void> {
  const adapters = Object.fromEntries(
    contenders.flatMap(({ name, adapter }) => (name === null ? [] : [[name, adapter]])),
  )
  const { device, threads, signal, decodeImage } = options
  const memory = options.memory === 'low' ? 'low' : 'fast'
  const session = await ModelSession.open(model, { adapters, device, threads, memory }, false, { decodeImage })
  try {
    for (const contender of contenders) {
      for (let from = 0; from < records.length; from += batchSize) {
        const some = records.slice(from, from + batchSize)
        const prompts = some.map(({ question }) => question!.prompt)
        const settings = { temperature: 0, batchSize, maxNewTokens, chatTemplate, chatTemplateArgs, signal }
        const pictures = some.map(({ question }) => question!.images ?? [])
        const images = pictures.some(({ length }) => length > 0) ? pictures : undefined
        const results = await session.generate(prompts, { ...settings, images, adapter: contender.name })
        for (const [i, { text }] of results.entries()) {
          contender.texts.push({ text, counts: countTexts(text, some[i].question!.answer), judged: 0.5 })
          await next(contender.name ?? 'base')
        }
      }
    }
  } finally {
    await session.dispose()
  }
}

const JUDGED_TOGETHER = 8

async function judgeAnswers(
  [first, ...others]: readonly Contender[],
  records: readonly EvaluatedRecord[],
  settings: JudgeSettings,
  { signal }: EvaluateSettings,
  steps: Steps,
): Promise<void> {
  for (const { name, texts } of others) {
    for (let from = 0; from < records.length; from += JUDGED_TOGETHER) {
      const places = records.slice(from, from + JUDGED_TOGETHER).map((_, i) => from + i)
      await Promise.all(
        places.map(async (i) => {
          const { prompt, answer: wanted } = records[i].question!
          const asked =
            typeof prompt === 'string'
              ? prompt
              : prompt.map((message) => `${message.role}: ${message.content}`).join('\n')
          const pair = { prompt: asked, wanted, first: first.texts[i].text, second: texts[i].text }
          texts[i].judged = await judge(pair, settings, signal as AbortSignal | undefined)
        }),
      )
      for (const _ of places) await steps.next(`judge of ${name}`)
    }
  }
}

function judgedOf({ texts }: Contender): NonNullable<EvaluatedModel['judged']> {
  const count = (value: number) => texts.filter(({ judged }) => judged === value).length
  return { won: count(1), tied: count(0.5), lost: count(0) }
}

function differingRecords(
  contenders: readonly Contender[],
  measured: readonly Measured[],
  records: readonly EvaluatedRecord[],
  count: number,
): Pick<EvaluateReport, 'differBy' | 'differing'> {
  const isByLoss = measured.every(({ losses }) => losses !== undefined)
  const values = measured.map(({ losses, values }) => (isByLoss ? (['loss', losses!] as const) : values.at(-1)))
  if (contenders.length < 2 || values.some((losses) => losses === undefined)) return { differBy: null, differing: [] }
  const found = records.map(({ where, record, examples, question }, index) => {
    const losses = values.map((named, model) => {
      const weights = examples.map((place) => measured[model].weights[place])
      const total = weights.reduce((sum, weight) => sum + weight, 0)
      return examples.reduce((sum, place, i) => sum + named![1][place] * weights[i], 0) / total
    })
    const answers = contenders.flatMap(({ texts }) => texts[index]?.text ?? [])
    return { where, record, values: losses, ...(answers.length > 0 && { wanted: question?.answer, answers }) }
  })
  const distance = ({ values: [first, ...others] }: (typeof found)[number]) =>
    Math.max(...others.map((value) => Math.abs(value - first)))
  return {
    differBy: values[0]![0],
    differing: found.sort((a, b) => distance(b) - distance(a)).slice(0, count) as DifferingRecord[],
  }
}

type MeasureInput = Omit<SessionParts, 'modules' | 'on'> & {
  readonly examples: readonly unknown[]
  readonly next: () => Promise<void>
}

interface Measured {
  readonly loss: number
  /** The mean loss of each example; undefined if the loss can only be computed for a whole batch. */
  readonly losses: readonly number[] | undefined
  /** The weight of each example in a mean, which is its number of targets. */
  readonly weights: readonly number[]
  readonly predictions: readonly unknown[]
  readonly seconds: number
  /** Metrics that are means, with their value for each example. */
  readonly values: readonly (readonly [name: string, values: readonly number[]])[]
}

/** Makes an adapter that changes nothing, to evaluate the base. Returns undefined if the base lacks the task's head. */
async function noAdapter({ head }: OpenTask): Promise<LoraAdapter | undefined> {
  if (head?.isNew) return undefined
  const adapter = new LoraAdapter({ targetModules: [], modulesToSave: head?.modulesToSave ?? [] })
  for (const { name, shape, start } of head?.tensors ?? []) {
    adapter.addReplacement(name, { data: await start(new Random(0, name)), shape })
  }
  return adapter
}

async function measure(input: MeasureInput, takeReference = false): Promise<Measured> {
  const { model, open, examples, settings, next } = input
  const costs = examples.map((example) => open.cost(example))
  const trainer = await Learner.open({ ...input, longest: longestOf(costs), modules: undefined }, false)
  try {
    await trainer.start()
    const startedAt = performance.now()
    // A loss that compares examples belongs to a batch. All other losses are computed for each record.
    const isOfBatch = open.stepLoss !== undefined || open.needsNeighbors === true
    const limit = model.contextLength ?? Number.POSITIVE_INFINITY
    const plans = planEvaluation(costs, {
      batchSize: isOfBatch || open.exampleLosses !== undefined ? settings.batchSize : 1,
      limit,
      inOrder: open.needsNeighbors ?? false,
    })
    const losses: number[] = Array(examples.length)
    const weights: number[] = Array(examples.length)
    const predictions: unknown[] = Array(examples.length)
    let [sum, total] = [0, 0]
    for (const plan of plans) {
      const { examples: places } = plan
      const batch = batchOf(examples, plan)
      if (takeReference && open.reference !== undefined) {
        const before = open.reference((await trainer.forward(batch)).outputs)
        for (const [i, example] of batch.examples.entries()) Object.assign(example as object, { before: before[i] })
      }
      const { loss, normalizer, outputs } = await trainer.forward(batch)
      sum += loss * normalizer
      total += normalizer
      const predicted = open.predict(outputs, batch.examples)
      const perExample = open.exampleLosses?.(predicted)
      for (const [i, place] of places.entries()) {
        losses[place] = perExample?.[i] ?? loss
        weights[place] = perExample === undefined ? normalizer / places.length : open.normalizer([examples[place]])
        predictions[place] = predicted[i]
        await next()
      }
    }
    return {
      loss: sum / total,
      losses: isOfBatch ? undefined : losses,
      weights,
      predictions,
      seconds: (performance.now() - startedAt) / 1000,
      values: Object.entries(open.values?.({ examples, predictions }) ?? {}),
    }
  } finally {
    await trainer.close()
  }
}
