// Steps and evaluations of a run, as an event file of TensorBoard.

import { concatBytes, type Directory, writeFile } from '../../base/bytes.js'
import { eventRecord, fileHeader, restartRecord } from '../../formats/event-file.js'
import type { StepEvent, TrainEvents } from '../train-report.js'

/** Shortest time between two writes where a file cannot grow, and each write is one of all events. */
const INTERVAL_MS = 5000

/** A file of one run, in the names of transformers' Trainer: train/loss, train/grad_norm, eval/loss, … */
export class EventLog {
  readonly #path: string
  #hasEvents = false
  #waiting: Uint8Array[] = []
  #written: Uint8Array = new Uint8Array()
  #write: Promise<void> = Promise.resolve()
  #wroteAt = Number.NEGATIVE_INFINITY

  private constructor(
    private readonly directory: Directory,
    private isResumed: boolean,
  ) {
    const now = Date.now()
    // TensorBoard reads the files of a folder in the order of their names.
    this.#path = `events.out.tfevents.${Math.floor(now / 1000)}.lowrank.${String(now % 1000).padStart(3, '0')}`
  }

  /** `isResumed`: steps of older files count only up to where this one begins. */
  static async open(directory: Directory, isResumed: boolean): Promise<EventLog> {
    const log = new EventLog(directory, isResumed)
    await log.#append(fileHeader(Date.now() / 1000))
    return log
  }

  heard(on: TrainEvents): TrainEvents {
    const own: TrainEvents = {
      step: (event) => {
        on.step?.(event)
        this.#add(event.step, stepValues(event), event.step)
      },
      evaluation: (event) => {
        on.evaluation?.(event)
        // A run that was stopped in an evaluation makes up for it: the step before is in an older file.
        const values = Object.entries({ loss: event.loss, ...event.metrics })
        const named = Object.fromEntries(values.map(([name, value]) => [`eval/${name}`, value]))
        this.#add(event.step, named, event.step + 1)
      },
    }
    return Object.assign(Object.create(on), own)
  }

  /** Writes what is left; a file without events goes. Throws FileError when something could not be written. */
  async close(): Promise<void> {
    if (this.#waiting.length > 0) this.#flush()
    await this.#write
    if (!this.#hasEvents) await this.directory.remove(this.#path)
  }

  /** @param from the first step of older files that does not count, if this is the first event of a resumed run */
  #add(step: number, values: Readonly<Record<string, number>>, from: number): void {
    const time = Date.now() / 1000
    if (this.isResumed) this.#waiting.push(restartRecord(time, from))
    this.isResumed = false
    this.#hasEvents = true
    this.#waiting.push(eventRecord({ time, step, values }))
    const isDue = this.directory.append !== undefined || performance.now() - this.#wroteAt >= INTERVAL_MS
    if (isDue) this.#flush()
  }

  #flush(): void {
    const records = concatBytes(this.#waiting)
    this.#waiting = []
    this.#wroteAt = performance.now()
    this.#write = this.#write.then(() => this.#append(records))
    // `close` tells of it.
    this.#write.catch(() => {})
  }

  async #append(bytes: Uint8Array): Promise<void> {
    if (this.directory.append !== undefined) return this.directory.append(this.#path, bytes)
    this.#written = concatBytes([this.#written, bytes])
    await writeFile(this.directory, this.#path, this.#written)
  }
}

function stepValues({ loss, learningRate, gradientNorm, epoch, tokensPerSecond }: StepEvent): Record<string, number> {
  return {
    'train/loss': loss,
    'train/learning_rate': learningRate,
    'train/grad_norm': gradientNorm,
    'train/epoch': epoch,
    'train/tokens_per_second': tokensPerSecond,
  }
}
