// Training in the page: start, pause, continue after a reload, stop. Only one tab at a time has the run.

import {
  DataError,
  type LoraAdapter,
  loadAdapter,
  MemoryDirectory,
  RuntimeError,
  type StepEvent,
  type TrainOptions,
  train,
} from 'lowrank'
import { drawCurve } from './curve.js'
import { DataField, type PageTask, type Picture, partnersIn, taskOf } from './data.js'
import { buttonOf, byId, guarded, inputOf, MendableError, numberOf, showError } from './dom.js'
import { threadCount } from './machine.js'
import { type Device, isSame, type ModelChoice, type OpenModel } from './models.js'
import { beginRun, endRun, type Job, leaveRun, savedSteps, takeRun, type UnfinishedRun, unfinishedRun } from './runs.js'
import { filesOf, isFull } from './store.js'

/** A closed page loses at most this many steps. */
const SAVE_EVERY = 5

const CAPTION = 'Lower is better. The thick line and the number are a mean of the last steps.'

const STAGES = {
  encode: 'Reading the data…',
  prepare: 'Making the model ready to learn…',
  evaluate: 'Measuring…',
  train: 'Learning…',
  save: 'Saving…',
}

export interface Surroundings {
  choose(choice: ModelChoice): Promise<void>
  reopen(device: Device): Promise<void>
  /** Puts the questions of the lesson on the page, without answers yet. */
  begin(job: Job): void
  /** Shows the answers of an unfinished adapter, unless the page is busy. */
  answer(adapter: LoraAdapter, job: Job, when: string): Promise<void>
  /** Shows the recorded lesson again. */
  reset(): void
  /** Does work that opens the model a second time, and frees memory for it. */
  makeRoom<T>(work: () => Promise<T>): Promise<T>
  /** `gain` says in words what the adapter learned, and `time` how long it took. */
  trained(adapter: LoraAdapter, job: Job, gain: string, time: string): Promise<void>
}

export class Trainer {
  readonly data = new DataField(suggest)
  #open: OpenModel | undefined
  #wanted: ModelChoice = { kind: 'bundled' }
  #running: { abort: AbortController; keeps: boolean } | undefined
  #paused: UnfinishedRun | undefined
  #losses: number[] = []
  /** How long the earlier parts of a paused run took. */
  #seconds = 0
  #isInMemory = false
  #isAnswering = false
  #stage: keyof typeof STAGES = 'encode'

  constructor(private readonly page: Surroundings) {
    const start = () => void guarded('train', 'Training stopped', () => this.#start())
    buttonOf('start').addEventListener('click', start)
    buttonOf('pause').addEventListener('click', () => this.#interrupt(false))
    buttonOf('stop').addEventListener('click', () => this.#interrupt(true))
    const remove = () => void guarded('train', 'The run is not removed', () => this.#end('The run is removed.'))
    buttonOf('remove').addEventListener('click', remove)
    addEventListener('beforeunload', (event) => {
      if (this.#running !== undefined) event.preventDefault()
    })
  }

  use(open: OpenModel): void {
    if (this.#open !== undefined && this.#open.source !== open.source) this.#clear(true)
    this.#open = open
    this.#wanted = open.choice
    this.data.use(open)
    const length = inputOf('max-length')
    length.max = String(open.model.contextLength ?? 4096)
    if (Number(length.value) > Number(length.max)) length.value = length.max
  }

  /** Prepares for a recipe: its model, and a page without an earlier run. */
  want(choice: ModelChoice): void {
    this.#wanted = choice
    if (this.#running === undefined && this.#paused === undefined) this.#clear(true)
  }

  /** True while a run learns or waits to be continued. */
  get hasRun(): boolean {
    return this.#running !== undefined || this.#paused !== undefined
  }

  /** Offers to continue the run that an earlier visit left. */
  async restore(): Promise<boolean> {
    const run = await unfinishedRun()
    if (run === undefined) return false
    const { job, pictures } = run
    await this.data.read(run.data, job.dataName)
    if (pictures.length > 0) this.data.show(pictures)
    const events = await savedSteps(run)
    this.#clear()
    this.#losses = events.map(({ loss }) => loss)
    this.#draw(job.settings.maxSteps)
    const last = events.at(-1)
    if (last !== undefined) {
      byId('number-step').textContent = `${last.step}/${job.settings.maxSteps}`
    }
    this.#paused = run
    this.page.begin(job)
    this.#say(
      `A run of ${job.modelName} is not finished: ${events.length} of ${job.settings.maxSteps} steps are saved.`,
    )
    this.#buttons()
    return true
  }

  async #start(): Promise<void> {
    await takeRunHere()
    // Another tab may have ended the paused run meanwhile.
    if (this.#paused !== undefined && !(this.#paused.folder instanceof MemoryDirectory)) {
      this.#paused = await unfinishedRun()
    }
    // A paused run continues with the model that it began with.
    const choice = this.#paused?.job.choice ?? this.#wanted
    try {
      buttonOf('start').disabled = true
      if (this.#open === undefined || !isSame(this.#open.choice, choice)) {
        this.#say('Opening the model…')
        await this.page.choose(choice)
      }
      const open = this.#open as OpenModel
      const isResumed = this.#paused !== undefined
      const run = this.#paused ?? (await this.#begin(open))
      if (run.job.modelName !== open.name) {
        throw new Error(`The run is of ${run.job.modelName}, and ${open.name} is open. Open ${run.job.modelName}.`)
      }
      await this.#run(open, run, isResumed)
    } finally {
      this.#running = undefined
      if (this.#paused === undefined) leaveRun()
      this.#buttons()
    }
  }

  async #run(open: OpenModel, run: UnfinishedRun, isResumed: boolean): Promise<void> {
    const { job, folder } = run
    const abort = new AbortController()
    this.#running = { abort, keeps: false }
    this.#paused = undefined
    this.#buttons()
    this.page.begin(run.job)
    byId('run').scrollIntoView()
    const { settings, task } = job
    const { rank, ...rest } = settings
    const unit = run.pictures.length > 0 ? 'Pictures/second' : 'Tokens/second'
    try {
      const options: TrainOptions = {
        model: open.model,
        device: open.device,
        threads: threadCount(),
        task,
        data: run.pictures.length > 0 ? await rowsOf(run.pictures) : new File([run.data], job.dataName),
        ...rest,
        config: { rank, alpha: 2 * rank },
        saveEvery: SAVE_EVERY,
        out: folder,
        // If the page closed before the first save, there is nothing to continue, and the run starts again.
        ...(isResumed && (await folder.has('adapter_config.json')) ? { resume: true } : { overwrite: true }),
        signal: abort.signal,
        on: {
          stage: (stage) => {
            this.#stage = stage
            this.#showStage(STAGES[stage], stage === 'train' ? undefined : 0)
          },
          progress: ({ stage, done, total }) => {
            if (stage === this.#stage) this.#showStage(STAGES[stage], done / total)
          },
          step: (event) => {
            this.#showStep(event, unit)
            if (event.step > 1 && (event.step - 1) % SAVE_EVERY === 0) void this.#answer(event.step - 1, run)
          },
          warning: (message) => this.#say(message),
        },
      }
      const { adapter, report } = await this.page.makeRoom(async () => train(options))
      this.#losses = report.trainLoss
      this.#seconds += report.seconds
      this.#draw(settings.maxSteps)
      if (report.interrupted && !this.#running.keeps) {
        this.#paused = run
        this.#say(`Paused after step ${report.steps} of ${settings.maxSteps}.`)
        return
      }
      const seconds = Math.max(1, Math.round(this.#seconds))
      this.#say('Answering…')
      byId('stage').hidden = buttonOf('pause').hidden = buttonOf('stop').hidden = true
      await this.page.trained(adapter, job, gainOf(report.trainLoss), `in ${seconds} s on this machine`)
      await endRun()
      this.#say(`Trained ${report.trainableParams.toLocaleString()} parameters in ${seconds} s.`)
    } catch (error) {
      if (error instanceof DataError) {
        await endRun()
        this.#clear(true)
        this.page.reset()
        this.data.blame(error)
        showError('data', 'The data cannot be read', error)
        return
      }
      if (isFull(error) && !(folder instanceof MemoryDirectory)) {
        // The browser's storage is full: the run continues in memory, from its last save.
        this.#leaveDisk()
        const kept = await filesOf(folder)
        await endRun()
        return this.#run(open, { ...run, folder: kept }, true)
      }
      // The GPU or the worker is lost, but the last save is still there.
      if (error instanceof RuntimeError && (await folder.has('adapter_config.json'))) {
        this.#paused = run
        this.#say(
          'The last saved step is kept. Press Continue, or first choose another way to compute under “The model”.',
        )
      }
      throw open.device === 'webgpu' && error instanceof RuntimeError ? this.#withoutGpu(error) : error
    } finally {
      byId('stage').hidden = true
    }
  }

  async #begin(open: OpenModel): Promise<UnfinishedRun> {
    const { pictures, blob, text, name } = this.data.value
    const job = readJob(open, name, taskOf(open, { text, pictures }).name as Job['task'], partnersIn(text))
    this.#clear()
    const run = { job, data: blob, pictures }
    try {
      if (!this.#isInMemory) return { ...run, folder: await beginRun(job, blob, pictures) }
    } catch (error) {
      if (!isFull(error)) throw error
      this.#leaveDisk()
    }
    return { ...run, folder: new MemoryDirectory() }
  }

  #leaveDisk(): void {
    this.#isInMemory = true
    byId('disk').textContent =
      'The browser grants this page no more space. The run goes on in memory, and a reload would lose it.'
    byId('disk').hidden = false
  }

  #withoutGpu(error: RuntimeError): MendableError {
    return new MendableError(error, 'Go on with WebAssembly', async () => {
      await this.page.reopen('wasm')
      if (this.#open?.device === 'wasm') await this.#start()
    })
  }

  #interrupt(keeps: boolean): void {
    if (this.#running === undefined) return void guarded('train', 'The adapter cannot be kept', () => this.#keep())
    this.#running.keeps = keeps
    this.#running.abort.abort()
    this.#say(keeps ? 'Stopping after this step…' : 'Pausing after this step…')
  }

  /** Keeps the adapter of a paused run as it was saved last, and ends the run. */
  async #keep(): Promise<void> {
    await takeRunHere()
    if (this.#paused === undefined) return
    const { job, folder } = this.#paused
    const [gain, steps] = [gainOf(this.#losses), `after ${this.#losses.length} steps`]
    await this.page.choose(job.choice)
    await this.page.trained(await loadAdapter(folder), job, gain, steps)
    await this.#end(`Kept ${steps}.`)
  }

  async #end(text: string): Promise<void> {
    await takeRunHere()
    this.#paused = undefined
    await endRun()
    leaveRun()
    this.#say(text)
    this.#buttons()
  }

  /** Shows the answers of the adapter that was saved last. If they come late or fail, they are skipped. */
  async #answer(step: number, { folder, job }: UnfinishedRun): Promise<void> {
    if (this.#isAnswering) return
    this.#isAnswering = true
    try {
      await this.page.answer(await loadAdapter(folder), job, `After step ${step} of ${job.settings.maxSteps}`)
    } catch {
    } finally {
      this.#isAnswering = false
    }
  }

  #showStage(text: string, share: number | undefined): void {
    const stage = byId<HTMLProgressElement>('stage')
    stage.hidden = false
    if (share !== undefined) stage.value = share
    this.#say(text)
  }

  #showStep(event: StepEvent, unit: string): void {
    const { step, loss, totalSteps, secondsLeft } = event
    const rate = unit === 'Pictures/second' ? event.examplesPerSecond : event.tokensPerSecond
    byId('run').hidden = byId('numbers').hidden = false
    this.#losses[step - 1] = loss
    for (let i = step - 2; i >= 0 && this.#losses[i] === undefined; i--) this.#losses[i] = loss
    this.#draw(totalSteps)
    byId<HTMLProgressElement>('stage').value = step / totalSteps
    byId('number-step').textContent = `${step}/${totalSteps}`
    byId('number-unit').textContent = unit
    byId('number-speed').textContent =
      rate < 10 ? rate.toLocaleString(undefined, { maximumSignificantDigits: 2 }) : Math.round(rate).toLocaleString()
    byId('number-left').textContent =
      secondsLeft > 90 ? `${Math.round(secondsLeft / 60)} min` : `${Math.ceil(secondsLeft)} s`
  }

  #draw(totalSteps: number): void {
    byId('number-loss').textContent = drawCurve(this.#losses, totalSteps, CAPTION)?.toFixed(2) ?? '–'
  }

  /** Clears the display of the last run. `isHidden`: no new run begins, so hide the display. */
  #clear(isHidden = false): void {
    this.#losses = []
    this.#seconds = 0
    drawCurve([], 0, 'The loss of each step appears here.')
    byId('next').hidden = true
    buttonOf('start').textContent = 'Teach it'
    for (const id of ['step', 'loss', 'speed', 'left']) byId(`number-${id}`).textContent = '–'
    byId('run').hidden = byId('numbers').hidden = isHidden
    if (isHidden && this.#paused === undefined) this.#say('It learns here, in this page. You can pause it.')
  }

  #say(text: string): void {
    byId('train-state').textContent = text
  }

  #buttons(): void {
    const isRunning = this.#running !== undefined
    const start = buttonOf('start')
    start.hidden = isRunning
    start.disabled = this.data.isFaulty
    const again = byId('next').hidden ? 'Teach it' : 'Teach it again'
    start.textContent = this.#paused === undefined ? again : 'Continue'
    for (const id of ['speed', 'left']) byId(`number-${id}`).parentElement!.hidden = !isRunning
    buttonOf('pause').hidden = !isRunning
    buttonOf('stop').hidden = !isRunning && this.#paused === undefined
    buttonOf('remove').hidden = this.#paused === undefined
  }
}

function gainOf(losses: readonly number[]): string {
  const few = Math.ceil(losses.length / 6)
  const mean = (some: readonly number[]) => (some.reduce((sum, loss) => sum + loss, 0) / some.length).toFixed(2)
  return `the loss went from ${mean(losses.slice(0, few))} to ${mean(losses.slice(-few))} in ${losses.length} steps`
}

async function takeRunHere(): Promise<void> {
  if (!(await takeRun())) throw new Error('Another tab of this page has a run. Go on there, or close that tab.')
}

function suggest({ page: { unit, settings } }: PageTask): void {
  // Pictures are scaled to the size that the model takes, so there is no length to choose.
  byId('length').hidden = unit === 'pictures'
  // A field that the visitor or a recipe has set keeps its value.
  inputOf('steps').defaultValue = String(settings.maxSteps)
  inputOf('learning-rate').defaultValue = String(settings.learningRate)
  inputOf('batch-size').defaultValue = String(settings.batchSize)
}

function rowsOf(pictures: readonly Picture[]): Promise<{ image: Uint8Array; label: string }[]> {
  return Promise.all(
    pictures.map(async ({ file, label }) => ({ image: new Uint8Array(await file.arrayBuffer()), label })),
  )
}

export function readJob(
  { name, choice }: Pick<OpenModel, 'name' | 'choice'>,
  dataName: string,
  task: Job['task'],
  texts: readonly string[] = [],
): Job {
  return {
    name:
      inputOf('name')
        .value.trim()
        .replace(/[^\w.-]+/g, '-') || 'mine',
    choice,
    modelName: name,
    dataName,
    task,
    texts,
    settings: {
      maxSteps: numberOf('steps'),
      learningRate: numberOf('learning-rate'),
      batchSize: numberOf('batch-size'),
      maxLength: numberOf('max-length'),
      rank: numberOf('rank'),
    },
  }
}
