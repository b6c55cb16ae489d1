// Fine-tuning jobs: a queue on disk. The files of a job are checked at once, and jobs train one after the other.

import { statfs } from 'node:fs/promises'
import path from 'node:path'
import type { Model } from '../../../api/index.js'
import { gigabytes, memoryLimits, openGrader, RUN_FILES, removeWritten } from '../../../api/node/parts.js'
import { seconds } from '../../adapters.js'
import { HttpError, withoutPaths } from '../../http.js'
import { type Caller, SERVER } from '../../keys.js'
import type { Call } from '../../route.js'
import { ENDED, type Gate, type Hyperparameters, type Job, MAX_INVALID, modelName, wireJob } from '../job.js'
import { pageOf } from '../lists.js'
import { type Details, Events, shortened } from './events.js'
import type { Files } from './files.js'
import type { Message } from './job-process.js'
import type { Models } from './models.js'
import { metricsOf, stepsOf, tableOf } from './results.js'
import { JobProcess } from './runner.js'
import { type Base, resolve, settingsOf } from './settings.js'
import { birth, newId, type Store } from './store.js'

/** How often a process that ended for no known reason is started again before it has taken another step. */
const MAX_ATTEMPTS = 3

/** The parts of the server that its jobs use. */
export interface ServerFacts {
  /** Names of the base; the first one is shown. */
  readonly names: readonly string[]
  readonly model: Model
  readonly chatTemplate: string | undefined
  readonly onError: (error: unknown) => void
}

type Lane = 'check' | 'train'
type Heard<Kind> = Extract<Message, { kind: Kind }>

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

export class JobQueue {
  readonly #events = new Map<string, Events>()
  readonly #running: Partial<Record<Lane, JobProcess>> = {}
  /** Attempts of the job that trains, and the step that the last one reached. */
  #attempts = { id: '', count: 0, step: 0 }
  #isClosed = false
  #isHeld = false

  /** @param maxJobs of one owner that have not ended */
  constructor(
    private readonly jobs: Store<Job>,
    private readonly files: Files,
    private readonly models: Models,
    private readonly server: ServerFacts,
    private readonly base: Base,
    private readonly maxJobs: number,
  ) {
    this.#wake()
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
    const { grader, hyperparameters = asked.hyperparameters ?? {} } = asked.method?.[method] ?? {}
    if (hyperparameters.beta !== undefined && method !== 'dpo' && lowrank.method !== 'kto') {
      throw new HttpError(400, 'beta: only with the method dpo', { param: 'hyperparameters.beta' })
    }
    if (grader !== undefined) openGrader(grader, this.base.graderModels, 'method.reinforcement.grader')
    if (lowrank.gate !== undefined) this.#checkGate(lowrank.gate as Gate, asked, caller)
    const start = this.#startOf(asked.model, caller)
    const training = this.files.get(training_file, caller, 'training_file', 400)
    const validation =
      validation_file === null ? undefined : this.files.get(validation_file, caller, 'validation_file', 400)
    const waiting = this.jobs.all().filter(({ owner, status }) => owner === caller.name && !ENDED.includes(status))
    if (waiting.length >= this.maxJobs) {
      const details = { type: 'rate_limit_error', code: 'too_many_jobs' }
      throw new HttpError(429, `You have ${waiting.length} jobs that have not ended`, details)
    }
    const job: Job = {
      ...{ ...birth(newId('ftjob-'), caller), model: asked.model, base: this.server.names[0], start },
      ...{ training_file, validation_file, method, grader, suffix, seed, metadata, lowrank, hyperparameters },
      ...{ status: 'validating_files', isPaused: false, checkpointEvery: 1, turns: 0, error: null, finished_at: null },
      ...{ estimated_finish: null, trained_tokens: null, result_files: [], checkpoints: [], deleted: [] },
    }
    const folder = await this.jobs.makeFolder(job.id)
    await this.files.keep(training, path.join(folder, 'training.jsonl'))
    if (validation !== undefined) await this.files.keep(validation, path.join(folder, 'validation.jsonl'))
    if (grader !== undefined) await this.jobs.write(job.id, 'grader.json', JSON.stringify(grader))
    await this.#writeSettings(job, settingsOf(job, folder, this.base))
    await this.#tell(job, 'created', `Created fine-tuning job: ${job.id}`)
    await this.#tell(job, 'validating', `Validating training file: ${training_file}`)
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
    const { judged, lowrank } = job
    if (!judged?.isPassed || judged.isPublished) return
    await this.models.publish((lowrank.gate as Gate).alias, modelName(job))
    job.judged = { ...judged, isPublished: true }
  }

  /** The folder of the model that is trained further; undefined for the base. */
  #startOf(model: string, caller: Caller): string | undefined {
    const name = this.models.target(model)
    if (this.server.names.includes(name)) return undefined
    const folder = this.models.source(name, caller)
    if (folder !== undefined) return folder
    const details = { param: 'model', code: 'model_not_found' }
    throw new HttpError(404, `The model ${JSON.stringify(model)} does not exist, or cannot be trained`, details)
  }

  get({ id, caller }: Call): object {
    return this.#wire(this.jobs.get(id, caller), caller)
  }

  list({ request, caller }: Call): object {
    const page = pageOf(this.jobs.of(caller), request)
    return { ...page, data: page.data.map((job) => this.#wire(job, caller)) }
  }

  async listEvents({ id, request, caller }: Call): Promise<object> {
    return pageOf(await this.#eventsOf(this.jobs.get(id, caller)).list(), request)
  }

  listCheckpoints({ id, request, caller }: Call): object {
    const job = this.jobs.get(id, caller)
    const all = job.checkpoints.map(({ step, created_at, metrics, isResult }) => ({
      id: `ftckpt-${job.id.replace('ftjob-', '')}-${step}`,
      ...{ object: 'fine_tuning.job.checkpoint', created_at, step_number: step, metrics: { step, ...metrics } },
      ...{ fine_tuning_job_id: job.id, fine_tuned_model_checkpoint: modelName(job, isResult ? undefined : step) },
    }))
    return pageOf(all, request)
  }

  async cancel(call: Call): Promise<object> {
    const job = this.#unended(call)
    await this.#end(job, 'cancelled', 'The job was cancelled')
    return this.#wire(job, call.caller)
  }

  /** Pauses a job, or lets it go on. */
  async turn(call: Call, isPaused: boolean): Promise<object> {
    const job = this.#unended(call)
    if (job.isPaused !== isPaused) {
      job.isPaused = isPaused
      job.turns++
      if (isPaused && job.status === 'running') job.status = 'queued'
      job.estimated_finish = null
      await this.#tell(job, `turn-${job.turns}`, isPaused ? 'The job is paused' : 'The job goes on')
      await this.jobs.put(job)
      if (isPaused) void this.#stop(job)
      else this.#wake()
    }
    return this.#wire(job, call.caller)
  }

  #unended({ id, caller }: Call): Job {
    const job = this.jobs.get(id, caller)
    if (ENDED.includes(job.status)) throw new HttpError(400, `The job has ended: it is ${job.status}`)
    return job
  }

  /** Resolves when no process has the job any more. */
  async #stop({ id }: Job): Promise<void> {
    const running = Object.values(this.#running).filter((process) => process.id === id)
    for (const process of running) process.stop()
    await Promise.all(running.map(({ ended }) => ended))
  }

  #wire(job: Job, caller: Caller) {
    return wireJob(job, caller, this.jobs.folderOf(job))
  }

  #writeSettings({ id }: Job, settings: object): Promise<void> {
    return this.jobs.write(id, 'settings.json', JSON.stringify(settings, null, 2))
  }

  #eventsOf(job: Job): Events {
    let events = this.#events.get(job.id)
    if (events === undefined) {
      events = new Events(job.id, this.jobs.folderOf(job))
      // After the end nothing more is told, so that nothing is kept in memory.
      if (!ENDED.includes(job.status)) this.#events.set(job.id, events)
    }
    return events
  }

  /** A file of events that cannot be written stops no job. */
  #tell(job: Job, key: string, message: string, details?: Details): Promise<void> {
    return this.#eventsOf(job).tell(key, message, details).catch(this.server.onError)
  }

  async #end(job: Job, status: 'succeeded' | 'failed' | 'cancelled', message: string, details?: Details) {
    await this.#tell(job, status, message, details)
    Object.assign(job, { status, finished_at: seconds(), estimated_finish: null, isPaused: false })
    this.models.add(job)
    await this.jobs.put(job)
    this.#events.delete(job.id)
    const stopped = this.#stop(job)
    if (status !== 'cancelled') return
    const run = path.join(this.jobs.folderOf(job), 'run')
    void stopped.then(() => removeWritten(run, (file) => RUN_FILES.includes(file))).catch(this.server.onError)
  }

  #fail(job: Job, code: string, message: string, param: string | null = null): Promise<void> {
    job.error = { code, message: shortened(message), param }
    return this.#end(job, 'failed', `The job failed: ${message}`, { level: 'error' })
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
      // The job may have been cancelled while the message was on its way.
      if (!ENDED.includes(job.status)) await this.#hear(job, message).catch(this.server.onError)
    })
    this.#running[lane] = process
    if (lane === 'train' && this.#isHeld) process.hold(true)
    if (lane === 'train' && job.status === 'queued') {
      job.status = 'running'
      await this.#tell(job, 'started', 'Fine-tuning job started')
      await this.jobs.put(job)
    }
    const isOrderly = await process.ended
    delete this.#running[lane]
    const isLost = !isOrderly && this.#next(lane) === job && !this.#isClosed
    if (isLost && ++this.#attempts.count > MAX_ATTEMPTS) {
      await this.#fail(job, 'process_ended', 'The process of the job ended without a reason; its log may say more')
    }
    this.#wake()
  }

  #hear(job: Job, message: Message): Promise<void> {
    switch (message.kind) {
      case 'warning':
        return this.#tell(job, message.key, this.#shown(message.message), { level: 'warn' })
      case 'failed':
        return this.#fail(job, message.code.toLowerCase(), this.#shown(message.message))
      case 'invalid':
        return this.#heardInvalid(job, message)
      case 'checked':
        return this.#heardChecked(job, message)
      case 'step':
        return this.#heardStep(job, message)
      case 'checkpoint':
        return this.#heardCheckpoint(job, message.step)
      case 'judged':
        return this.#heardJudged(job, message)
      case 'done':
        return this.#finish(job)
    }
  }

  /** Takes the server's folders out of a text, so that callers may read it. */
  #shown(text: string): string {
    return withoutPaths(text.replaceAll(this.base.model, this.server.names[0]))
  }

  async #heardInvalid(job: Job, { problems }: Heard<'invalid'>): Promise<void> {
    for (const [i, { message }] of problems.entries()) {
      await this.#tell(job, `line-${i + 1}`, this.#shown(message), { level: 'error' })
    }
    // The message begins with the place.
    const [last] = this.#shown(problems.at(-1)!.message).split(':')
    const isCut = problems.length >= MAX_INVALID
    const count = problems.length === 1 ? '1 line' : `${isCut ? 'at least ' : ''}${problems.length} lines`
    const until = isCut ? `, read up to ${last}` : ''
    const [{ file, message: first }] = problems
    await this.#fail(job, 'invalid_file', `${count} cannot be used${until}. The first: ${this.#shown(first)}`, file)
  }

  async #heardChecked(job: Job, found: Heard<'checked'>): Promise<void> {
    const folder = this.jobs.folderOf(job)
    const { hyperparameters, checkpointEvery, settings } = resolve(
      settingsOf(job, folder, this.base),
      job.hyperparameters,
      found,
    )
    await this.#writeSettings(job, settings)
    if (job.validation_file !== null && job.method === 'reinforcement') {
      const message = 'validation_file is not used: reinforcement measures the rewards of its own texts'
      await this.#tell(job, 'unused', message, { level: 'warn' })
    }
    await this.#tellNeeds(job, found, settings.batchSize!, hyperparameters.n_epochs)
    await this.#tell(job, 'validated', 'Files validated, moving job to queued state')
    Object.assign(job, { hyperparameters, checkpointEvery, status: 'queued' })
    await this.jobs.put(job)
    this.#wake()
  }

  /** Tells what the training needs and what there is, before it begins. */
  async #tellNeeds(job: Job, { memory, adapterBytes }: Heard<'checked'>, batch: number, epochs: number): Promise<void> {
    const { model } = this.server
    // Pages of a file that two processes map are in memory once.
    const isSame = memory.graph === model.onnxPath
    const need = (isSame ? 0 : memory.weights) + memory.copies + batch * memory.perRecord
    const file = isSame ? 'the same file as' : 'another file than'
    const [free] = memoryLimits(model)
    const { bavail, bsize } = await statfs(this.jobs.folderOf(job))
    // A checkpoint for each pass, and at the end the result with the two moments of its state, before it is published.
    const disk = adapterBytes * (epochs + 4)
    const room = bavail * bsize
    const message = [
      `The training maps ${gigabytes(memory.weights)} of weights from ${file} the server.`,
      `It needs about ${gigabytes(need)} more memory, of ${gigabytes(free.bytes)} that are free,`,
      `and ${gigabytes(disk)} on the disk, of ${gigabytes(room)}`,
    ].join(' ')
    const isShort = need > free.bytes || disk > room
    await this.#tell(job, 'needs', message, { level: isShort ? 'warn' : 'info' })
  }

  async #heardStep(job: Job, { step, totalSteps, loss, evalLoss, reward, secondsLeft }: Heard<'step'>): Promise<void> {
    if (step > this.#attempts.step) this.#attempts = { id: job.id, count: 0, step }
    if (secondsLeft > 0 && job.status === 'running') job.estimated_finish = seconds() + Math.ceil(secondsLeft)
    const of = totalSteps === 0 ? '' : `/${totalSteps}`
    const data = {
      ...{ step, ...(totalSteps > 0 && { total_steps: totalSteps }), train_loss: loss },
      ...(evalLoss !== undefined && { valid_loss: evalLoss }),
      ...(reward !== undefined && { train_mean_reward: reward }),
    }
    await this.#tell(job, `step-${step}`, `Step ${step}${of}: training loss=${loss.toFixed(2)}`, { data })
  }

  async #heardCheckpoint(job: Job, step: number): Promise<void> {
    if (job.checkpoints.some((checkpoint) => checkpoint.step === step)) return
    const lines = await stepsOf(this.jobs.folderOf(job))
    const checkpoint = { step, created_at: seconds(), metrics: metricsOf(lines.find((line) => line.step === step)) }
    await this.#tell(job, `checkpoint-${step}`, `Checkpoint created at step ${step}: ${modelName(job, step)}`)
    job.checkpoints = [...job.checkpoints, checkpoint].sort((a, b) => a.step - b.step)
    await this.jobs.put(job)
    this.models.add(job)
  }

  async #heardJudged(job: Job, { value, low, high, isPassed }: Heard<'judged'>): Promise<void> {
    job.judged = { value, low, high, isPassed, isPublished: false }
    await this.jobs.put(job)
    const { alias, metric = 'loss' } = job.lowrank.gate as Gate
    const hasInterval = low !== null && high !== null
    const interval = hasInterval ? `95 %: ${low.toFixed(4)} to ${high.toFixed(4)}` : 'too few records to be certain'
    const fact = `${metric} changed by ${value.toFixed(4)} (${interval})`
    await this.#tell(job, 'judged', `${fact}: ${alias} ${isPassed ? 'is the new model' : 'stays as it was'}`)
  }

  async #finish(job: Job): Promise<void> {
    const lines = await stepsOf(this.jobs.folderOf(job))
    const results = job.id.replace('ftjob-', 'file-')
    await this.files.write(results, job.owner, 'step_metrics.csv', 'fine-tune-results', tableOf(lines))
    job.result_files = [results]
    job.trained_tokens = lines.reduce((sum, { tokens }) => sum + tokens, 0)
    const last = lines.at(-1)
    if (last !== undefined && !job.checkpoints.some(({ isResult }) => isResult)) {
      const result = { step: last.step, created_at: seconds(), metrics: metricsOf(last), isResult: true }
      job.checkpoints = [...job.checkpoints, result]
    }
    this.models.add(job)
    // Another model may have taken the name meanwhile.
    await this.#publish(job).catch((error: Error) => this.#tell(job, 'alias', error.message, { level: 'warn' }))
    if (ENDED.includes(job.status)) return
    await this.#tell(job, 'model', `New fine-tuned model created: ${modelName(job)}`)
    await this.#end(job, 'succeeded', 'The job has successfully completed')
  }
}
