// What a layer is made from: factors that were trained or drawn, and vectors that go with them.

import { ConfigError, NumericError, ShapeError } from '../base/errors.js'
import { type FloatArray, formatShape, type Matrix, zeros } from '../base/tensor.js'
import type { LoraConfig } from './config.js'
import { initialWeightA } from './initializers.js'

/** What some layers have besides A and B: one number per output feature each. */
export interface LayerVectors {
  /** DoRA's m (d), which useDora asks for. */
  magnitude?: FloatArray | readonly number[] | undefined
  /** The bias of B (d), which loraBias asks for. */
  biasB?: FloatArray | readonly number[] | undefined
}

/** A layer to be, without a base weight. */
export class Factors {
  constructor(
    readonly weightA: Matrix,
    readonly weightB: Matrix,
    readonly isNew: boolean,
    readonly vectors: LayerVectors = {},
  ) {}
}

/**
 * A drawn from the seed and the name, B zero.
 *
 * @throws ConfigError when the rank is above min(d, k)
 */
export function initialFactors(
  shape: readonly [number, number],
  config: LoraConfig,
  name: string,
  like: FloatArray,
): Factors {
  const [d, k] = shape
  if (!Number.isSafeInteger(d) || !Number.isSafeInteger(k) || d < 0 || k < 0) {
    throw new ShapeError({
      where: where(name, 'shape'),
      what: 'not a shape',
      expected: '(d, k)',
      got: formatShape(shape),
    })
  }
  const maximum = Math.min(d, k)
  if (config.rank > maximum) {
    throw new ConfigError({
      where: name === '' ? 'LoraLayer' : name,
      what: `the rank is above min(d, k) of a weight ${formatShape(shape)}`,
      expected: `at most ${maximum}`,
      got: `${config.rank}`,
    })
  }
  return new Factors(initialWeightA(config, name, k, like), zeros(d, config.rank, like), true)
}

/**
 * Copies in the factors' precision.
 *
 * @throws ConfigError when one is there and the config has none, or the other way round; ShapeError unless it is (d)
 */
export function layerVectors(
  { weightA, weightB, vectors }: Factors,
  { useDora, loraBias }: LoraConfig,
  name: string,
): { magnitude: FloatArray | undefined; biasB: FloatArray | undefined } {
  const copyOf = (member: keyof LayerVectors, setting: keyof LoraConfig, isWanted: boolean) => {
    const value = vectors[member]
    if ((value !== undefined) !== isWanted) {
      throw new ConfigError({
        where: where(name, member),
        what: isWanted ? `missing, although ${setting} is on` : `only goes with ${setting}`,
      })
    }
    if (value === undefined) return undefined
    const d = weightB.shape[0]
    if (value.length === d) return copyVector(value, weightA.data)
    throw new ShapeError({
      where: where(name, member),
      what: 'wrong shape',
      expected: formatShape([d]),
      got: formatShape([value.length]),
    })
  }
  return { magnitude: copyOf('magnitude', 'useDora', useDora), biasB: copyOf('biasB', 'loraBias', loraBias) }
}

/** A copy in the precision of `like`. */
export function copyVector(values: FloatArray | readonly number[], like: FloatArray): FloatArray {
  return like instanceof Float64Array ? Float64Array.from(values) : Float32Array.from(values)
}

/** A member of a layer, for messages. */
export function where(name: string, member: string): string {
  return name === '' ? `LoraLayer.${member}` : `${name}.${member}`
}

export function notFinite(location: string): NumericError {
  return new NumericError({ where: location, what: 'holds a value that is not finite' })
}
