// The sessions that give loss and gradients, and what is trained by them. Gradients never leave this thread.

import { StateError } from '../base/errors.js'
import type { TrainedParameter } from '../graph/training/training-graph.js'
import { transfer } from '../runtime/rpc.js'
import { type Feeds, keepsOnGpu, type RuntimeTensor } from '../runtime/runtime.js'
import { SessionTable } from '../runtime/session-table.js'
import type { DeviceSetup } from './device/weights.js'
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
  /** For a device that keeps what is trained. */
  device?: DeviceSetup | undefined
}

export interface Pass {
  session: number
  feeds: Feeds
  loss: string
}

export interface StepResult {
  /** Sum of the passes' losses. If it or the norm is not finite, no parameter was changed. */
  loss: number
  gradientNorm: number
}

/** What is trained, with its optimizer. Arrays that it returns are copies. */
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

export class TrainEngine extends SessionTable {
  #trained: Trained | undefined
  #best: Float32Array[] | undefined

  async start(setup: EngineSetup, state: EngineState): Promise<void> {
    const { device } = setup
    this.#best = state.best
    if (device === undefined) {
      this.#trained = new HeldWeights(setup, state)
      return
    }
    const { DeviceWeights } = await import('./device/weights.js')
    this.#trained?.dispose?.()
    const same = async (tensor: RuntimeTensor) => tensor
    const { toGpu = same, toHost = same } = keepsOnGpu(device.options) ? this.runtime : {}
    this.#trained = await DeviceWeights.start(setup, state, {
      ...device,
      open: async (model, gpuOutputs) =>
        this.session((await this.openSession(model, { ...device.options, gpuOutputs })).id),
      put: toGpu,
      read: toHost,
    })
  }

  /** `stepLoss`: the loss, where those of the passes are only a way to its gradients. */
  async step(passes: readonly Pass[], learningRate: number, stepLoss?: number): Promise<StepResult> {
    const trained = this.#started()
    let sum = 0
    for (const [index, pass] of passes.entries()) {
      const outputs = [pass.loss, ...trained.gradients]
      const results = await this.session(pass.session).run({ ...trained.feeds, ...pass.feeds }, outputs)
      sum += Number(results[pass.loss].data[0])
      await trained.add(results, index === 0)
    }
    const loss = stepLoss ?? sum
    return { loss, gradientNorm: await trained.step(loss, learningRate) }
  }

  /** The first pass of a loss over many runs: the second is a step whose loss is Σ (output · fed gradient). */
  async forward(
    { session, feeds }: Omit<Pass, 'loss'>,
    outputs: readonly string[],
  ): Promise<Record<string, RuntimeTensor>> {
    const results = await this.session(session).run({ ...this.#started().feeds, ...feeds }, outputs)
    return transfer(results, [...new Set(Object.values(results).map(({ data }) => data.buffer))])
  }

  async state(): Promise<EngineState> {
    const state = await this.#started().state()
    const best = this.#best && copies(this.#best)
    const arrays = [...state.parameters, ...state.firstMoments, ...state.secondMoments, ...(best ?? [])]
    return transfer({ ...state, ...(best && { best }) }, buffersOf(arrays))
  }

  async keepBest(): Promise<void> {
    this.#best = await this.#started().parameters()
  }

  /** The best parameters where some were kept, or those of the last step whose loss was finite. */
  async lastGood(): Promise<Float32Array[]> {
    const arrays = this.#best === undefined ? await this.#started().lastGood() : copies(this.#best)
    return transfer(arrays, buffersOf(arrays))
  }

  override dispose(): Promise<void> {
    this.#trained?.dispose?.()
    this.#trained = undefined
    return super.dispose()
  }

  #started(): Trained {
    if (this.#trained === undefined) throw new StateError({ where: 'training', what: 'not started' })
    return this.#trained
  }
}

/** In this thread's memory: AdamW changes the arrays that are fed. */
class HeldWeights implements Trained {
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
    const own = this.gradients.map((name) => outputs[name].data as Float32Array)
    if (isFirst) this.#sums = own
    else for (const [p, sum] of this.#sums.entries()) for (let i = 0; i < sum.length; i++) sum[i] += own[p][i]
  }

  step(loss: number, learningRate: number): number {
    const norm = gradientNorm(this.#sums)
    if (!Number.isFinite(loss)) return norm
    this.#parameters.forEach((parameter, i) => void this.#lastGood[i].set(parameter))
    if (Number.isFinite(norm)) {
      this.#optimizer.step(this.#sums, learningRate, clipFactor(norm, this.#maxGradNorm))
    }
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

function copies(arrays: readonly Float32Array[]): Float32Array[] {
  return arrays.map((array) => array.slice())
}

function buffersOf(arrays: readonly Float32Array[]): ArrayBufferLike[] {
  return arrays.map(({ buffer }) => buffer)
}
