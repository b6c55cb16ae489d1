// Writes a run's folder so that any interruption leaves it usable: the state counts no steps that the metrics lack.

import { writeFile } from '../../core/base/bytes.js'
import type { BaseRecord, LoraAdapter } from '../../lora/adapter.js'
import { saveAdapter, takeOver } from '../../lora/peft/adapter-folder.js'
import { CARD_FILE } from '../../lora/peft/file-names.js'
import type { EngineState } from '../engine/engine.js'
import type { StepMetrics } from '../report.js'
import {
  clearRunFolder,
  EVALUATIONS_FILE,
  linesOf,
  METRICS_FILE,
  PAGE_FILE,
  RECORD_FILE,
  type RunPlace,
  type RunState,
  removeFiles,
  STATE_FILE,
  writeMarker,
  writeState,
} from './run-folder.js'

/** Often enough to watch, seldom enough to be free. */
const METRICS_INTERVAL_MS = 2000

type Watched = Pick<RunState, 'evaluations' | 'samples'>

interface LastFiles {
  readonly card?: string | undefined
  readonly page?: string | undefined
  readonly keepState?: boolean
}

export class RunWriter {
  /** True when the marker is there and belongs to this run. */
  #isBegun: boolean
  #hasSaved: boolean
  /** Lines in the file; undefined while it is not this run's, or may hold lines that a resumed run makes anew. */
  #writtenLines: number | undefined
  /** The first line is written at once: a folder that takes none should end the run before it has trained. */
  #metricsAt = Number.NEGATIVE_INFINITY

  /** @param metrics the run's own list, which grows with each step */
  constructor(
    private readonly place: RunPlace,
    private readonly about: { readonly task: string; readonly record?: string | undefined },
    private readonly metrics: readonly StepMetrics[],
  ) {
    this.#isBegun = place.use === 'resume'
    this.#hasSaved = place.use === 'resume'
  }

  async stepTaken(): Promise<void> {
    // A run that replaces another leaves it in place until it saves.
    const mayWrite = this.#isBegun || this.place.use === 'new'
    if (mayWrite && performance.now() - this.#metricsAt >= METRICS_INTERVAL_MS) await this.#writeMetrics()
  }

  /** Writes the adapter and the state. An earlier run in the folder is replaced only after this run has made a step. */
  async save(adapter: LoraAdapter, state?: { names: readonly string[]; engine: EngineState; run: RunState }) {
    if (this.place.use === 'overwrite' && this.metrics.length === 0) return
    await this.#writeMetrics()
    if (state !== undefined) await this.#writeEvaluations(state.run)
    // In this order, so that a run which goes on from the state finds no adapter of an earlier step.
    await saveAdapter(adapter, this.place.directory)
    await takeOver(this.place.directory)
    if (state !== undefined) await writeState(this.place.directory, state.names, state.engine, state.run)
    this.#hasSaved = true
  }

  async finish(watched: Watched, base: BaseRecord, { card, page, keepState }: LastFiles = {}): Promise<void> {
    await this.#writeEvaluations(watched)
    if (page !== undefined) await writeFile(this.place.directory, PAGE_FILE, page)
    if (card !== undefined) await writeFile(this.place.directory, CARD_FILE, card)
    await writeMarker(this.place.directory, 'finished', { task: this.about.task, base })
    if (!keepState) await removeFiles(this.place.directory, [STATE_FILE])
  }

  /** After a failure: leaves nothing of a run that has saved nothing. */
  async abandon(): Promise<void> {
    if (this.#isBegun && !this.#hasSaved) await clearRunFolder(this.place.directory)
  }

  async #writeEvaluations({ evaluations, samples }: Watched): Promise<void> {
    const lines = [...evaluations, ...samples].sort((a, b) => a.step - b.step)
    if (lines.length === 0) return
    await writeFile(this.place.directory, EVALUATIONS_FILE, linesOf(lines))
  }

  async #writeMetrics(): Promise<void> {
    const directory = this.place.directory
    if (!this.#isBegun) {
      if (this.place.use === 'overwrite') await clearRunFolder(directory)
      await writeMarker(directory, 'unfinished', { task: this.about.task })
      const { record } = this.about
      if (record !== undefined) await writeFile(directory, RECORD_FILE, record)
      this.#isBegun = true
    }
    if (this.#writtenLines === undefined || directory.append === undefined) {
      await writeFile(directory, METRICS_FILE, linesOf(this.metrics))
    } else if (this.#writtenLines < this.metrics.length) {
      const lines = linesOf(this.metrics.slice(this.#writtenLines))
      await directory.append(METRICS_FILE, new TextEncoder().encode(lines))
    }
    this.#writtenLines = this.metrics.length
    this.#metricsAt = performance.now()
  }
}
