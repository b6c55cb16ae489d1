// The sessions that give loss and gradients, and what is trained by them. Gradients never leave this thread.

import { StateError } from '../base/errors.js'
import { transfer } from '../runtime/rpc.js'
import type { Feeds } from '../runtime/runtime.js'
import { SessionTable } from '../runtime/session-table.js'
import { copies, type EngineSetup, type EngineState, HeldWeights } from './held-weights.js'

export interface Pass {
  session: number
  feeds: Feeds
  loss: string
  /** Further outputs that the caller wants. */
  predictions?: readonly string[]
}

export class TrainEngine extends SessionTable {
  #trained: HeldWeights | undefined
  #best: Float32Array[] | undefined
  /** Gradients were added since the last update. */
  #hasGradients = false

  async start(setup: EngineSetup, state: EngineState): Promise<void> {
    this.#best = state.best
    this.#hasGradients = false
    this.#trained = new HeldWeights(setup, state)
  }

  /** Adds the gradients of a pass to those since the last update. */
  async accumulate({ session, feeds, loss, predictions = [] }: Pass) {
    const trained = this.#started()
    const wanted = [loss, ...predictions, ...trained.gradients]
    const results = await this.session(session).run({ ...trained.feeds, ...feeds }, wanted)
    trained.add(results, !this.#hasGradients)
    this.#hasGradients = true
    const outputs = Object.fromEntries(predictions.map((name) => [name, results[name]]))
    return { loss: Number(results[loss].data[0]), outputs }
  }

  /**
   * Takes a step of the optimizer with the gradients since the last one, and returns their norm. If that or the loss is
   * not finite, no parameter changes.
   */
  async update(loss: number, learningRate: number): Promise<number> {
    this.#hasGradients = false
    return this.#started().step(loss, learningRate)
  }

  /** The first pass of a loss over many runs: the second is a step whose loss is Σ (output · fed gradient). */
  async forward({ session, feeds }: Omit<Pass, 'loss'>, outputs: readonly string[]) {
    const results = await this.session(session).run({ ...this.#started().feeds, ...feeds }, outputs)
    return transfer(results, [...new Set(Object.values(results).map(({ data }) => data.buffer))])
  }

  async state(): Promise<EngineState> {
    const state = this.#started().state()
    const best = this.#best && copies(this.#best)
    const arrays = [...state.parameters, ...state.firstMoments, ...state.secondMoments, ...(best ?? [])]
    return transfer({ ...state, ...(best && { best }) }, buffersOf(arrays))
  }

  async keepBest(): Promise<void> {
    this.#best = this.#started().parameters()
  }

  async parameters(): Promise<Float32Array[]> {
    const arrays = this.#started().parameters()
    return transfer(arrays, buffersOf(arrays))
  }

  /** The best parameters where some were kept, or those of the last step whose loss was finite. */
  async lastGood(): Promise<Float32Array[]> {
    const arrays = this.#best === undefined ? this.#started().lastGood() : copies(this.#best)
    return transfer(arrays, buffersOf(arrays))
  }

  override dispose(): Promise<void> {
    this.#trained = undefined
    return super.dispose()
  }

  #started(): HeldWeights {
    if (this.#trained === undefined) throw new StateError({ where: 'training', what: 'not started' })
    return this.#trained
  }
}

function buffersOf(arrays: readonly Float32Array[]): ArrayBufferLike[] {
  return arrays.map(({ buffer }) => buffer)
}
