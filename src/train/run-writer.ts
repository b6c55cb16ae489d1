// Writes a run's folder in an order that any interruption leaves usable: all but the metrics is complete where it is there, and
// the state never counts steps that the metrics lack.

import type { Directory } from '../base/bytes.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { saveAdapter } from '../peft/adapter-folder.js'
import type { EngineState } from './engine.js'
import {
  appendMetrics,
  clearRunFolder,
  type FolderUse,
  type RunState,
  removeFiles,
  STATE_FILE,
  type StepMetrics,
  type TrainedFor,
  writeMarker,
  writeMetrics,
  writeState,
} from './run-folder.js'

/** Often enough to watch, seldom enough to be free. */
const METRICS_INTERVAL_MS = 2000

export class RunWriter {
  readonly #directory: Directory | undefined
  readonly #use: FolderUse
  readonly #about: TrainedFor
  readonly #metrics: StepMetrics[]
  /** Whether the marker is there and belongs to this run. */
  #isBegun: boolean
  #hasSaved: boolean
  /** Lines in the file; undefined while it is not this run's, or may hold lines that a resumed run makes anew. */
  #writtenLines: number | undefined
  /** The first line is written at once: a folder that takes none should end the run before it has trained. */
  #metricsAt = Number.NEGATIVE_INFINITY

  /** @param metrics of the steps before a resume */
  constructor(directory: Directory | undefined, use: FolderUse, about: TrainedFor, metrics: readonly StepMetrics[]) {
    this.#about = about
    this.#directory = directory
    this.#use = use
    this.#metrics = [...metrics]
    this.#isBegun = use === 'resume'
    this.#hasSaved = use === 'resume'
  }

  get metrics(): readonly StepMetrics[] {
    return this.#metrics
  }

  /** Takes one step's line; now and then writes them. */
  async add(line: StepMetrics): Promise<void> {
    this.#metrics.push(line)
    // A run that replaces another leaves it in place until it saves.
    const mayWrite = this.#isBegun || this.#use === 'new'
    if (this.#directory === undefined || !mayWrite || performance.now() - this.#metricsAt < METRICS_INTERVAL_MS) return
    await this.#writeMetrics(this.#directory)
  }

  /** Saves adapter and, if given, the state to go on from. A run that is to be replaced stays until there was a step. */
  async save(
    adapter: LoraAdapter,
    state?: { names: readonly string[]; engine: EngineState; run: RunState },
  ): Promise<void> {
    if (this.#directory === undefined || (this.#use === 'overwrite' && this.#metrics.length === 0)) return
    await this.#writeMetrics(this.#directory)
    if (state !== undefined) await writeState(this.#directory, state.names, state.engine, state.run)
    await saveAdapter(adapter, this.#directory)
    this.#hasSaved = true
  }

  /** Marks the run, which has been saved, as finished, and drops its state. */
  async finish(): Promise<void> {
    if (this.#directory === undefined) return
    await writeMarker(this.#directory, 'finished', this.#about)
    await removeFiles(this.#directory, [STATE_FILE])
  }

  /** After a failure: leaves nothing of a run that has saved nothing. */
  async abandon(): Promise<void> {
    if (this.#directory !== undefined && this.#isBegun && !this.#hasSaved) await clearRunFolder(this.#directory)
  }

  async #writeMetrics(directory: Directory): Promise<void> {
    if (!this.#isBegun) {
      if (this.#use === 'overwrite') await clearRunFolder(directory)
      await writeMarker(directory, 'unfinished', this.#about)
      this.#isBegun = true
    }
    if (this.#writtenLines === undefined || directory.append === undefined) {
      await writeMetrics(directory, this.#metrics)
    } else if (this.#writtenLines < this.#metrics.length) {
      await appendMetrics(directory, this.#metrics.slice(this.#writtenLines))
    }
    this.#writtenLines = this.#metrics.length
    this.#metricsAt = performance.now()
  }
}
