// Parameters, their optimizer, and the sessions that give loss and gradients; gradients never leave this thread.

import { StateError } from '../base/errors.js'
import type { TrainedParameter } from '../graph/training/training-graph.js'
import { transfer } from '../runtime/rpc.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'
import { SessionTable } from '../runtime/session-table.js'
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

interface Training {
  setup: EngineSetup
  parameters: Float32Array[]
  feeds: Feeds
  gradients: string[]
  optimizer: AdamW
  lastGood: Float32Array[]
  best: Float32Array[] | undefined
  sums: Float32Array[] | undefined
}

export class TrainEngine extends SessionTable {
  #training: Training | undefined

  start(setup: EngineSetup, state: EngineState): void {
    const { parameters } = state
    const optimizer = new AdamW(parameters, setup.optimizer)
    optimizer.state = state
    this.#training = {
      setup,
      parameters,
      feeds: Object.fromEntries(
        setup.parameters.map(({ input, shape }, i) => [input, { type: 'float32', data: parameters[i], dims: shape }]),
      ),
      gradients: setup.parameters.map(({ gradient }) => gradient),
      optimizer,
      lastGood: parameters.map((parameter) => parameter.slice()),
      best: state.best,
      sums: undefined,
    }
  }

  /** `stepLoss`: the loss, where those of the passes are only a way to its gradients. */
  async step(passes: readonly Pass[], learningRate: number, stepLoss?: number): Promise<StepResult> {
    const training = this.#started()
    let loss = 0
    let gradients: Float32Array[] = []
    for (const [index, pass] of passes.entries()) {
      const outputs = [pass.loss, ...training.gradients]
      const results = await this.session(pass.session).run({ ...training.feeds, ...pass.feeds }, outputs)
      const [runLoss, ...runGradients] = outputs.map((name) => results[name].data as Float32Array)
      loss += runLoss[0]
      gradients = passes.length === 1 ? runGradients : accumulate(training, runGradients, index === 0)
    }
    loss = stepLoss ?? loss
    const norm = gradientNorm(gradients)
    if (Number.isFinite(loss)) training.parameters.forEach((parameter, i) => void training.lastGood[i].set(parameter))
    if (Number.isFinite(loss) && Number.isFinite(norm)) {
      training.optimizer.step(gradients, learningRate, clipFactor(norm, training.setup.maxGradNorm))
    }
    return { loss, gradientNorm: norm }
  }

  /** The first pass of a loss over many runs: the second is a step whose loss is Σ (output · fed gradient). */
  async forward(
    { session, feeds }: Omit<Pass, 'loss'>,
    outputs: readonly string[],
  ): Promise<Record<string, RuntimeTensor>> {
    const results = await this.session(session).run({ ...this.#started().feeds, ...feeds }, outputs)
    return transfer(results, [...new Set(Object.values(results).map(({ data }) => data.buffer))])
  }

  state(): EngineState {
    const { parameters, optimizer, best } = this.#started()
    const copy = {
      parameters: copies(parameters),
      firstMoments: copies(optimizer.state.firstMoments),
      secondMoments: copies(optimizer.state.secondMoments),
      updates: optimizer.state.updates,
      ...(best && { best: copies(best) }),
    }
    const { firstMoments, secondMoments } = copy
    return transfer(copy, buffersOf([...copy.parameters, ...firstMoments, ...secondMoments, ...(copy.best ?? [])]))
  }

  keepBest(): void {
    const training = this.#started()
    training.best = copies(training.parameters)
  }

  /** A copy of the best parameters where some were kept, or those of the last step whose loss was finite. */
  lastGood(): Float32Array[] {
    const { best, lastGood } = this.#started()
    const copy = copies(best ?? lastGood)
    return transfer(copy, buffersOf(copy))
  }

  #started(): Training {
    if (this.#training === undefined) throw new StateError({ where: 'training', what: 'not started' })
    return this.#training
  }
}

function accumulate(training: Training, gradients: readonly Float32Array[], isFirst: boolean): Float32Array[] {
  training.sums ??= gradients.map(({ length }) => new Float32Array(length))
  training.sums.forEach((sum, p) => {
    const gradient = gradients[p]
    if (isFirst) sum.set(gradient)
    else for (let i = 0; i < sum.length; i++) sum[i] += gradient[i]
  })
  return training.sums
}

function copies(arrays: readonly Float32Array[]): Float32Array[] {
  return arrays.map((array) => array.slice())
}

function buffersOf(arrays: readonly Float32Array[]): ArrayBufferLike[] {
  return arrays.map(({ buffer }) => buffer)
}
