// First values of A; B starts at zero, so that the first delta is the zero matrix. Each layer draws from its own stream,
// chosen by seed and name alone: neither other layers nor dropout can change it.

import { Random } from '../base/random.js'
import { type FloatArray, type Matrix, zeros } from '../base/tensor.js'
import type { Init, LoraConfig } from './config.js'

/** Draws one element of A, which is (r, k). */
const DRAWS: { readonly [K in Init]: (random: Random, rank: number, k: number) => number } = {
  /** N(0, variance 1/r): Hu et al. 2021 leave the scale open; this one keeps ‖A·x‖ free of r. */
  normal: (random, rank) => random.normal() / Math.sqrt(rank),
  /** U(±1/√k): PEFT's default, kaiming_uniform with a = √5. */
  'kaiming-uniform': (random, _rank, k) => (2 * random.uniform() - 1) / Math.sqrt(k),
  /** N(0, std 1/r): PEFT's `gaussian`. */
  gaussian: (random, rank) => random.normal() / rank,
}

/** A new A (r, k) in the precision of `like`. */
export function initialWeightA(config: LoraConfig, layerName: string, k: number, like: FloatArray): Matrix {
  const result = zeros(config.rank, k, like)
  const random = new Random(config.seed, `init/${layerName}`)
  const draw = DRAWS[config.init]
  for (let i = 0; i < result.data.length; i++) result.data[i] = draw(random, config.rank, k)
  return result
}
