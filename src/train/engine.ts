// The sessions that compute loss and gradients, with the trained weights. Gradients never leave the engine's thread.

import { StateError } from '../base/errors.js'
import { elementCount, joinedUp } from '../base/tensor.js'
import type { TrainedParameter } from '../graph/training/training-graph.js'
import { transfer } from '../runtime/rpc.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'
import { SessionTable } from '../runtime/session-table.js'
import { AdamW, type AdamWOptions, type AdamWState, clipFactor, gradientNorm } from './optimizer.js'

export interface Pass {
  session: number
  feeds: Feeds
  loss: string
  /** Further outputs that the caller wants. */
  predictions?: readonly string[]
}

export interface EngineState extends AdamWState {
  parameters: Float32Array[]
  best?: Float32Array[] | undefined
}

export interface EngineSetup {
  parameters: readonly Omit<TrainedParameter, 'name'>[]
  optimizer: Partial<AdamWOptions>
  /** 0: no clipping. */
  maxGradNorm: number
  /**
   * The graph's input and output if it takes all tensors as one vector, and gives their gradients as one: a GPU copies
   * one large tensor in less time than many small ones.
   */
  packed?: { readonly input: string; readonly gradient: string } | undefined
}

export class TrainEngine extends SessionTable {
  #trained: HeldWeights | undefined
  #best: Float32Array[] | undefined
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

/** AdamW changes the same arrays that are fed to the graph. Arrays that the methods return are copies. */
class HeldWeights {
  readonly feeds: Feeds
  /** Outputs of a pass that `add` takes. */
  readonly gradients: readonly string[]
  readonly #lengths: readonly number[]
  readonly #parameters: Float32Array[]
  readonly #optimizer: AdamW
  readonly #maxGradNorm: number
  readonly #lastGood: Float32Array[]
  #sums: Float32Array[] = []

  constructor({ parameters, optimizer, maxGradNorm, packed }: EngineSetup, state: EngineState) {
    this.#lengths = parameters.map(({ shape }) => elementCount(shape))
    const vector = packed && joinedUp(state.parameters)
    this.#parameters = vector === undefined ? state.parameters : this.#apart(vector)
    this.#optimizer = new AdamW(this.#parameters, optimizer)
    this.#optimizer.state = state
    this.#maxGradNorm = maxGradNorm
    this.feeds =
      vector === undefined
        ? Object.fromEntries(
            parameters.map(({ input, shape }, i) => {
              return [input, { type: 'float32', data: state.parameters[i], dims: shape }]
            }),
          )
        : { [packed!.input]: { type: 'float32', data: vector, dims: [vector.length] } }
    this.gradients = packed === undefined ? parameters.map(({ gradient }) => gradient) : [packed.gradient]
    this.#lastGood = copies(state.parameters)
  }

  /** Cuts a vector of all tensors into one array for each. They share its memory. */
  #apart(vector: Float32Array): Float32Array[] {
    let end = 0
    return this.#lengths.map((length) => {
      end += length
      return vector.subarray(end - length, end)
    })
  }

  add(outputs: Readonly<Record<string, RuntimeTensor>>, isFirst: boolean): void {
    const given = this.gradients.map((name) => outputs[name].data as Float32Array)
    const gradients = given.length < this.#lengths.length ? this.#apart(given[0]) : given
    if (isFirst) this.#sums = gradients
    else for (const [p, sum] of this.#sums.entries()) for (let i = 0; i < sum.length; i++) sum[i] += gradients[p][i]
  }

  /** Changes nothing unless the loss and the norm of the gradients, which it returns, are finite. */
  step(loss: number, learningRate: number): number {
    const norm = gradientNorm(this.#sums)
    if (!Number.isFinite(loss)) return norm
    this.#parameters.forEach((parameter, i) => void this.#lastGood[i].set(parameter))
    if (Number.isFinite(norm)) this.#optimizer.step(this.#sums, learningRate, clipFactor(norm, this.#maxGradNorm))
    return norm
  }

  state(): EngineState {
    const { firstMoments, secondMoments, updates } = this.#optimizer.state
    const moments = { firstMoments: copies(firstMoments), secondMoments: copies(secondMoments), updates }
    return { parameters: this.parameters(), ...moments }
  }

  parameters(): Float32Array[] {
    return copies(this.#parameters)
  }

  /** The parameters of the last step whose loss was finite. */
  lastGood(): Float32Array[] {
    return copies(this.#lastGood)
  }
}

function copies(arrays: readonly Float32Array[]): Float32Array[] {
  return arrays.map((array) => array.slice())
}
