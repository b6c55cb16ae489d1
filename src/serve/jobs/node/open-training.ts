// Opens the folder in which a server trains: its store, and what answers from it.

import { mkdir } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { reserveFolder } from '../../../api/node/parts.js'
import type { Reservation } from '../../../core/base/bytes.js'
import { FileError } from '../../../core/base/errors.js'
import { checkFields } from '../../fields.js'
import type { Call } from '../../route.js'
import { adviceOn, backUpDaily, backupsIn } from '../../store/node/backup.js'
import { DAMAGED, openStore } from '../../store/node/open.js'
import { unusableStore } from '../../store/node/sqlite.js'
import { isUnusable } from '../../store/store.js'
import { STORED_FIELDS } from '../fields.js'
import { Completions, type StoredChoice } from './completions.js'
import { Files } from './files.js'
import { JobQueue, type ServerFacts } from './jobs.js'
import { Models } from './models.js'
import type { TrainingOptions } from './training-options.js'

const MAX_JSON = 64 << 10
const DAY_SECONDS = 86_400
const SWEEP_MS = 3_600_000

export async function openTraining(folder: string, options: TrainingOptions, server: ServerFacts) {
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
    storeRequired = false,
    noBackup = false,
  } = options
  const maxAge = DAY_SECONDS * retentionDays
  // What a caller hears of a damaged store stands in the log once.
  const onError = (error: unknown) => isUnusable(error) || server.onError(error)
  const store = await openStore(folder, onError).catch(async (error) => {
    if (storeRequired || !(error instanceof FileError) || error.what !== DAMAGED) throw error
    server.onError(error)
    return unusableStore(folder, `${error.what}; ${adviceOn(await backupsIn(folder))}`)
  })
  const files = new Files(store, { maxFileBytes, maxOwnerBytes, maxAge })
  const models = new Models(store)
  const completions = new Completions(store, { maxStored, maxStoredBytes, maxAge })
  const { hubId, hubRevision, name } = server.model.directory
  const model = hubId === undefined ? path.resolve(name) : `hf:${hubId}${hubRevision ? `@${hubRevision}` : ''}`
  const { chatTemplate } = server
  const base = { model, dtype, threads, chatTemplate, termsRead, graderModels }
  const queue = new JobQueue(store, files, models, { ...server, onError }, base, maxJobs)
  const sweep = () => files.sweep().then(() => completions.sweep())
  let sweeps = sweep().catch(onError)
  const sweeping = setInterval(() => {
    sweeps = sweeps.then(sweep).catch(onError)
    if (!noBackup) sweeps = sweeps.then(() => backUpDaily(store)).catch(onError)
  }, SWEEP_MS).unref()
  return {
    ...{ files, queue, models, completions },
    async createFile(call: Call) {
      if (!/^application\/json\b/i.test(call.request.headers.get('content-type') ?? '')) return files.create(call)
      const { lowrank } = checkFields(await call.inbox.json(call, MAX_JSON), STORED_FIELDS)
      return files.createFrom(call, await completions.rows(call.caller, lowrank as StoredChoice))
    },
    serves: (requests: number) => queue.hold(when === 'idle' && requests > 0),
    async close() {
      clearInterval(sweeping)
      await queue.close()
      await sweeps
      await store.close()
      await reservation.release()
    },
  }
}
