// Fine-tuning jobs: a queue in the store. The files of a job are checked at once, and jobs train one after the other.

import { mkdir, statfs } from 'node:fs/promises'
import path from 'node:path'
import type { Model } from '../../../api/index.js'
import { gigabytes, memoryLimits, openGrader, RUN_FILES, removeWritten } from '../../../api/node/parts.js'
import { Turns } from '../../../core/base/turns.js'
import { seconds } from '../../adapters.js'
import { HttpError, withoutPaths } from '../../http.js'
import { type Caller, SERVER } from '../../keys.js'
import type { Call } from '../../route.js'
import { newId, PRIVATE_FOLDER, writePrivate } from '../../store/node/private.js'
import { pageOfRows } from '../../store/pages.js'
import type { Store } from '../../store/store.js'
import type { Rows } from '../../store/tables.js'
import { ENDED, type Gate, type Hyperparameters, type Job, MAX_INVALID, modelName, wireJob } from '../job.js'
import { pageOf } from '../lists.js'
import { begin, end, type Files, insertFile } from './files.js'
import type { Message } from './job-process.js'
import {
  changeJob,
  type Details,
  findJob,
  insertJob,
  jobOf,
  OF_NEW_JOB,
  offerModel,
  shortened,
  tell,
  wireEvent,
} from './job-rows.js'
import type { Models } from './models.js'
import { metricsOf, stepsOf, tableOf } from './results.js'
import { JobProcess } from './runner.js'
import { type Base, resolve, settingsOf } from './settings.js'

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
  readonly #running: Partial<Record<Lane, JobProcess>> = {}
  /** Attempts of the job that trains, and the step that the last one reached. */
  #attempts = { id: '', count: 0, step: 0 }
  #isClosed = false
  #isHeld = false
  /** Jobs begin one after the other, so that none begins twice. */
  readonly #turns = new Turns()

  /** @param maxJobs of one owner that have not ended */
  constructor(
    private readonly store: Store,
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
    await this.#turns.idle
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
    if (lowrank.gate !== undefined) await this.#checkGate(lowrank.gate as Gate, asked, caller)
    const start = await this.#startOf(asked.model, caller)
    const training = await this.files.get(training_file, caller, 'training_file', 400)
    const validation =
      validation_file === null ? undefined : await this.files.get(validation_file, caller, 'validation_file', 400)
    const job: Job = {
      ...{ id: newId('ftjob-'), owner: caller.name, created_at: seconds(), model: asked.model },
      ...{ base: this.server.names[0], start },
      ...{ training_file, validation_file, method, grader, suffix, seed, metadata, lowrank, hyperparameters },
      ...{ status: 'validating_files', isPaused: false, checkpointEvery: 1, turns: 0, error: null, finished_at: null },
      ...{ estimated_finish: null, trained_tokens: null, result_files: [], checkpoints: [] },
    }
    const place = `jobs/${job.id}`
    await this.#requireTurn(this.store.rows, caller)
    await this.store.write((rows) => begin(rows, place))
    const folder = this.#folderOf(job)
    try {
      await mkdir(folder, PRIVATE_FOLDER)
      await this.files.keep(training, path.join(folder, 'training.jsonl'))
      if (validation !== undefined) await this.files.keep(validation, path.join(folder, 'validation.jsonl'))
      if (grader !== undefined) await writePrivate(path.join(folder, 'grader.json'), JSON.stringify(grader))
      await this.#writeSettings(job, settingsOf(job, folder, this.base))
      await this.store.write(async (rows) => {
        // Other jobs may have come meanwhile.
        await this.#requireTurn(rows, caller)
        await insertJob(rows, job)
        await tell(rows, job, 'created', `Created fine-tuning job: ${job.id}`)
        await tell(rows, job, 'validating', `Validating training file: ${training_file}`)
        await end(rows, place)
      })
    } catch (error) {
      await removeWritten(folder, (name) => OF_NEW_JOB.test(name)).catch(() => {})
      await this.store.write((rows) => end(rows, place)).catch(() => {})
      throw error
    }
    this.#wake()
    return this.#wire(job, caller)
  }

  /** @throws HttpError if the caller has too many jobs that have not ended */
  async #requireTurn(rows: Rows, { name }: Caller): Promise<void> {
    const own = rows.selectFrom('jobs').select('id').where('owner', '=', name).where('status', 'not in', ENDED)
    const waiting = await own.limit(this.maxJobs).execute()
    if (waiting.length < this.maxJobs) return
    const details = { type: 'rate_limit_error', code: 'too_many_jobs' }
    throw new HttpError(429, `You have ${waiting.length} jobs that have not ended`, details)
  }

  async #checkGate({ alias }: Gate, { validation_file, method }: CreateFields, { isAdmin }: Caller): Promise<void> {
    if (!isAdmin) throw new HttpError(403, 'lowrank.gate needs an admin key', { type: 'permission_error' })
    if (validation_file === undefined || method?.type === 'reinforcement') {
      const message = 'lowrank.gate: needs a validation_file, and not the method reinforcement'
      throw new HttpError(400, message, { param: 'validation_file' })
    }
    await this.models.requireName(alias)
  }

  /** Gives the result the name of its gate, if it has passed. */
  async #publish(job: Job): Promise<void> {
    const { judged, lowrank } = job
    if (!judged?.isPassed || judged.isPublished) return
    await this.models.publish((lowrank.gate as Gate).alias, modelName(job))
    await changeJob(this.store, job.id, (changed) => {
      changed.judged = { ...judged, isPublished: true }
    })
  }

  /** The folder of the model that is trained further; undefined for the base. */
  async #startOf(model: string, caller: Caller): Promise<string | undefined> {
    const found = await this.models.find([model], caller)
    const { target = model, source } = found.get(model) ?? {}
    if (this.server.names.includes(target)) return undefined
    if (source !== undefined && (await this.models.find([target], caller)).get(target)?.source === source) return source
    const details = { param: 'model', code: 'model_not_found' }
    throw new HttpError(404, `The model ${JSON.stringify(model)} does not exist, or cannot be trained`, details)
  }

  async get({ id, caller }: Call): Promise<object> {
    return this.#wire(await findJob(this.store.rows, id, caller), caller)
  }

  list({ request, caller }: Call): Promise<object> {
    const all = this.store.rows.selectFrom('jobs').selectAll()
    const from = caller.isAdmin ? all : all.where('owner', '=', caller.name)
    const labels = { kind: 'jobs', caller } as const
    return pageOfRows(this.store, { request, from, labels }, (row) => this.#wire(jobOf(row), caller))
  }

  async listEvents({ id, request, caller }: Call): Promise<object> {
    await findJob(this.store.rows, id, caller)
    const from = this.store.rows.selectFrom('events').selectAll().where('job', '=', id)
    return pageOfRows(this.store, { request, from }, wireEvent)
  }

  async listCheckpoints({ id, request, caller }: Call): Promise<object> {
    const job = await findJob(this.store.rows, id, caller)
    const all = job.checkpoints.map(({ step, created_at, metrics, isResult }) => ({
      id: `ftckpt-${job.id.replace('ftjob-', '')}-${step}`,
      ...{ object: 'fine_tuning.job.checkpoint', created_at, step_number: step, metrics: { step, ...metrics } },
      ...{ fine_tuning_job_id: job.id, fine_tuned_model_checkpoint: modelName(job, isResult ? undefined : step) },
    }))
    return pageOf(all, request)
  }

  async cancel(call: Call): Promise<object> {
    const { id } = await this.#requireUnended(call)
    return this.#answer(call, await this.#end(id, 'cancelled', 'The job was cancelled'))
  }

  /** Pauses a job, or lets it go on. */
  async turn(call: Call, isPaused: boolean): Promise<object> {
    const { id } = await this.#requireUnended(call)
    const turned = await changeJob(this.store, id, async (job, rows) => {
      if (job.isPaused === isPaused) return
      job.isPaused = isPaused
      job.turns++
      if (isPaused && job.status === 'running') job.status = 'queued'
      job.estimated_finish = null
      await tell(rows, job, `turn-${job.turns}`, isPaused ? 'The job is paused' : 'The job goes on')
    })
    if (isPaused) void this.#stop(id)
    else this.#wake()
    return this.#answer(call, turned)
  }

  async #requireUnended({ id, caller }: Call): Promise<Job> {
    const job = await findJob(this.store.rows, id, caller)
    if (ENDED.includes(job.status)) throw new HttpError(400, `The job has ended: it is ${job.status}`)
    return job
  }

  /** @param job undefined if it has ended before it was changed */
  async #answer(call: Call, job: Job | undefined): Promise<object> {
    return this.#wire(job ?? (await this.#requireUnended(call)), call.caller)
  }

  /** Resolves when no process has the job any more. */
  async #stop(id: string): Promise<void> {
    const running = Object.values(this.#running).filter((process) => process.id === id)
    for (const process of running) process.stop()
    await Promise.all(running.map(({ ended }) => ended))
  }

  #folderOf({ id }: Pick<Job, 'id'>): string {
    return path.join(this.store.folder, 'jobs', id)
  }

  #wire(job: Job, caller: Caller) {
    return wireJob(job, caller, this.#folderOf(job))
  }

  #writeSettings(job: Job, settings: object): Promise<void> {
    return writePrivate(path.join(this.#folderOf(job), 'settings.json'), JSON.stringify(settings, null, 2))
  }

  /** Tells something of a job that has not ended. */
  async #tell(id: string, key: string, message: string, details?: Details): Promise<void> {
    await changeJob(this.store, id, (job, rows) => tell(rows, job, key, message, details))
  }

  async #end(
    id: string,
    status: 'succeeded' | 'failed' | 'cancelled',
    message: string,
    { error = null, ...details }: Details & Partial<Pick<Job, 'error'>> = {},
  ): Promise<Job | undefined> {
    const ended = await changeJob(this.store, id, async (job, rows) => {
      await tell(rows, job, status, message, details)
      Object.assign(job, { status, error, finished_at: seconds(), estimated_finish: null, isPaused: false })
      if (status === 'cancelled') await rows.deleteFrom('models').where('name', '=', modelName(job)).execute()
    })
    const stopped = this.#stop(id)
    if (ended === undefined || status !== 'cancelled') return ended
    const run = path.join(this.#folderOf(ended), 'run')
    void stopped.then(() => removeWritten(run, (file) => RUN_FILES.includes(file))).catch(this.server.onError)
    return ended
  }

  async #fail(id: string, code: string, message: string, param: string | null = null): Promise<void> {
    const error = { code, message: shortened(message), param }
    await this.#end(id, 'failed', `The job failed: ${message}`, { level: 'error', error })
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
      void this.#turns.take(() => this.#begin(lane)).catch(this.server.onError)
    }
  }

  async #begin(lane: Lane): Promise<void> {
    if (this.#isClosed || this.#running[lane] !== undefined) return
    const next = await this.#next(lane)
    if (next !== undefined && !this.#isClosed) await this.#run(lane, next)
  }

  async #next(lane: Lane): Promise<Job | undefined> {
    const ready = this.store.rows.selectFrom('jobs').selectAll().where('is_paused', '=', 0).orderBy('seq').limit(1)
    for (const status of lane === 'check' ? ['validating_files'] : ['running', 'queued']) {
      const [found] = await ready.where('status', '=', status).execute()
      if (found !== undefined) return jobOf(found)
    }
    return undefined
  }

  /** Starts the process of a job. */
  async #run(lane: Lane, job: Job): Promise<void> {
    if (this.#attempts.id !== job.id) this.#attempts = { id: job.id, count: 0, step: 0 }
    const { alias, metric = 'loss' } = (job.lowrank.gate ?? {}) as Partial<Gate>
    const before = alias === undefined ? undefined : (await this.models.find([alias], SERVER)).get(alias)?.source
    const gate = alias === undefined ? [] : [JSON.stringify({ metric, before })]
    const args = [
      lane,
      this.#folderOf(job),
      ...(lane === 'train' ? [String(job.checkpointEvery), ...gate] : []),
    ] as const
    if (lane === 'train') {
      const started = await changeJob(this.store, job.id, async (job, rows) => {
        if (job.isPaused || job.status !== 'queued') return
        job.status = 'running'
        await tell(rows, job, 'started', 'Fine-tuning job started')
      })
      if (started?.status !== 'running') return this.#wake()
    }
    if (this.#isClosed) return
    const process = new JobProcess(job.id, args, (message) => this.#hear(job.id, message).catch(this.server.onError))
    this.#running[lane] = process
    if (lane === 'train' && this.#isHeld) process.hold(true)
    void this.#ended(lane, job.id, process).catch(this.server.onError)
  }

  async #ended(lane: Lane, id: string, process: JobProcess): Promise<void> {
    const isOrderly = await process.ended
    delete this.#running[lane]
    if (this.#isClosed) return
    const isLost = !isOrderly && (await this.#next(lane))?.id === id
    if (isLost && ++this.#attempts.count > MAX_ATTEMPTS) {
      await this.#fail(id, 'process_ended', 'The process of the job ended without a reason; its log may say more')
    }
    this.#wake()
  }

  async #hear(id: string, message: Message): Promise<void> {
    // The job may have been cancelled while the message was on its way.
    const [found] = await this.store.rows.selectFrom('jobs').selectAll().where('id', '=', id).execute()
    if (found === undefined || ENDED.includes(found.status as Job['status'])) return
    const job = jobOf(found)
    switch (message.kind) {
      case 'warning':
        return this.#tell(id, message.key, this.#shown(message.message), { level: 'warn' })
      case 'failed':
        return this.#fail(id, message.code.toLowerCase(), this.#shown(message.message))
      case 'invalid':
        return this.#heardInvalid(id, message)
      case 'checked':
        return this.#heardChecked(job, message)
      case 'step':
        return this.#heardStep(id, message)
      case 'checkpoint':
        return this.#heardCheckpoint(job, message.step)
      case 'judged':
        return this.#heardJudged(id, message)
      case 'done':
        return this.#finish(job)
    }
  }

  /** Takes the server's folders out of a text, so that callers may read it. */
  #shown(text: string): string {
    return withoutPaths(text.replaceAll(this.base.model, this.server.names[0]))
  }

  async #heardInvalid(id: string, { problems }: Heard<'invalid'>): Promise<void> {
    await changeJob(this.store, id, async (job, rows) => {
      for (const [i, { message }] of problems.entries()) {
        await tell(rows, job, `line-${i + 1}`, this.#shown(message), { level: 'error' })
      }
    })
    // The message begins with the place.
    const [last] = this.#shown(problems.at(-1)!.message).split(':')
    const isCut = problems.length >= MAX_INVALID
    const count = problems.length === 1 ? '1 line' : `${isCut ? 'at least ' : ''}${problems.length} lines`
    const until = isCut ? `, read up to ${last}` : ''
    const [{ file, message: first }] = problems
    await this.#fail(id, 'invalid_file', `${count} cannot be used${until}. The first: ${this.#shown(first)}`, file)
  }

  async #heardChecked(job: Job, found: Heard<'checked'>): Promise<void> {
    const { hyperparameters, checkpointEvery, settings } = resolve(
      settingsOf(job, this.#folderOf(job), this.base),
      job.hyperparameters,
      found,
    )
    await this.#writeSettings(job, settings)
    const needs = await this.#needs(job, found, settings.batchSize!, hyperparameters.n_epochs)
    await changeJob(this.store, job.id, async (job, rows) => {
      await tell(rows, job, 'needs', needs.message, { level: needs.isShort ? 'warn' : 'info' })
      await tell(rows, job, 'validated', 'Files validated, moving job to queued state')
      Object.assign(job, { hyperparameters, checkpointEvery, status: 'queued' })
    })
    this.#wake()
  }

  /** Says what the training needs and what there is, before it begins. */
  async #needs(job: Job, { memory, adapterBytes }: Heard<'checked'>, batch: number, epochs: number) {
    const { model } = this.server
    // Pages of a file that two processes map are in memory once.
    const isSame = memory.graph === model.onnxPath
    const need = (isSame ? 0 : memory.weights) + memory.copies + batch * memory.perRecord
    const file = isSame ? 'the same file as' : 'another file than'
    const [free] = memoryLimits(model)
    const { bavail, bsize } = await statfs(this.#folderOf(job))
    // A checkpoint for each pass, and at the end the result with the two moments of its state, before it is published.
    const disk = adapterBytes * (epochs + 4)
    const room = bavail * bsize
    const message = [
      `The training maps ${gigabytes(memory.weights)} of weights from ${file} the server.`,
      `It needs about ${gigabytes(need)} more memory, of ${gigabytes(free.bytes)} that are free,`,
      `and ${gigabytes(disk)} on the disk, of ${gigabytes(room)}`,
    ].join(' ')
    return { message, isShort: need > free.bytes || disk > room }
  }

  async #heardStep(
    id: string,
    { step, totalSteps, loss, evalLoss, reward, secondsLeft }: Heard<'step'>,
  ): Promise<void> {
    if (step > this.#attempts.step) this.#attempts = { id, count: 0, step }
    const of = totalSteps === 0 ? '' : `/${totalSteps}`
    const data = {
      ...{ step, ...(totalSteps > 0 && { total_steps: totalSteps }), train_loss: loss },
      ...(evalLoss !== undefined &&
        (reward === undefined ? { valid_loss: evalLoss } : { valid_mean_reward: -evalLoss })),
      ...(reward !== undefined && { train_mean_reward: reward }),
    }
    await changeJob(this.store, id, async (job, rows) => {
      if (secondsLeft > 0 && job.status === 'running') job.estimated_finish = seconds() + Math.ceil(secondsLeft)
      await tell(rows, job, `step-${step}`, `Step ${step}${of}: training loss=${loss.toFixed(2)}`, { data })
    })
  }

  async #heardCheckpoint({ id, checkpoints }: Job, step: number): Promise<void> {
    if (checkpoints.some((checkpoint) => checkpoint.step === step)) return
    const lines = await stepsOf(this.#folderOf({ id }))
    const checkpoint = { step, created_at: seconds(), metrics: metricsOf(lines.find((line) => line.step === step)) }
    await changeJob(this.store, id, async (job, rows) => {
      await tell(rows, job, `checkpoint-${step}`, `Checkpoint created at step ${step}: ${modelName(job, step)}`)
      job.checkpoints = [...job.checkpoints, checkpoint].sort((a, b) => a.step - b.step)
      await offerModel(rows, job, checkpoint.created_at, step)
    })
  }

  async #heardJudged(id: string, { value, low, high, isPassed }: Heard<'judged'>): Promise<void> {
    await changeJob(this.store, id, async (job, rows) => {
      job.judged = { value, low, high, isPassed, isPublished: false }
      const { alias, metric = 'loss' } = job.lowrank.gate as Gate
      const hasInterval = low !== null && high !== null
      const interval = hasInterval ? `95 %: ${low.toFixed(4)} to ${high.toFixed(4)}` : 'too few records to be certain'
      const fact = `${metric} changed by ${value.toFixed(4)} (${interval})`
      await tell(rows, job, 'judged', `${fact}: ${alias} ${isPassed ? 'is the new model' : 'stays as it was'}`)
    })
  }

  async #finish({ id, owner }: Job): Promise<void> {
    const lines = await stepsOf(this.#folderOf({ id }))
    const results = id.replace('ftjob-', 'file-')
    const content = await this.files.write(results, tableOf(lines))
    const about = { id: results, owner, created_at: seconds(), filename: 'step_metrics.csv', expires_at: null }
    const last = lines.at(-1)
    const made = await changeJob(this.store, id, async (job, rows) => {
      await insertFile(rows, { ...about, ...content, purpose: 'fine-tune-results' })
      job.result_files = [results]
      job.trained_tokens = lines.reduce((sum, { tokens }) => sum + tokens, 0)
      if (last === undefined || job.checkpoints.some(({ isResult }) => isResult)) return
      const result = { step: last.step, created_at: seconds(), metrics: metricsOf(last), isResult: true }
      job.checkpoints = [...job.checkpoints, result]
      await offerModel(rows, job, result.created_at)
    })
    if (made === undefined) return
    // Another model may have taken the name meanwhile.
    await this.#publish(made).catch((error: Error) => this.#tell(id, 'alias', error.message, { level: 'warn' }))
    await this.#tell(id, 'model', `New fine-tuned model created: ${modelName(made)}`)
    await this.#end(id, 'succeeded', 'The job has successfully completed')
  }
}
