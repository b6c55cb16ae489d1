// Training in the page: start, pause, continue after a reload, stop.

import { type LoraAdapter, MemoryDirectory, RuntimeError, type StepEvent, train } from 'lowrank'
import { drawCurve } from './curve.js'
import { DataField, type PageTask, type Picture, taskOf } from './data.js'
import { buttonOf, byId, guarded, inputOf, MendableError } from './dom.js'
import { threadCount } from './machine.js'
import type { Device, ModelChoice, OpenModel } from './models.js'
import { beginRun, copyToMemory, endRun, type Job, type UnfinishedRun, unfinishedRun } from './runs.js'

/** A closed page loses at most this many steps. */
const SAVE_EVERY = 10

const STAGES = {
  encode: 'Reading the text…',
  prepare: 'Building the training graph…',
  evaluate: 'Measuring…',
  train: 'Training…',
  save: 'Saving…',
}

export class Trainer {
  readonly #data = new DataField(suggest)
  #open: OpenModel | undefined
  #running: { abort: AbortController; keeps: boolean } | undefined
  #paused: UnfinishedRun | undefined
  #losses: number[] = []
  /** True if the browser had no space for a run. */
  #isInMemory = false
  readonly #trained: (name: string, adapter: LoraAdapter) => Promise<void>

  readonly #reopen: (device: Device) => Promise<void>

  /** @param reopen opens the same model again, to compute with something else */
  constructor(
    trained: (name: string, adapter: LoraAdapter) => Promise<void>,
    reopen: (device: Device) => Promise<void>,
  ) {
    this.#trained = trained
    this.#reopen = reopen
    buttonOf('start').addEventListener('click', () => void guarded('Training stopped', () => this.#start()))
    buttonOf('pause').addEventListener('click', () => this.#interrupt(false))
    buttonOf('stop').addEventListener('click', () => this.#interrupt(true))
  }

  /** The model that is trained from now on. */
  use(open: OpenModel): void {
    if (this.#open !== undefined && this.#open.source !== open.source) this.#forget()
    this.#open = open
    this.#data.use(open)
    const length = inputOf('max-length')
    length.max = String(open.model.contextLength ?? 4096)
    if (Number(length.value) > Number(length.max)) length.value = length.max
    this.#buttons()
  }

  /** Shows pictures to learn from. */
  learnFrom(pictures: readonly Picture[]): void {
    this.#data.show(pictures)
  }

  /** Offers to continue the run that an earlier visit left; tells how its model is opened. */
  async restore(): Promise<ModelChoice | undefined> {
    this.#paused = await unfinishedRun()
    if (this.#paused === undefined) return undefined
    const { job, pictures } = this.#paused
    this.#data.write(job.data.text, job.data.name)
    this.#data.show(pictures)
    this.#say(`A run of ${job.modelName} is not finished. Open this model, then press Continue.`)
    this.#buttons()
    return job.choice
  }

  async #start(): Promise<void> {
    const open = this.#open
    if (open === undefined) return
    const isResumed = this.#paused !== undefined
    const run = this.#paused ?? (await this.#begin(open))
    const { job, folder } = run
    if (job.modelName !== open.name) {
      throw new Error(`The run is of ${job.modelName}, and ${open.name} is open. Open ${job.modelName}.`)
    }
    const abort = new AbortController()
    this.#running = { abort, keeps: false }
    this.#paused = undefined
    this.#buttons()
    const { name, settings, data, task } = job
    const { rank, ...rest } = settings
    try {
      const { adapter, report } = await train({
        model: open.model,
        device: open.device,
        threads: threadCount(),
        task,
        data: run.pictures.length > 0 ? await rowsOf(run.pictures) : new File([data.text], data.name),
        ...rest,
        config: { rank, alpha: 2 * rank },
        saveEvery: SAVE_EVERY,
        out: folder,
        // A page that closed before its first save left nothing to continue.
        ...(isResumed && (await folder.has('adapter_config.json')) ? { resume: true } : { overwrite: true }),
        signal: abort.signal,
        on: {
          stage: (stage) => this.#say(STAGES[stage]),
          step: (event) => this.#showStep(event, run.pictures.length > 0),
          warning: (message) => this.#say(message),
        },
      })
      this.#losses = report.trainLoss
      drawCurve(curve(), this.#losses, settings.maxSteps)
      if (report.interrupted && !this.#running.keeps) {
        this.#paused = run
        this.#say(`Paused after step ${report.steps} of ${settings.maxSteps}. Press Continue when you like.`)
        return
      }
      const seconds = Math.max(1, Math.round(report.seconds))
      this.#say(`Trained ${report.trainableParams.toLocaleString()} parameters in ${seconds} s. Try it below.`)
      await endRun()
      await this.#trained(name, adapter)
    } catch (error) {
      // A GPU or a worker that is gone: what was saved before is still there.
      if (error instanceof RuntimeError && (await folder.has('adapter_config.json'))) {
        this.#paused = run
        this.#say('The last saved step is kept. Press Continue, or first choose another way to compute in part 1.')
      }
      await this.#refuse(
        open.device === 'webgpu' && error instanceof RuntimeError ? this.#withoutGpu(error) : error,
        run,
      )
    } finally {
      this.#running = undefined
      this.#buttons()
    }
  }

  /** A new run of what the form says. */
  async #begin(open: OpenModel): Promise<UnfinishedRun> {
    const { pictures, ...data } = this.#data.value
    const job = readJob(open, data, taskOf(open, { ...data, pictures }).name as Job['task'])
    this.#losses = []
    const folder = this.#isInMemory
      ? new MemoryDirectory()
      : await beginRun(job, pictures).catch((error) => this.#refuse(error))
    return { job, folder, pictures }
  }

  #withoutGpu(error: RuntimeError): MendableError {
    return new MendableError(error, 'Go on with WebAssembly', async () => {
      await this.#reopen('wasm')
      if (this.#open?.device === 'wasm') await this.#start()
    })
  }

  #interrupt(keeps: boolean): void {
    if (this.#running === undefined) {
      // A paused run that is not wanted.
      this.#paused = undefined
      void endRun()
      this.#say('The run is removed.')
      this.#buttons()
      return
    }
    this.#running.keeps = keeps
    this.#running.abort.abort()
    this.#say(keeps ? 'Stopping after this step…' : 'Pausing after this step…')
  }

  /**
   * Throws the error. Where the browser has no space, what the run has saved goes to memory, and the next run writes
   * nothing to its file system.
   */
  async #refuse(error: unknown, run?: UnfinishedRun): Promise<never> {
    if (!isFull(error)) throw error
    this.#isInMemory = true
    const isSaved = run !== undefined && (await run.folder.has('adapter_config.json'))
    if (isSaved) this.#paused = { ...run, folder: await copyToMemory(run.folder) }
    await endRun()
    const next = isSaved
      ? 'Press Continue: the run goes on from its last saved step'
      : 'Press Train again: the run then stays'
    this.#say(`${next} in memory.`)
    throw new Error(
      `The browser grants this page no more space for the run. ${next} in memory, and a reload loses it.`,
      { cause: error },
    )
  }

  #showStep(event: StepEvent, isOfPictures: boolean): void {
    const { step, loss, totalSteps, secondsLeft } = event
    const rate = isOfPictures ? event.examplesPerSecond : event.tokensPerSecond
    this.#losses[step - 1] = loss
    for (let i = step - 2; i >= 0 && this.#losses[i] === undefined; i--) this.#losses[i] = loss
    drawCurve(curve(), this.#losses, totalSteps)
    byId('number-step').textContent = `${step}/${totalSteps}`
    byId('number-loss').textContent = loss.toFixed(2)
    byId('number-unit').textContent = isOfPictures ? 'Pictures/second' : 'Tokens/second'
    byId('number-speed').textContent =
      rate < 10 ? rate.toLocaleString(undefined, { maximumSignificantDigits: 2 }) : Math.round(rate).toLocaleString()
    byId('number-left').textContent =
      secondsLeft > 90 ? `${Math.round(secondsLeft / 60)} min` : `${Math.ceil(secondsLeft)} s`
    byId('curve-caption').textContent = 'Lower is better. The thick line is a mean of the last steps.'
  }

  /** Clears what the last run showed: it was of another model. */
  #forget(): void {
    this.#losses = []
    drawCurve(curve(), [], 0)
    for (const id of ['step', 'loss', 'speed', 'left']) byId(`number-${id}`).textContent = '–'
    byId('curve-caption').textContent = 'The loss of each step appears here.'
    if (this.#paused === undefined) this.#say('')
  }

  #say(text: string): void {
    byId('train-state').textContent = text
  }

  #buttons(): void {
    const isRunning = this.#running !== undefined
    buttonOf('start').disabled = isRunning || this.#open === undefined
    buttonOf('start').textContent = this.#paused === undefined ? 'Train' : 'Continue'
    buttonOf('pause').disabled = !isRunning
    buttonOf('stop').disabled = !isRunning && this.#paused === undefined
    buttonOf('stop').textContent = this.#paused === undefined ? 'Stop and keep' : 'Remove the run'
  }
}

/** The browser's own error, or lowrank's with it as the cause. */
function isFull(error: unknown): boolean {
  for (let one = error; one instanceof Error; one = one.cause) if (one.name === 'QuotaExceededError') return true
  return false
}

const curve = () => document.getElementById('curve') as unknown as SVGElement

/** The settings that were suggested last, by the ids of their fields. */
let suggested: Readonly<Record<string, string>> = { steps: '60', 'learning-rate': '0.005', 'batch-size': '4' }

/** Puts settings that suit a task into fields that still have those of another. */
function suggest({ page: { unit, settings } }: PageTask): void {
  // All pictures have the size that the model takes.
  byId('length').hidden = unit === 'pictures'
  const own: Record<string, string> = {
    steps: String(settings.maxSteps),
    'learning-rate': String(settings.learningRate),
    'batch-size': String(settings.batchSize),
  }
  for (const [id, value] of Object.entries(own)) if (inputOf(id).value === suggested[id]) inputOf(id).value = value
  suggested = own
}

/** Pictures as records of `train`. */
function rowsOf(pictures: readonly Picture[]): Promise<{ image: Uint8Array; label: string }[]> {
  return Promise.all(
    pictures.map(async ({ file, label }) => ({ image: new Uint8Array(await file.arrayBuffer()), label })),
  )
}

/** The form as a run. */
function readJob({ name, choice }: OpenModel, data: Job['data'], task: Job['task']): Job {
  const number = (id: string, label: string) => {
    const field = inputOf(id)
    const value = Number(field.value)
    if (field.value === '' || !field.checkValidity())
      throw new Error(`${label}: ${field.validationMessage || 'not a number'}`)
    return value
  }
  return {
    name:
      inputOf('name')
        .value.trim()
        .replace(/[^\w.-]+/g, '-') || 'mine',
    choice,
    modelName: name,
    data,
    task,
    settings: {
      maxSteps: number('steps', 'Steps'),
      learningRate: number('learning-rate', 'Learning rate'),
      batchSize: number('batch-size', 'Records a step'),
      maxLength: number('max-length', 'Most tokens a record'),
      rank: number('rank', 'Rank'),
    },
  }
}
