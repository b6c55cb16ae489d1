// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on flat arrays, as torch.optim.AdamW computes it, and clipping
// by the global gradient norm (Pascanu et al. 2013, arXiv 1211.5063).

/** The defaults of PyTorch and transformers. */
export const ADAMW = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }

export interface AdamWOptions {
  /** Factors of the learning rate, one for each parameter. Default: 1 for all. */
  rates?: readonly number[]
  /** Decoupled: each step multiplies a parameter by 1 − learningRate·weightDecay. */
  weightDecay: number
}

export interface AdamWState {
  parameters: Float32Array[]
  firstMoments: Float32Array[]
  secondMoments: Float32Array[]
  updates: number
}

/** Changes the state in place. Gradients stay as they are; `gradientScale` multiplies each first. */
export function stepAdamW(
  state: AdamWState,
  gradients: readonly Float32Array[],
  learningRate: number,
  { rates, weightDecay }: AdamWOptions,
  gradientScale = 1,
): void {
  const { beta1, beta2, epsilon } = ADAMW
  const updates = ++state.updates
  const correction = 1 / Math.sqrt(1 - beta2 ** updates)
  for (const [p, parameter] of state.parameters.entries()) {
    const rate = learningRate * (rates?.[p] ?? 1)
    const stepSize = rate / (1 - beta1 ** updates)
    const keep = 1 - rate * weightDecay
    const gradient = gradients[p]
    const first = state.firstMoments[p]
    const second = state.secondMoments[p]
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
