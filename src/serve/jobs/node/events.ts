// The events of a job: lines of a file, each with a key, so that none is told twice.

import { appendFile } from 'node:fs/promises'
import path from 'node:path'
import { withFileErrors } from '../../../api/node/parts.js'
import { Turns } from '../../../core/base/turns.js'
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

/** A message may repeat a part of a caller's file, such as the name of a field. */
const MAX_MESSAGE = 2000

export function shortened(message: string): string {
  return message.length <= MAX_MESSAGE ? message : `${message.slice(0, MAX_MESSAGE)} …`
}

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
        // A server that was killed may have written half a line.
        const start = this.#known === undefined ? '\n' : ''
        this.#known ??= new Set((await readLines<JobEvent>(this.#file)).map(({ id }) => id))
        const id = `ftevent-${this.id.replace('ftjob-', '')}-${key}`
        if (this.#known.has(id)) return
        this.#known.add(id)
        const about = { id, object: 'fine_tuning.job.event', created_at: seconds() } as const
        const type = data === null ? 'message' : 'metrics'
        const event: JobEvent = { ...about, level, message: shortened(message), type, data }
        await appendFile(this.#file, `${start}${JSON.stringify(event)}\n`, PRIVATE)
      }),
    )
  }
}
