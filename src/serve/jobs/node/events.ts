// The events of a job: lines of a file, each with a key, so that none is told twice.

import { existsSync } from 'node:fs'
import { appendFile, readFile } from 'node:fs/promises'
import path from 'node:path'
import { Turns } from '../../../core/base/turns.js'
import { withFileErrors } from '../../../files/io/node/errors.js'
import { seconds } from '../../adapters.js'
import { readLines } from './results.js'
import { PRIVATE } from './store.js'

export interface JobEvent {
  readonly id: string
  readonly object: 'fine_tuning.job.event'
  readonly created_at: number
  readonly level: 'info' | 'warn' | 'error'
  readonly message: string
  readonly type: 'message' | 'metrics'
  readonly data: Readonly<Record<string, unknown>> | null
}

/** The level is `info` by default. */
export type Details = Partial<Pick<JobEvent, 'level' | 'data'>>

export class Events {
  readonly #file: string
  #known: Set<string> | undefined
  readonly #turns = new Turns()

  constructor(
    private readonly id: string,
    folder: string,
  ) {
    this.#file = path.join(folder, 'events.jsonl')
  }

  /** The oldest first. */
  async list(): Promise<JobEvent[]> {
    await this.#turns.idle
    return withFileErrors(this.#file, 'cannot be read', () => readLines<JobEvent>(this.#file))
  }

  /** Adds an event, unless the job has one with this key. */
  tell(key: string, message: string, { level = 'info', data = null }: Details = {}): Promise<void> {
    return this.#turns.take(() =>
      withFileErrors(this.#file, 'cannot be written', async () => {
        this.#known ??= await this.#open()
        const id = `ftevent-${this.id.replace('ftjob-', '')}-${key}`
        if (this.#known.has(id)) return
        this.#known.add(id)
        const about = { id, object: 'fine_tuning.job.event', created_at: seconds() } as const
        const event: JobEvent = { ...about, level, message, type: data === null ? 'message' : 'metrics', data }
        await appendFile(this.#file, `${JSON.stringify(event)}\n`, PRIVATE)
      }),
    )
  }

  async #open(): Promise<Set<string>> {
    const events = await readLines<JobEvent>(this.#file)
    // A server that was killed may have written half a line.
    if (existsSync(this.#file) && !(await readFile(this.#file, 'utf8')).endsWith('\n')) {
      await appendFile(this.#file, '\n', PRIVATE)
    }
    return new Set(events.map(({ id }) => id))
  }
}
