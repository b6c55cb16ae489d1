// Computes the initial values of A and B. Each layer draws from a separate stream that depends only on seed and name.

import { ConfigError, UnsupportedError } from '../../core/base/errors.js'
import { Random } from '../../core/base/random.js'
import { type FloatArray, type Matrix, zeros } from '../../core/base/tensor.js'
import { adviceOn } from '../../core/base/words.js'
import { copyAs, normals } from '../../core/linalg/product.js'
import { type LoraConfig, scalingOf } from '../config.js'
import type { FactorPair } from '../delta.js'
import { oloraFactors, orthogonalFactors, pissaFactors } from './decomposed.js'
import { STARTS } from './inits.js'

/**
 * Returns the initial factors in the precision of `like`, and `biasB` (d) if it does not start at zero. Throws
 * UnsupportedError if the init needs W (`base`) and it is not given.
 */
export function firstFactors(
  config: LoraConfig,
  name: string,
  [d, k]: readonly [number, number],
  like: FloatArray,
  base?: Matrix,
): FactorPair & { biasB?: FloatArray } {
  const { init, rank } = config
  const where = name === '' ? 'init' : `${name}: init`
  const random = new Random(config.seed, `init/${name}`)
  const fill = (rows: number, columns: number, draw: () => number) => {
    const matrix = zeros(rows, columns, like)
    for (let i = 0; i < matrix.data.length; i++) matrix.data[i] = draw()
    return matrix
  }
  const uniform = (bound: number) => () => (2 * random.uniform() - 1) * bound
  switch (init) {
    case 'normal': // Hu et al. 2021 do not say the scale. With this, ‖A·x‖ does not depend on r.
      return { weightA: fill(rank, k, () => random.normal() / Math.sqrt(rank)), weightB: zeros(d, rank, like) }
    case 'gaussian':
      return { weightA: fill(rank, k, () => random.normal() / rank), weightB: zeros(d, rank, like) }
    case 'random': {
      const weightA = fill(rank, k, uniform(1 / Math.sqrt(k)))
      const drawB = uniform(1 / Math.sqrt(rank))
      return { weightA, weightB: fill(d, rank, drawB), biasB: fill(1, d, drawB).data }
    }
    case 'kaiming-uniform':
      return { weightA: fill(rank, k, uniform(1 / Math.sqrt(k))), weightB: zeros(d, rank, like) }
    case 'orthogonal':
      return pairAs(drawnOrthogonal(rank, [d, k], random), like)
    case 'pissa':
    case 'olora':
      if (base !== undefined) return pairAs(takenFromBase(config, base), like)
      throw new UnsupportedError({
        where,
        what: `${init} starts from the base weight, which this layer does not have`,
      })
    default:
      throw new ConfigError({
        where,
        what: 'lowrank does not compute these initial values',
        expected: STARTS.join(', '),
        got: init,
        hint: adviceOn(init, ['init']),
      })
  }
}

function pairAs({ weightA, weightB }: FactorPair, like: FloatArray): FactorPair {
  return { weightA: copyAs(weightA, like), weightB: copyAs(weightB, like) }
}

function drawnOrthogonal(rank: number, [d, k]: readonly [number, number], random: Random): FactorPair {
  if (rank % 2 !== 0) {
    throw new ConfigError({
      where: 'rank',
      what: 'not valid for init orthogonal',
      expected: 'an even number',
      got: `${rank}`,
    })
  }
  const square = normals(random, rank, rank)
  const right = normals(random, k, rank / 2)
  const left = normals(random, rank / 2, d)
  return orthogonalFactors(square, right, left)
}

/** Returns B₀ and A₀ of pissa and olora in f64. They depend only on W. */
export function takenFromBase(config: LoraConfig, base: Matrix): FactorPair {
  const { init, rank } = config
  return init === 'olora' ? oloraFactors(base, rank) : pissaFactors(base, rank, scalingOf(config))
}
