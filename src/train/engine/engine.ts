// The sessions that compute loss and gradients, with the trained weights. Gradients never leave the engine's thread.

import { StateError } from '../../core/base/errors.js'
import { elementCount, joinedUp } from '../../core/base/tensor.js'
import { transfer } from '../../onnx/runtime/rpc.js'
import type { Feeds, RuntimeTensor } from '../../onnx/runtime/runtime.js'
import { SessionTable } from '../../onnx/runtime/session-table.js'
import type { TrainedParameter } from '../graph/training-graph.js'
import { type AdamWOptions, type AdamWState, clipFactor, gradientNorm, stepAdamW } from './optimizer.js'

export interface Pass {
  session: number
  feeds: Feeds
  loss: string
  /** Further outputs that the caller wants. */
  predictions?: readonly string[]
}

export interface EngineState extends AdamWState {
  best?: Float32Array[] | undefined
}

export interface EngineSetup {
  parameters: readonly Omit<TrainedParameter, 'name'>[]
  optimizer: AdamWOptions
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

  async start(setup: EngineSetup, state: EngineState): Promise<void> {
    this.#trained = new HeldWeights(setup, state)
  }

  /** Adds the gradients of a pass to those since the last update. */
  async accumulate({ session, feeds, loss, predictions = [] }: Pass) {
    const trained = this.#started()
    const wanted = [loss, ...predictions, ...trained.gradients]
    const results = await this.session(session).run({ ...trained.feeds, ...feeds }, wanted)
    trained.add(results)
    const outputs = Object.fromEntries(predictions.map((name) => [name, results[name]]))
    return { loss: Number(results[loss].data[0]), outputs }
  }

  /**
   * Takes a step of the optimizer with the gradients since the last one, and returns their norm. If that or the loss is
   * not finite, or if there are no gradients but zeros, no parameter changes.
   */
  async update(loss: number, learningRate: number): Promise<number> {
    return this.#started().step(loss, learningRate)
  }

  /** The first pass of a loss over many runs: the second is a step whose loss is Σ (output · fed gradient). */
  async forward({ session, feeds }: Omit<Pass, 'loss'>, outputs: readonly string[]) {
    const results = await this.session(session).run({ ...this.#started().feeds, ...feeds }, outputs)
    return transfer(results, [...new Set(Object.values(results).map(({ data }) => data.buffer))])
  }

  async state(): Promise<EngineState> {
    const state = this.#started().state()
    const { parameters, firstMoments, secondMoments, best = [] } = state
    return transfer(state, buffersOf([...parameters, ...firstMoments, ...secondMoments, ...best]))
  }

  async keepBest(): Promise<void> {
    this.#started().keepBest()
  }

  async parameters(): Promise<Float32Array[]> {
    const arrays = this.#started().parameters()
    return transfer(arrays, buffersOf(arrays))
  }

  /** The best parameters if some were kept, else those of the last step whose loss was finite. */
  async lastGood(): Promise<Float32Array[]> {
    const arrays = this.#started().lastGood()
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
  readonly #setup: EngineSetup
  readonly #state: EngineState
  readonly #lastGood: Float32Array[]
  /** The sums of the gradients since the last step. It is empty if there are none. */
  #sums: Float32Array[] = []

  constructor(setup: EngineSetup, state: EngineState) {
    const { parameters, packed } = setup
    this.#setup = setup
    this.#lengths = parameters.map(({ shape }) => elementCount(shape))
    const vector = packed && joinedUp(state.parameters)
    this.#state = { ...state, parameters: vector === undefined ? state.parameters : this.#apart(vector) }
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

  add(outputs: Readonly<Record<string, RuntimeTensor>>): void {
    const given = this.gradients.map((name) => outputs[name].data as Float32Array)
    const gradients = given.length < this.#lengths.length ? this.#apart(given[0]) : given
    if (this.#sums.length === 0) this.#sums = gradients
    else for (const [p, sum] of this.#sums.entries()) for (let i = 0; i < sum.length; i++) sum[i] += gradients[p][i]
  }

  /**
   * Changes nothing unless the loss and the norm of the gradients, which it returns, are finite. Without a gradient
   * AdamW would go on with its moments, away from what the texts say.
   */
  step(loss: number, learningRate: number): number {
    const { optimizer, maxGradNorm } = this.#setup
    const sums = this.#sums
    this.#sums = []
    const norm = gradientNorm(sums)
    if (!Number.isFinite(loss)) return norm
    this.#state.parameters.forEach((parameter, i) => void this.#lastGood[i].set(parameter))
    if (norm > 0 && Number.isFinite(norm))
      stepAdamW(this.#state, sums, learningRate, optimizer, clipFactor(norm, maxGradNorm))
    return norm
  }

  state(): EngineState {
    const { firstMoments, secondMoments, updates, best } = this.#state
    const moments = { firstMoments: copies(firstMoments), secondMoments: copies(secondMoments), updates }
    return { parameters: this.parameters(), ...moments, ...(best && { best: copies(best) }) }
  }

  parameters(): Float32Array[] {
    return copies(this.#state.parameters)
  }

  keepBest(): void {
    this.#state.best = this.parameters()
  }

  lastGood(): Float32Array[] {
    return copies(this.#state.best ?? this.#lastGood)
  }
}

function copies(arrays: readonly Float32Array[]): Float32Array[] {
  return arrays.map((array) => array.slice())
}
