// The process of a job: it checks the files, or trains. It continues what is in the folder of the run, and ends when
// the server ends. Its arguments are `check` or `train`, and the job's folder.

import { createHash } from 'node:crypto'
import { existsSync, linkSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { setPriority } from 'node:os'
import path from 'node:path'
import { RUN_FILES, removeWritten, type TrainingNeeds, trainingNeeds } from '../../../api/node/parts.js'
import { evaluate, type TrainOptions, type TrainRun, train } from '../../../api/node.js'
import { ConfigError, DataError, FileError, LowrankError, messageOf } from '../../../core/base/errors.js'
import { jsonIn } from '../../../core/base/options.js'
import { type Judged, MAX_INVALID, STOP_MS } from '../job.js'
import { stepsOf } from './results.js'
import type { JobSettings } from './settings.js'

/** A message from the job's process to the server. */
export type Message =
  | ({ kind: 'checked' } & TrainingNeeds)
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
/** Ends the check of a file. */
const ENOUGH = new Error('enough records that cannot be used')

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
  const problems: { file: string; message: string }[] = []
  const onInvalid = (error: DataError) => {
    const isEvaluation = settings.evalData !== undefined && error.where?.startsWith(settings.evalData)
    const file = isEvaluation ? 'validation_file' : 'training_file'
    problems.push({ file, message: error.message.replaceAll(`${folder}${path.sep}`, '') })
    if (problems.length === MAX_INVALID) throw ENOUGH
  }
  const on = { warning: (message: string) => void warn(message) }
  const found = await trainingNeeds({ ...settings, on }, onInvalid).catch((error: unknown) => {
    if (error instanceof DataError && problems.length === 0) onInvalid(error)
    if (problems.length === 0) throw error
    return undefined
  })
  if (found === undefined || problems.length > 0) return tell({ kind: 'invalid', problems })
  await tell({ kind: 'checked', ...found })
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
    ...{ model, dtype, data: evalData!, task, taskOptions, maxLength, chatTemplate, threads },
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
  for (const { step, loss, evalLoss, rewards } of await stepsOf(folder)) {
    await tell({ kind: 'step', step, totalSteps: 0, loss, evalLoss, reward: rewards?.reward, secondsLeft: 0 })
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
