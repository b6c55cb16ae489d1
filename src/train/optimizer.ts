// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on flat arrays, as torch.optim.AdamW computes it, and clipping
// by the global gradient norm (Pascanu et al. 2013, arXiv 1211.5063).

import { ShapeError } from '../base/errors.js'

export interface AdamWOptions {
  beta1: number
  beta2: number
  epsilon: number
  /** Factors of the learning rate, one for each parameter. Default: 1 for all. */
  rates?: readonly number[]
  /** Decoupled: each step multiplies a parameter by 1 − learningRate·weightDecay. */
  weightDecay: number
}

export const ADAMW_DEFAULTS: AdamWOptions = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 }

export interface AdamWState {
  firstMoments: Float32Array[]
  secondMoments: Float32Array[]
  updates: number
}

export class AdamW {
  readonly #parameters: readonly Float32Array[]
  readonly #options: AdamWOptions
  #state: AdamWState

  constructor(parameters: readonly Float32Array[], options: Partial<AdamWOptions> = {}) {
    this.#parameters = parameters
    this.#options = { ...ADAMW_DEFAULTS, ...options }
    this.#state = {
      firstMoments: parameters.map(({ length }) => new Float32Array(length)),
      secondMoments: parameters.map(({ length }) => new Float32Array(length)),
      updates: 0,
    }
  }

  /** Gradients stay as they are; `gradientScale` multiplies each first. `learningRate` is that of a rate of 1. */
  step(gradients: readonly Float32Array[], learningRate: number, gradientScale = 1): void {
    const { beta1, beta2, epsilon, weightDecay } = this.#options
    const updates = ++this.#state.updates
    const correction = 1 / Math.sqrt(1 - beta2 ** updates)
    for (let p = 0; p < this.#parameters.length; p++) {
      const rate = learningRate * (this.#options.rates?.[p] ?? 1)
      const stepSize = rate / (1 - beta1 ** updates)
      const keep = 1 - rate * weightDecay
      const parameter = this.#parameters[p]
      const gradient = gradients[p]
      const first = this.#state.firstMoments[p]
      const second = this.#state.secondMoments[p]
      for (let i = 0; i < parameter.length; i++) {
        const g = gradient[i] * gradientScale
        const m = first[i] + (g - first[i]) * (1 - beta1)
        const v = second[i] * beta2 + g * g * (1 - beta2)
        first[i] = m
        second[i] = v
        parameter[i] = parameter[i] * keep - (stepSize * m) / (Math.sqrt(v) * correction + epsilon)
      }
    }
  }

  get state(): AdamWState {
    return this.#state
  }

  set state(state: AdamWState) {
    for (const moments of [state.firstMoments, state.secondMoments]) {
      const lengths = moments.map(({ length }) => length)
      const expected = this.#parameters.map(({ length }) => length)
      if (`${lengths}` !== `${expected}`) {
        throw new ShapeError({ where: 'optimizer state', what: 'moments do not fit the parameters' })
      }
    }
    this.#state = state
  }
}

/** Euclidean norm over all gradients together, summed in f64; not finite if any value is not. */
export function gradientNorm(gradients: readonly Float32Array[]): number {
  let sum = 0
  for (const gradient of gradients) for (let i = 0; i < gradient.length; i++) sum += gradient[i] * gradient[i]
  return Math.sqrt(sum)
}

/** Added to the norm by torch.nn.utils.clip_grad_norm_. */
const NORM_EPSILON = 1e-6

/** A `maxNorm` of 0 turns clipping off. */
export function clipFactor(norm: number, maxNorm: number): number {
  return maxNorm === 0 ? 1 : Math.min(1, maxNorm / (norm + NORM_EPSILON))
}
