// The tensors that are trained, with their optimizer: in the memory of the thread, or on a device (device.ts).

import type { TrainedParameter } from '../../graph/training/training-graph.js'
import type { Feeds, RuntimeTensor, SessionModel, SessionOptions } from '../../runtime/runtime.js'
import { AdamW, type AdamWOptions, type AdamWState, clipFactor, gradientNorm } from '../optimizer.js'

export interface EngineState extends AdamWState {
  parameters: Float32Array[]
  best?: Float32Array[] | undefined
}

export interface EngineSetup {
  parameters: readonly Omit<TrainedParameter, 'name'>[]
  optimizer: Partial<AdamWOptions>
  /** 0: no clipping. */
  maxGradNorm: number
  /** What a GPU that keeps the trained values needs to update them. Undefined: the worker updates them. */
  device?: DeviceSetup | undefined
}

export interface DeviceSetup {
  /** trained, first, second, gradient, step, decay, correction → norm, newTrained, newFirst, newSecond */
  readonly update: SessionModel
  /** a, b → sum */
  readonly add: SessionModel
  /** The input of the graphs that take the vector, and the output of its gradient. */
  readonly input: string
  readonly gradient: string
  readonly options: SessionOptions
}

/** Tensors that are trained, with their optimizer. Arrays that it returns are copies. */
export interface Trained {
  readonly feeds: Feeds
  /** Outputs of a pass that `add` takes. */
  readonly gradients: readonly string[]
  add(outputs: Readonly<Record<string, RuntimeTensor>>, isFirst: boolean): Promise<void> | void
  /** Changes nothing unless the loss and the norm of the gradients, which it returns, are finite. */
  step(loss: number, learningRate: number): Promise<number> | number
  state(): Promise<EngineState> | EngineState
  parameters(): Promise<Float32Array[]> | Float32Array[]
  /** The parameters of the last step whose loss was finite. */
  lastGood(): Promise<Float32Array[]> | Float32Array[]
  dispose?(): void
}

/** Trained weights in this thread's memory. AdamW changes the same arrays that are fed to the graph. */
export class HeldWeights implements Trained {
  readonly feeds: Feeds
  readonly gradients: readonly string[]
  readonly #parameters: Float32Array[]
  readonly #optimizer: AdamW
  readonly #maxGradNorm: number
  readonly #lastGood: Float32Array[]
  #sums: Float32Array[] = []

  constructor({ parameters, optimizer, maxGradNorm }: EngineSetup, state: EngineState) {
    this.#parameters = state.parameters
    this.#optimizer = new AdamW(state.parameters, optimizer)
    this.#optimizer.state = state
    this.#maxGradNorm = maxGradNorm
    this.feeds = Object.fromEntries(
      parameters.map(({ input, shape }, i) => [input, { type: 'float32', data: state.parameters[i], dims: shape }]),
    )
    this.gradients = parameters.map(({ gradient }) => gradient)
    this.#lastGood = copies(state.parameters)
  }

  add(outputs: Readonly<Record<string, RuntimeTensor>>, isFirst: boolean): void {
    const gradients = this.gradients.map((name) => outputs[name].data as Float32Array)
    if (isFirst) this.#sums = gradients
    else for (const [p, sum] of this.#sums.entries()) for (let i = 0; i < sum.length; i++) sum[i] += gradients[p][i]
  }

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

  lastGood(): Float32Array[] {
    return copies(this.#lastGood)
  }
}

export function copies(arrays: readonly Float32Array[]): Float32Array[] {
  return arrays.map((array) => array.slice())
}
