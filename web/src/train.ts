// Training in the page: start, pause, continue after a reload, stop.

import { type Directory, type LoraAdapter, MemoryDirectory, RuntimeError, type StepEvent, train } from 'lowrank'
import { drawCurve } from './curve.js'
import { buttonOf, byId, guarded, inputOf, MendableError } from './dom.js'
import type { Device, ModelChoice, OpenModel } from './models.js'
import { beginRun, copyToMemory, endRun, type Job, unfinishedRun } from './runs.js'

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
  #open: OpenModel | undefined
  #running: { abort: AbortController; keeps: boolean } | undefined
  #paused: { job: Job; folder: Directory } | undefined
  #losses: number[] = []
  /** Whether the browser had no space for a run. */
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
    this.#setUpData()
  }

  /** The model that is trained from now on. */
  use(open: OpenModel): void {
    this.#open = open
    this.#buttons()
  }

  /** Offers to continue the run that an earlier visit left; tells how its model is opened. */
  async restore(): Promise<ModelChoice | undefined> {
    this.#paused = await unfinishedRun()
    if (this.#paused === undefined) return undefined
    const { job } = this.#paused
    byId<HTMLTextAreaElement>('data').value = job.data.text
    this.#say(`A run of ${job.modelName} is not finished. Open this model, then press Continue.`)
    this.#buttons()
    return job.choice
  }

  async #start(): Promise<void> {
    const open = this.#open
    if (open === undefined) return
    const isResumed = this.#paused !== undefined
    let { job, folder } = this.#paused ?? {}
    if (job === undefined || folder === undefined) {
      job = readJob(open)
      folder = this.#isInMemory ? new MemoryDirectory() : await this.#begin(job)
      this.#losses = []
    }
    if (job.modelName !== open.name) {
      throw new Error(`The run is of ${job.modelName}, and ${open.name} is open. Open ${job.modelName}.`)
    }
    const abort = new AbortController()
    this.#running = { abort, keeps: false }
    this.#paused = undefined
    this.#buttons()
    const { name, settings, data } = job
    const { rank, ...rest } = settings
    try {
      const { adapter, report } = await train({
        model: open.model,
        device: open.device,
        data: new File([data.text], data.name),
        ...rest,
        config: { rank, alpha: 2 * rank },
        saveEvery: SAVE_EVERY,
        out: folder,
        // A page that closed before its first save left nothing to continue.
        ...(isResumed && (await folder.has('adapter_config.json')) ? { resume: true } : { overwrite: true }),
        signal: abort.signal,
        on: {
          stage: (stage) => this.#say(STAGES[stage]),
          step: (event) => this.#showStep(event),
          warning: (message) => this.#say(message),
        },
      })
      this.#losses = report.trainLoss
      drawCurve(curve(), this.#losses, settings.maxSteps)
      if (report.interrupted && !this.#running.keeps) {
        this.#paused = { job, folder }
        this.#say(`Paused after step ${report.steps} of ${settings.maxSteps}. Press Continue when you like.`)
        return
      }
      const seconds = Math.max(1, Math.round(report.seconds))
      this.#say(
        `Trained ${report.trainableParams.toLocaleString()} parameters in ${seconds} s. Compare what it writes below.`,
      )
      await endRun()
      await this.#trained(name, adapter)
    } catch (error) {
      // A GPU or a worker that is gone: what was saved before is still there.
      if (error instanceof RuntimeError && (await folder.has('adapter_config.json'))) {
        this.#paused = { job, folder }
        this.#say('The last saved step is kept. Press Continue, or first choose another way to compute in part 1.')
      }
      await this.#refuse(
        open.device === 'webgpu' && error instanceof RuntimeError ? this.#withoutGpu(error) : error,
        job,
        folder,
      )
    } finally {
      this.#running = undefined
      this.#buttons()
    }
  }

  #begin(job: Job): Promise<Directory> {
    return beginRun(job).catch((error) => this.#refuse(error, job))
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
   * Throws the error. Where the browser has no space, what the run has saved goes to memory, and the next run writes nothing to its file
   * system.
   */
  async #refuse(error: unknown, job: Job, folder?: Directory): Promise<never> {
    if (!isFull(error)) throw error
    this.#isInMemory = true
    const isSaved = folder !== undefined && (await folder.has('adapter_config.json'))
    if (isSaved) this.#paused = { job, folder: await copyToMemory(folder) }
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

  #showStep({ step, loss, totalSteps, tokensPerSecond, secondsLeft }: StepEvent): void {
    this.#losses[step - 1] = loss
    for (let i = step - 2; i >= 0 && this.#losses[i] === undefined; i--) this.#losses[i] = loss
    drawCurve(curve(), this.#losses, totalSteps)
    byId('number-step').textContent = `${step}/${totalSteps}`
    byId('number-loss').textContent = loss.toFixed(2)
    byId('number-speed').textContent = Math.round(tokensPerSecond).toLocaleString()
    byId('number-left').textContent =
      secondsLeft > 90 ? `${Math.round(secondsLeft / 60)} min` : `${Math.ceil(secondsLeft)} s`
    byId('curve-caption').textContent = 'Lower is better. The thick line is a mean of the last steps.'
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

  #setUpData(): void {
    const area = byId<HTMLTextAreaElement>('data')
    const read = async (file: File, name = file.name) => {
      area.value = await file.text()
      area.dataset.name = name
      byId('data-state').textContent = `${name}, ${(file.size / 1000).toFixed(0)} kB`
    }
    area.addEventListener('input', () => {
      delete area.dataset.name
      byId('data-state').textContent = ''
    })
    buttonOf('sample').addEventListener('click', () => {
      void guarded('The sample cannot be loaded', async () => {
        const response = await fetch(new URL('sample.jsonl', document.baseURI))
        if (!response.ok) throw new Error(`sample.jsonl: the server answers ${response.status}.`)
        await read(new File([await response.text()], 'moby-dick.jsonl'))
      })
    })
    inputOf('data-file').addEventListener('change', ({ target }) => {
      const file = (target as HTMLInputElement).files?.[0]
      if (file !== undefined) void guarded('The file cannot be read', () => read(file))
    })
    area.addEventListener('dragover', (event) => {
      event.preventDefault()
      area.classList.add('over')
    })
    area.addEventListener('dragleave', () => area.classList.remove('over'))
    area.addEventListener('drop', (event) => {
      event.preventDefault()
      area.classList.remove('over')
      const file = event.dataTransfer?.files[0]
      if (file !== undefined) void guarded('The file cannot be read', () => read(file))
    })
  }
}

/** The browser's own error, or lowrank's with it as the cause. */
function isFull(error: unknown): boolean {
  for (let one = error; one instanceof Error; one = one.cause) if (one.name === 'QuotaExceededError') return true
  return false
}

const curve = () => document.getElementById('curve') as unknown as SVGElement

/** The form as a run. */
function readJob({ name, choice }: OpenModel): Job {
  const area = byId<HTMLTextAreaElement>('data')
  const text = area.value
  if (text.trim() === '') throw new Error('There is no text to learn from. Write or paste some, or use the sample.')
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
    data: { name: area.dataset.name ?? (text.trimStart().startsWith('{') ? 'pasted.jsonl' : 'pasted.txt'), text },
    settings: {
      maxSteps: number('steps', 'Steps'),
      learningRate: number('learning-rate', 'Learning rate'),
      batchSize: number('batch-size', 'Records a step'),
      maxLength: number('max-length', 'Most tokens a record'),
      rank: number('rank', 'Rank'),
    },
  }
}
