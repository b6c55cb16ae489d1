// The process of a job: it checks the files, or trains. It continues what is in the folder of the run, and ends when
// the server ends. Its arguments are `check` or `train`, and the job's folder.

import { createHash } from 'node:crypto'
import { existsSync, linkSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { setPriority } from 'node:os'
import path from 'node:path'
import {
  checkData,
  type DataReport,
  type EvaluateOptions,
  evaluate,
  loadModel,
  type TrainOptions,
  type TrainRun,
  train,
} from '../../../api/node.js'
import { closing } from '../../../core/base/bytes.js'
import { attempt, ConfigError, type DataError, FileError, LowrankError, messageOf } from '../../../core/base/errors.js'
import { jsonIn } from '../../../core/base/options.js'
import { readRows } from '../../../files/data/read-rows.js'
import { openFile } from '../../../files/io/node/files.js'
import { removeWritten } from '../../../files/io/node/whole-output.js'
import { findLinears } from '../../../model/match/linears.js'
import { chooseCopies, trainingMemory } from '../../../model/memory.js'
import { readGraph } from '../../../onnx/view/graph.js'
import { RATE_SHARE } from '../../../train/loop/grpo.js'
import { promptOf } from '../../../train/loop/prompts.js'
import { checkWriter } from '../../../train/rows/sources.js'
import { RUN_FILES } from '../../../train/saved/run-folder.js'
import { resolveSettings, withDefaultRate } from '../../../train/settings.js'
import { loadTask } from '../../../train/tasks/tasks.js'
import { type Judged, MAX_INVALID, STOP_MS } from '../job.js'
import { stepsOf } from './results.js'
import type { Checked, JobSettings } from './settings.js'

interface MemoryUse {
  readonly graph: string
  readonly weights: number
  /** Bytes of weights that are copied for faster products. */
  readonly copies: number
  /** Bytes for each record of a batch. */
  readonly perRecord: number
}

/** A message from the job's process to the server. */
export type Message =
  | ({ kind: 'checked'; memory: MemoryUse; adapterBytes: number } & Checked)
  | { kind: 'invalid'; problems: readonly { readonly file: string; readonly message: string }[] }
  | {
      kind: 'step'
      step: number
      totalSteps: number
      loss: number
      evalLoss?: number | undefined
      reward?: number | undefined
      secondsLeft: number
    }
  | { kind: 'checkpoint'; step: number }
  /** `key` is the same for the same warning. */
  | { kind: 'warning'; key: string; message: string }
  | ({ kind: 'judged' } & Pick<Judged, 'value' | 'low' | 'high' | 'isPassed'>)
  | { kind: 'failed'; code: string; message: string }
  | { kind: 'done' }

/** An order of the server: save and end, wait after this step, or go on. */
export type Order = 'stop' | 'wait' | 'go'

const ADAPTER_FILES = ['adapter_config.json', 'adapter_model.safetensors', 'chat_template.jinja']
const RETRY_MS = 500
/** The rank that `train` takes by itself. */
const USUAL_RANK = 8

const [mode, folder, every, gate] = process.argv.slice(2)
const settings = JSON.parse(readFileSync(path.join(folder, 'settings.json'), 'utf8')) as JobSettings
const run = path.join(folder, 'run')
const stopped = new AbortController()

const tell = (message: Message) =>
  new Promise<void>((resolve) => {
    if (process.connected) process.send!(message, () => resolve())
    else resolve()
  })

/** The key of a warning comes from its text, so that a process that starts again does not tell it twice. */
const warn = (message: string) =>
  tell({ kind: 'warning', key: createHash('sha256').update(message).digest('hex').slice(0, 12), message })

process.umask(0o077)
let isHeld = false
let training: TrainRun | undefined
process.on('message', (order: Order) => {
  if (order === 'stop') return stopped.abort()
  isHeld = order === 'wait'
  if (isHeld) training?.pause()
  else training?.resume()
})
/** The server has ended. What saves or measures too long ends too, so that no process stays. */
function endWithServer(): void {
  stopped.abort()
  setTimeout(() => process.kill(process.pid, 'SIGKILL'), STOP_MS).unref()
}
process.on('disconnect', endWithServer)
// It may have ended while this program was loaded.
if (!process.connected) endWithServer()
try {
  setPriority(10)
} catch {
  // It trains at the usual priority.
}
try {
  await (mode === 'check' ? check() : work())
} catch (error) {
  // The log of the job keeps the stack, for the operator.
  console.error(error)
  const { code, message } = error instanceof LowrankError ? error : { code: 'INTERNAL', message: messageOf(error) }
  await tell({ kind: 'failed', code, message })
}
if (process.connected) process.disconnect()
process.exit(0)

async function check(): Promise<void> {
  const { data, evalData, task, maxLength, chatTemplate, termsRead, config } = settings
  const facts = await closing(await loadModel(settings.model, { dtype: settings.dtype }), async (model) => {
    const bounds = { signal: stopped.signal, maxInvalid: MAX_INVALID }
    const options = { model, data, evalData, task, maxLength, chatTemplate, termsRead, ...bounds }
    const linears = findLinears(readGraph(model.onnx)).filter(({ isHead }) => !isHead)
    const about = task === 'grpo' ? { rateShare: RATE_SHARE } : await loadTask(task!)
    const widths = linears.map(({ k }) => k)
    const { learningRate } = withDefaultRate(resolveSettings({}), {}, about, { widths, trainsBase: false })
    const report = await (task === 'grpo' ? checkPrompts(data) : checkData(options))
    const sequence = report.lengths?.most ?? maxLength ?? model.contextLength ?? 0
    const [empty, one] = [0, 1].map((batch) => trainingMemory(model, { batch, sequence, lowMemory: false }))
    const { onnxPath: graph } = model
    const { weights } = empty
    const memory = {
      graph,
      weights,
      copies: Math.min(weights, chooseCopies(empty, [])),
      perRecord: one.total - empty.total,
    }
    const rows = linears.reduce((sum, { k, d }) => sum + k + d, 0)
    return { learningRate, report, memory, adapterBytes: 4 * (config?.rank ?? USUAL_RANK) * rows }
  })
  const { report, ...found } = facts
  const { learnable, invalid, notes } = report
  const problems = invalid.slice(0, MAX_INVALID).map(({ where, message }) => ({
    file: evalData !== undefined && where.startsWith(evalData) ? 'validation_file' : 'training_file',
    message: message.replaceAll(`${folder}${path.sep}`, ''),
  }))
  if (learnable === 0 && problems.length === 0)
    problems.push({ file: 'training_file', message: 'no record has a text to learn' })
  if (problems.length > 0) return tell({ kind: 'invalid', problems })
  for (const [note, count] of Object.entries(notes)) await warn(`${count} records ${note}`)
  await tell({ kind: 'checked', records: learnable, ...found })
}

async function checkPrompts(file: string): Promise<Pick<DataReport, 'learnable' | 'invalid' | 'notes' | 'lengths'>> {
  const invalid: { where: string; message: string }[] = []
  let learnable = 0
  await closing(await openFile(file), async (source) => {
    const onInvalid = ({ where = '', message }: DataError) => void invalid.push({ where, message })
    for await (const { row, where } of readRows(source, { name: 'data', onInvalid })) {
      const { problems } = attempt(() => {
        checkWriter(row, where, settings.termsRead)
        return promptOf(row, where)
      })
      for (const problem of problems) invalid.push({ where, message: problem.message })
      if (problems.length === 0) learnable++
      if (invalid.length >= MAX_INVALID) break
    }
  })
  return { learnable, invalid, notes: {}, lengths: null }
}

async function work(): Promise<void> {
  const has = (file: string) => existsSync(path.join(run, file))
  const marker = has('lowrank.json') ? jsonIn(readFileSync(path.join(run, 'lowrank.json'), 'utf8')) : undefined
  const isFinished = (marker as { status?: string } | undefined)?.status === 'finished'
  await tellMade()
  if (!isFinished) {
    const resume = has('training-state.safetensors')
    if (!resume) await removeWritten(run, (file) => RUN_FILES.includes(file))
    const saveEvery = settings.saveEvery!
    // The key is written to no file.
    const key = process.env.LOWRANK_GRADER_KEY
    const models = settings.graderModels && Object.entries(settings.graderModels)
    const graderModels = models && Object.fromEntries(models.map(([name, url]) => [name, { url, key }]))
    const on: TrainOptions['on'] = {
      step({ step, totalSteps, loss, evalLoss, rewards, secondsLeft }) {
        // Until the next save, the folder has the adapter of the last one.
        if ((step - 1) % saveEvery === 0) keep(step - 1)
        void tell({ kind: 'step', step, totalSteps, loss, evalLoss, reward: rewards?.reward, secondsLeft })
      },
      warning: (message) => void warn(message),
    }
    const result = await taking(() => {
      training = train({ ...settings, graderModels, out: run, resume, signal: stopped.signal, on })
      if (isHeld) training.pause()
      return training
    })
    if (result.report.interrupted) return
    for (const warning of result.report.warnings) await warn(warning)
  }
  await tellMade()
  if (gate !== undefined) await judge(JSON.parse(gate))
  await tell({ kind: 'done' })
}

/** Compares the result with another adapter, or with the base, on the validation file. */
async function judge({ metric, before }: { metric: string; before?: string }): Promise<void> {
  const { model, dtype, evalData, task, taskOptions, maxLength, chatTemplate, threads } = settings
  const { models } = await evaluate({
    ...{
      model,
      dtype,
      data: evalData!,
      task: task as EvaluateOptions['task'],
      taskOptions,
      maxLength,
      chatTemplate,
      threads,
    },
    adapters: { ...(before !== undefined && { before }), after: run },
    ...(before !== undefined && { against: 'before' }),
    on: {},
  })
  const differences = models.find(({ name }) => name === 'after')!.differences!
  if (!Object.hasOwn(differences, metric)) {
    const expected = Object.keys(differences).join(', ')
    throw new ConfigError({ where: 'gate.metric', what: 'there is no such metric', expected, got: metric })
  }
  const { value, low, high, isNoWorse: isPassed } = differences[metric]
  await tell({ kind: 'judged', value, low, high, isPassed })
}

/** Keeps the run's adapter as that of a step. Its files are replaced and never changed, so hard links are enough. */
function keep(step: number): void {
  const place = path.join(folder, 'checkpoints', `step-${step}`)
  if (step === 0 || step % Number(every) !== 0 || existsSync(place)) return
  const made = `${place}.tmp`
  rmSync(made, { recursive: true, force: true })
  mkdirSync(made, { recursive: true })
  for (const file of ADAPTER_FILES) {
    if (existsSync(path.join(run, file))) linkSync(path.join(run, file), path.join(made, file))
  }
  renameSync(made, place)
  void tell({ kind: 'checkpoint', step })
}

/** Tells the steps and checkpoints in the folder: the server may have ended before it heard of them. */
async function tellMade(): Promise<void> {
  for (const { step, loss, evalLoss } of await stepsOf(folder)) {
    await tell({ kind: 'step', step, totalSteps: 0, loss, evalLoss, secondsLeft: 0 })
    if (existsSync(path.join(folder, 'checkpoints', `step-${step}`))) await tell({ kind: 'checkpoint', step })
  }
}

/** Waits while the process of a server that was killed still saves in the folder. */
async function taking<T>(work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await work()
    } catch (error) {
      const isTaken = error instanceof FileError && error.what.startsWith('another training is writing')
      if (!isTaken || stopped.signal.aborted) throw error
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS))
    }
  }
}
