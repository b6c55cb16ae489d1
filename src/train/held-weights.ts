// The tensors that are trained, with their optimizer, in the memory of the thread.

import { elementCount, joinedUp } from '../base/tensor.js'
import type { TrainedParameter } from '../graph/training/training-graph.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'
import { AdamW, type AdamWOptions, type AdamWState, clipFactor, gradientNorm } from './optimizer.js'

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

/** AdamW changes the same arrays that are fed to the graph. Arrays that the methods return are copies. */
export class HeldWeights {
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

export function copies(arrays: readonly Float32Array[]): Float32Array[] {
  return arrays.map((array) => array.slice())
}
