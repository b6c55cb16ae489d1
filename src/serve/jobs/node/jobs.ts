// Fine-tuning jobs: a queue on disk. The files of a job are checked at once, and jobs train one after the other.

import { createHash } from 'node:crypto'
import { readFile, rm } from 'node:fs/promises'
import path from 'node:path'
import { jsonIn } from '../../../base/options.js'
import { openGrader } from '../../../loop/graders/grader.js'
import { SERVER, seconds } from '../../adapters.js'
import { HttpError, withoutPaths } from '../../http.js'
import type { Caller } from '../../keys.js'
import type { Call } from '../../route.js'
import {
  ENDED,
  type Gate,
  type Hyperparameters,
  type Job,
  modelName,
  resolveHyperparameters,
  savesOf,
  wireJob,
} from '../job.js'
import { pageOf } from '../lists.js'
import type { ServerFacts } from '../training.js'
import { Events, type Told } from './events.js'
import type { Files } from './files.js'
import type { Models } from './models.js'
import { JobProcess } from './runner.js'
import { birth, newId, type Store, writePrivate } from './store.js'
import type { JobSettings, Message } from './trainer.js'

export interface JobLimits {
  /** The most jobs of one owner that have not ended. */
  readonly maxJobs: number
}

/** How every job trains. */
export interface Base extends Pick<JobSettings, 'model' | 'dtype' | 'threads' | 'chatTemplate'> {
  /** What answers for the models that graders name. */
  readonly graderModels: Readonly<Record<string, string>>
}

const TASKS = { supervised: 'causal-lm', dpo: 'dpo', reinforcement: 'grpo' } as const
/** Texts for each prompt of `reinforcement`, times `compute_multiplier`. */
const TEXTS = 8
/** Names of `lowrank` that belong to the new adapter. */
const OF_CONFIG = ['rank', 'alpha', 'dropout', 'useRslora']
/** A process that ends without a reason begins again this often without a new step. */
const MAX_ATTEMPTS = 3

type Lane = 'check' | 'train'

interface MethodFields {
  readonly hyperparameters?: Hyperparameters
  readonly grader?: object
}

interface CreateFields {
  readonly model: string
  readonly training_file: string
  readonly validation_file?: string
  readonly method?: { readonly type: Job['method'] } & Record<string, MethodFields | undefined>
  readonly hyperparameters?: Hyperparameters
  readonly suffix?: string
  readonly seed?: number
  readonly metadata?: Record<string, string>
  readonly lowrank?: Record<string, unknown>
}

interface StepLine {
  readonly step: number
  readonly loss: number
  readonly tokens: number
  readonly evalLoss?: number
}

export class JobQueue {
  readonly #events = new Map<string, Events>()
  readonly #running: Partial<Record<Lane, JobProcess>> = {}
  /** Attempts of the job that trains, and the step that the last one reached. */
  #attempts = { id: '', count: 0, step: 0 }
  #isClosed = false
  #isHeld = false

  constructor(
    private readonly jobs: Store<Job>,
    private readonly files: Files,
    private readonly models: Models,
    private readonly server: ServerFacts,
    private readonly base: Base,
    private readonly limits: JobLimits,
  ) {
    this.#wake()
    // A server may have ended between the end of a job and this.
    for (const job of jobs.all()) setImmediate(() => void this.#publish(job).catch(server.onError))
  }

  async close(): Promise<void> {
    this.#isClosed = true
    const running = Object.values(this.#running)
    for (const process of running) process.stop()
    await Promise.all(running.map(({ ended }) => ended))
  }

  async create({ fields, caller }: Call): Promise<object> {
    const asked = fields as unknown as CreateFields
    const { training_file, validation_file = null, suffix = '', seed = 42, metadata = null, lowrank = {} } = asked
    const { type: method = 'supervised' } = asked.method ?? {}
    const hyperparameters = asked.method?.[method]?.hyperparameters ?? asked.hyperparameters ?? {}
    if (hyperparameters.beta !== undefined && method !== 'dpo' && lowrank.method !== 'kto') {
      throw new HttpError(400, 'beta: only with the method dpo', { param: 'hyperparameters.beta' })
    }
    const { grader } = asked.method?.[method] ?? {}
    if (grader !== undefined) openGrader(grader, this.base.graderModels, 'method.reinforcement.grader')
    if (lowrank.gate !== undefined) this.#checkGate(lowrank.gate as Gate, asked, caller)
    const start = this.#startOf(asked.model, caller)
    const [training, validation] = [training_file, validation_file].map((id, i) => {
      const param = i === 0 ? 'training_file' : 'validation_file'
      return id === null ? undefined : this.files.get(id, caller, param, 400)
    })
    const waiting = this.jobs.all().filter(({ owner, status }) => owner === caller.name && !ENDED.includes(status))
    if (waiting.length >= this.limits.maxJobs) {
      throw new HttpError(429, `You have ${waiting.length} jobs that have not ended`, {
        type: 'rate_limit_error',
        code: 'too_many_jobs',
      })
    }
    const job: Job = {
      ...{ ...birth(newId('ftjob-'), caller), model: asked.model, base: this.server.names[0], start },
      ...{ training_file, validation_file, method, grader, suffix, seed, metadata, lowrank },
      ...{
        hyperparameters,
        status: 'validating_files',
        isPaused: false,
        checkpointEvery: 1,
        turns: 0,
        error: null,
        finished_at: null,
      },
      ...{ estimated_finish: null, trained_tokens: null, result_files: [], checkpoints: [], deleted: [] },
    }
    const folder = await this.jobs.makeFolder(job.id)
    await this.files.keep(training!, path.join(folder, 'training.jsonl'))
    if (validation !== undefined) await this.files.keep(validation, path.join(folder, 'validation.jsonl'))
    await this.#writeSettings(job)
    await this.#tell(job, 'created', { message: `Created fine-tuning job: ${job.id}` })
    await this.#tell(job, 'validating', { message: `Validating training file: ${training_file}` })
    await this.jobs.put(job)
    this.#wake()
    return this.#wire(job, caller)
  }

  #checkGate({ alias }: Gate, { validation_file, method }: CreateFields, { isAdmin }: Caller): void {
    if (!isAdmin) throw new HttpError(403, 'lowrank.gate needs an admin key', { type: 'permission_error' })
    if (validation_file === undefined || method?.type === 'reinforcement') {
      const message = 'lowrank.gate: needs a validation_file, and not the method reinforcement'
      throw new HttpError(400, message, { param: 'validation_file' })
    }
    this.models.requireName(alias)
  }

  /** Gives the result the name of its gate, if it has passed. */
  async #publish(job: Job): Promise<void> {
    const { judged, lowrank, status } = job
    if (status !== 'succeeded' || !judged?.isPassed || judged.isPublished) return
    await this.models.publish((lowrank.gate as Gate).alias, modelName(job))
    job.judged = { ...judged, isPublished: true }
    await this.jobs.put(job)
  }

  /** The folder of the model that is trained further; undefined for the base. */
  #startOf(model: string, caller: Caller): string | undefined {
    const name = this.models.target(model)
    if (this.server.names.includes(name)) return undefined
    const folder = this.models.source(name, caller)
    if (folder !== undefined) return folder
    throw new HttpError(404, `The model ${JSON.stringify(model)} does not exist, or cannot be trained`, {
      param: 'model',
      code: 'model_not_found',
    })
  }

  get({ id, caller }: Call): object {
    return this.#wire(this.jobs.get(id, caller), caller)
  }

  list({ request, caller }: Call): object {
    const page = pageOf(this.jobs.of(caller), new URL(request.url).searchParams)
    return { ...page, data: page.data.map((job) => this.#wire(job, caller)) }
  }

  async listEvents({ id, request, caller }: Call): Promise<object> {
    const events = await this.#eventsOf(this.jobs.get(id, caller)).list()
    return pageOf(events, new URL(request.url).searchParams)
  }

  listCheckpoints({ id, request, caller }: Call): object {
    const job = this.jobs.get(id, caller)
    const all = job.checkpoints.map(({ step, created_at, metrics, isResult }) => ({
      id: `ftckpt-${job.id.replace('ftjob-', '')}-${step}`,
      ...{ object: 'fine_tuning.job.checkpoint', created_at, step_number: step, metrics: { step, ...metrics } },
      ...{ fine_tuning_job_id: job.id, fine_tuned_model_checkpoint: modelName(job, isResult ? undefined : step) },
    }))
    return pageOf(all, new URL(request.url).searchParams)
  }

  async cancel(call: Call): Promise<object> {
    const job = this.#unended(call)
    await this.#end(job, 'cancelled', { message: 'The job was cancelled' })
    return this.#wire(job, call.caller)
  }

  async pause(call: Call): Promise<object> {
    return this.#turn(this.#unended(call), true, call.caller)
  }

  async resume(call: Call): Promise<object> {
    return this.#turn(this.#unended(call), false, call.caller)
  }

  async #turn(job: Job, isPaused: boolean, caller: Caller): Promise<object> {
    if (job.isPaused === isPaused) return this.#wire(job, caller)
    job.isPaused = isPaused
    job.turns++
    if (isPaused && job.status === 'running') job.status = 'queued'
    job.estimated_finish = null
    const message = isPaused ? 'The job is paused' : 'The job goes on'
    await Promise.all([this.#tell(job, `turn-${job.turns}`, { message }), this.jobs.put(job)])
    if (isPaused) this.#stop(job)
    else this.#wake()
    return this.#wire(job, caller)
  }

  #unended({ id, caller }: Call): Job {
    const job = this.jobs.get(id, caller)
    if (ENDED.includes(job.status)) throw new HttpError(400, `The job has ended: it is ${job.status}`)
    return job
  }

  #stop({ id }: Job): void {
    for (const process of Object.values(this.#running)) if (process.id === id) process.stop()
  }

  #wire(job: Job, caller: Caller) {
    return wireJob(job, caller, this.jobs.folderOf(job))
  }

  #eventsOf(job: Job): Events {
    let events = this.#events.get(job.id)
    if (events === undefined) {
      events = new Events(job.id, this.jobs.folderOf(job))
      // What has ended is read anew each time: nothing is told of it any more.
      if (!ENDED.includes(job.status)) this.#events.set(job.id, events)
    }
    return events
  }

  #tell(job: Job, key: string, told: Told): Promise<void> {
    return this.#eventsOf(job).tell([[key, told]])
  }

  async #end(job: Job, status: 'succeeded' | 'failed' | 'cancelled', told: Told): Promise<void> {
    await this.#tell(job, status, told)
    Object.assign(job, { status, finished_at: seconds(), estimated_finish: null, isPaused: false })
    this.models.add(job)
    await this.jobs.put(job)
    this.#events.delete(job.id)
    this.#stop(job)
  }

  #fail(job: Job, code: string, message: string, param: string | null = null): Promise<void> {
    job.error = { code, message, param }
    return this.#end(job, 'failed', { level: 'error', message: `The job failed: ${message}` })
  }

  async #writeSettings(job: Job, found?: Extract<Message, { kind: 'checked' }>): Promise<void> {
    const folder = this.jobs.folderOf(job)
    const { method: special, gate: _, ...others } = job.lowrank as { method?: 'kto'; gate?: Gate }
    const config = Object.entries(others).filter(([name]) => OF_CONFIG.includes(name))
    const options = Object.entries(others).filter(([name]) => !OF_CONFIG.includes(name))
    const task = special ?? TASKS[job.method]
    const { graderModels, ...base } = this.base
    const rewards = path.join(folder, 'grader.json')
    if (job.grader !== undefined) await writePrivate(rewards, JSON.stringify(job.grader))
    // Learning from rewards has no loss that could be measured on other records.
    const evalData = job.validation_file === null || task === 'grpo' ? undefined : path.join(folder, 'validation.jsonl')
    const settings: JobSettings = {
      ...base,
      ...{ data: path.join(folder, 'training.jsonl'), evalData, task },
      ...(task === 'grpo' && { rewards, graderModels }),
      ...(job.start === undefined
        ? { config: { ...Object.fromEntries(config), seed: job.seed } }
        : { adapter: job.start }),
      ...Object.fromEntries(options),
    }
    const write = (all: object) => writePrivate(path.join(folder, 'settings.json'), JSON.stringify(all, null, 2))
    if (found === undefined) return write(settings)
    const resolved = resolveHyperparameters(job.hyperparameters, found, task === 'kto' ? 2 : 1)
    job.hyperparameters = resolved
    const { n_epochs, batch_size, learning_rate_multiplier, beta, compute_multiplier } = resolved
    const { gradientAccumulation = 1, taskOptions } = settings
    const { saveEvery, checkpointEvery } = savesOf(found.records, batch_size * gradientAccumulation)
    job.checkpointEvery = checkpointEvery
    const ofTask = {
      ...(beta !== undefined && { beta }),
      ...(compute_multiplier !== undefined && { numGenerations: Math.max(2, Math.round(TEXTS * compute_multiplier)) }),
      ...taskOptions,
    }
    await write({
      ...{ epochs: n_epochs, batchSize: batch_size, saveEvery },
      learningRate: found.learningRate * learning_rate_multiplier,
      ...(evalData !== undefined && { evalEvery: checkpointEvery }),
      ...settings,
      ...(Object.keys(ofTask).length > 0 && { taskOptions: ofTask }),
    })
  }

  /** Lets the job that trains wait, or go on. */
  hold(isHeld: boolean): void {
    if (isHeld === this.#isHeld) return
    this.#isHeld = isHeld
    this.#running.train?.hold(isHeld)
  }

  /** Begins what can be done next. */
  #wake(): void {
    for (const lane of ['check', 'train'] as const) {
      if (this.#isClosed || this.#running[lane] !== undefined) continue
      const next = this.#next(lane)
      if (next !== undefined) void this.#run(lane, next).catch(this.server.onError)
    }
  }

  #next(lane: Lane): Job | undefined {
    const ready = this.jobs.all().filter(({ isPaused }) => !isPaused)
    if (lane === 'check') return ready.find(({ status }) => status === 'validating_files')
    return ready.find(({ status }) => status === 'running') ?? ready.find(({ status }) => status === 'queued')
  }

  async #run(lane: Lane, job: Job): Promise<void> {
    const folder = this.jobs.folderOf(job)
    if (this.#attempts.id !== job.id) this.#attempts = { id: job.id, count: 0, step: 0 }
    const { alias, metric = 'loss' } = (job.lowrank.gate ?? {}) as Partial<Gate>
    const before = alias === undefined ? undefined : this.models.source(this.models.target(alias), SERVER)
    const gate = alias === undefined ? [] : [JSON.stringify({ metric, before })]
    const args = [lane, folder, ...(lane === 'train' ? [String(job.checkpointEvery), ...gate] : [])] as const
    const process = new JobProcess(job.id, args, async (message) => {
      // It may have been cancelled or paused while the message was on its way.
      if (!ENDED.includes(job.status)) await this.#hear(job, message).catch(this.server.onError)
    })
    this.#running[lane] = process
    if (lane === 'train' && this.#isHeld) process.hold(true)
    if (lane === 'train' && job.status === 'queued') {
      job.status = 'running'
      await Promise.all([this.#tell(job, 'started', { message: 'Fine-tuning job started' }), this.jobs.put(job)])
    }
    const isOrderly = await process.ended
    delete this.#running[lane]
    const isLost = !isOrderly && this.#next(lane) === job && !this.#isClosed
    if (isLost && ++this.#attempts.count > MAX_ATTEMPTS) {
      await this.#fail(job, 'process_ended', 'The process of the job ended without a reason; its log may say more')
    }
    if (job.status === 'cancelled') await rm(path.join(folder, 'run'), { recursive: true, force: true })
    this.#wake()
  }

  async #hear(job: Job, message: Message): Promise<void> {
    const { kind } = message
    if (kind === 'warning') {
      const told = this.#shown(message.message)
      return this.#tell(job, `warning-${digest(told)}`, { level: 'warn', message: told })
    }
    if (kind === 'failed') return this.#fail(job, message.code.toLowerCase(), this.#shown(message.message))
    if (kind === 'invalid') {
      const { problems } = message
      const told = problems.map(
        ({ message }, i) => [`line-${i + 1}`, { level: 'error', message: this.#shown(message) }] as const,
      )
      await this.#eventsOf(job).tell(told)
      const count = problems.length === 1 ? '1 line' : `${problems.length} lines`
      const [{ file, message: first }] = problems
      return this.#fail(job, 'invalid_file', `${count} cannot be used. The first: ${this.#shown(first)}`, file)
    }
    if (kind === 'checked') {
      await this.#writeSettings(job, message)
      const { validation_file, method } = job
      const isUnused = validation_file !== null && method === 'reinforcement'
      const unused = isUnused
        ? ['validation_file is not used: reinforcement measures the rewards of its own texts']
        : []
      const notes = [...message.notes, ...unused].map(
        (note, i) => [`note-${i + 1}`, { level: 'warn', message: note }] as const,
      )
      await this.#eventsOf(job).tell(notes)
      await this.#tell(job, 'validated', { message: 'Files validated, moving job to queued state' })
      job.status = 'queued'
      await this.jobs.put(job)
      return this.#wake()
    }
    if (kind === 'judged') {
      const { value, low, high, isPassed } = message
      job.judged = { value, low, high, isPassed, isPublished: false }
      await this.jobs.put(job)
      const { alias, metric = 'loss' } = job.lowrank.gate as Gate
      const fact = `${metric} changed by ${value.toFixed(4)} (95 %: ${low?.toFixed(4)} to ${high?.toFixed(4)})`
      const told = `${fact}: ${alias} ${isPassed ? 'is the new model' : 'stays as it was'}`
      return this.#tell(job, 'judged', { message: told })
    }
    if (kind === 'step') return this.#heardStep(job, message)
    if (kind === 'checkpoint') return this.#heardCheckpoint(job, message.step)
    await this.#finish(job)
  }

  /** A text of a process as callers may read it: without folders of the server. */
  #shown(text: string): string {
    return withoutPaths(text.replaceAll(this.base.model, this.server.names[0]))
  }

  async #heardStep(job: Job, message: Extract<Message, { kind: 'step' }>): Promise<void> {
    const { step, totalSteps, loss, evalLoss, reward, secondsLeft } = message
    if (step > this.#attempts.step) this.#attempts = { id: job.id, count: 0, step }
    if (secondsLeft > 0 && job.status === 'running') job.estimated_finish = seconds() + Math.ceil(secondsLeft)
    const of = totalSteps === 0 ? '' : `/${totalSteps}`
    const data = { step, ...(totalSteps > 0 && { total_steps: totalSteps }), train_loss: loss }
    await this.#tell(job, `step-${step}`, {
      message: `Step ${step}${of}: training loss=${loss.toFixed(2)}`,
      data: {
        ...data,
        ...(evalLoss !== undefined && { valid_loss: evalLoss }),
        ...(reward !== undefined && { train_mean_reward: reward }),
      },
    })
  }

  async #heardCheckpoint(job: Job, step: number): Promise<void> {
    if (job.checkpoints.some((checkpoint) => checkpoint.step === step)) return
    const [line] = (await this.#linesOf(job)).filter((found) => found.step === step)
    const checkpoint = { step, created_at: seconds(), metrics: metricsOf(line) }
    job.checkpoints = [...job.checkpoints, checkpoint].sort((a, b) => a.step - b.step)
    await this.jobs.put(job)
    this.models.add(job)
    await this.#tell(job, `checkpoint-${step}`, {
      message: `Checkpoint created at step ${step} with the name ${modelName(job, step)}`,
    })
  }

  /** Lines of metrics.jsonl, and the evaluations that have a file of their own. */
  async #linesOf(job: Job): Promise<StepLine[]> {
    const run = path.join(this.jobs.folderOf(job), 'run')
    const read = async (file: string) => {
      const text = await readFile(path.join(run, file), 'utf8').catch(() => '')
      return text.split('\n').flatMap((line) => (jsonIn(line) as { step: number } | undefined) ?? [])
    }
    const lines = (await read('metrics.jsonl')) as StepLine[]
    const evaluations = (await read('evaluations.jsonl')) as { step: number; loss?: number }[]
    return lines.map((line) => {
      const evalLoss = evaluations.find(({ step, loss }) => step === line.step && loss !== undefined)?.loss
      return evalLoss === undefined ? line : { ...line, evalLoss }
    })
  }

  async #finish(job: Job): Promise<void> {
    const lines = await this.#linesOf(job)
    const rows = lines.map(({ step, loss, evalLoss = '' }) => `${step},${loss},,${evalLoss},`)
    const csv = ['step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy', ...rows, ''].join('\n')
    const results = job.id.replace('ftjob-', 'file-')
    await this.files.write(results, job.owner, 'step_metrics.csv', 'fine-tune-results', csv)
    job.result_files = [results]
    job.trained_tokens = lines.reduce((sum, { tokens }) => sum + tokens, 0)
    const last = lines.at(-1)
    if (last !== undefined && !job.checkpoints.some(({ isResult }) => isResult)) {
      job.checkpoints = [
        ...job.checkpoints,
        { step: last.step, created_at: seconds(), metrics: metricsOf(last), isResult: true },
      ]
    }
    await this.#tell(job, 'model', { message: `New fine-tuned model created: ${modelName(job)}` })
    await this.#end(job, 'succeeded', { message: 'The job has successfully completed' })
    await this.#publish(job)
  }
}

function metricsOf(line: StepLine | undefined): Record<string, number> {
  if (line === undefined) return {}
  const { loss, evalLoss } = line
  return { train_loss: loss, ...(evalLoss !== undefined && { valid_loss: evalLoss, full_valid_loss: evalLoss }) }
}

function digest(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 12)
}
