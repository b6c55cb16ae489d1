// The folder in which a server trains: files/, uploads/, jobs/, each with a folder for each entry, and aliases.json.

import { mkdir } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import type { DtypeChoice } from '../../../api/index.js'
import { reserveFolder } from '../../../api/node/parts.js'
import type { Reservation } from '../../../core/base/bytes.js'
import { checkArgument, checkOptions, NAME } from '../../../core/base/options.js'
import { checkFields } from '../../fields.js'
import { TRAINING_OPTIONS } from '../../gen/options.js'
import type { Call } from '../../route.js'
import { STORED_FIELDS } from '../fields.js'
import type { Job } from '../job.js'
import type { Training } from '../training.js'
import { claimFolder } from './claim.js'
import { Completions, type StoredChoice } from './completions.js'
import { Files } from './files.js'
import { JobQueue, type ServerFacts } from './jobs.js'
import { Models } from './models.js'
import { Store } from './store.js'

const MAX_JSON = 64 << 10
const DAY_SECONDS = 86_400
const SWEEP_MS = 3_600_000

/** Options of `trainingIn`. */
export interface TrainingOptions {
  /** The dtype of the model that is trained. Default: as `loadModel` chooses. */
  readonly dtype?: DtypeChoice | undefined
  /**
   * When jobs train. With `idle`, they wait while requests run.
   * @default always
   */
  readonly when?: 'always' | 'idle' | undefined
  /**
   * Threads of a job. Default: half of the processors.
   * @range an integer of at least 1
   */
  readonly threads?: number | undefined
  /**
   * The models that graders of jobs name, with the address of a server for each, up to /v1. LOWRANK_GRADER_KEY is their
   * key.
   * @flag NAME=URL,…
   */
  readonly graderModels?: Readonly<Record<string, string>> | undefined
  /**
   * Also trains on records that a provider's model wrote, as their `source` says. Read the provider's terms first.
   * Default false: such a file is refused.
   */
  readonly termsRead?: boolean | undefined
  /**
   * The most bytes of an uploaded file. Default: 512 MiB.
   * @range an integer of at least 1
   */
  readonly maxFileBytes?: number | undefined
  /**
   * The most bytes of all uploaded files of one owner. Default: 8 GiB.
   * @range an integer of at least 1
   */
  readonly maxOwnerBytes?: number | undefined
  /**
   * Days after which uploaded files and stored chats are deleted. Default: they stay.
   * @range a finite number above 0
   */
  readonly retentionDays?: number | undefined
  /**
   * The most training jobs of one owner that have not ended.
   * @range an integer of at least 1
   * @default 32
   */
  readonly maxJobs?: number | undefined
  /**
   * The most stored chats of one owner. If there are more, the oldest is deleted.
   * @range an integer of at least 1
   * @default 10000
   */
  readonly maxStored?: number | undefined
  /**
   * The most bytes of all stored chats of one owner. If there are more, the oldest are deleted. Default: 1 GiB.
   * @range an integer of at least 1
   */
  readonly maxStoredBytes?: number | undefined
}

/**
 * Lets a server answer OpenAI's routes for files and fine-tuning. Files, jobs and models are in one folder, which one
 * server has at a time. Jobs train one after the other, in a process of their own at low priority; a server that starts
 * again goes on with them.
 *
 * @param folder a new or an empty folder, or one from before
 * @throws ConfigError for options that are unknown or not valid
 *
 * @example
 * import { createHandler, trainingIn } from 'lowrank/server'
 *
 * const handler = await createHandler({
 *   model: 'models/union-3m',
 *   training: trainingIn('out/training'),
 *   apiKeys: [{ key: 'SECRET', isAdmin: true }],
 *   hosts: ['localhost'],
 * })
 * const headers = { authorization: 'Bearer SECRET' }
 * console.log(await (await handler(new Request('http://localhost/v1/fine_tuning/jobs', { headers }))).json())
 * await handler.close()
 */
export function trainingIn(folder: string, options: TrainingOptions = {}): Training {
  checkArgument(folder, NAME, 'folder')
  checkOptions(options, 'trainingIn', TRAINING_OPTIONS)
  return { open: (server) => open(path.resolve(folder), options, server) }
}

async function open(folder: string, options: TrainingOptions, server: ServerFacts) {
  await mkdir(folder, { recursive: true, mode: 0o700 })
  const reservation = await reserveFolder(folder, 'server')
  return opened(folder, options, server, reservation).catch(async (error) => {
    await reservation.release()
    throw error
  })
}

async function opened(folder: string, options: TrainingOptions, server: ServerFacts, reservation: Reservation) {
  const { dtype, termsRead, graderModels = {}, threads = Math.max(1, availableParallelism() >> 1) } = options
  const {
    when = 'always',
    maxFileBytes = 512 << 20,
    maxOwnerBytes = 8 * 2 ** 30,
    maxJobs = 32,
    maxStored = 10_000,
    maxStoredBytes = 2 ** 30,
    retentionDays = Number.POSITIVE_INFINITY,
  } = options
  const maxAge = DAY_SECONDS * retentionDays
  const { onError } = server
  await claimFolder(folder)
  const files = await Files.open(folder, { maxFileBytes, maxOwnerBytes, maxAge, onError })
  const store = await Store.open<Job>(folder, 'jobs', { onError })
  const models = await Models.open(folder, store, onError)
  const completions = await Completions.open(folder, { maxStored, maxStoredBytes }, { maxAge, onError })
  const { hubId, hubRevision, name } = server.model.directory
  const model = hubId === undefined ? path.resolve(name) : `hf:${hubId}${hubRevision ? `@${hubRevision}` : ''}`
  const { chatTemplate } = server
  const base = { model, dtype, threads, chatTemplate, termsRead, graderModels }
  const queue = new JobQueue(store, files, models, server, base, maxJobs)
  const sweep = () => Promise.all([files.sweep(), completions.sweep()])
  await sweep()
  const sweeping = setInterval(() => sweep().catch(onError), SWEEP_MS).unref()
  return {
    ...{ files, queue, models, completions },
    async createFile(call: Call) {
      if (!/^application\/json\b/i.test(call.request.headers.get('content-type') ?? '')) return files.create(call)
      const { lowrank } = checkFields(await call.inbox.json(call, MAX_JSON), STORED_FIELDS)
      return files.createFrom(call, completions.rows(call.caller, lowrank as StoredChoice))
    },
    serves: (requests: number) => queue.hold(when === 'idle' && requests > 0),
    async close() {
      clearInterval(sweeping)
      await queue.close()
      await reservation.release()
    },
  }
}
