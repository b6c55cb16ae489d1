// What a layer is made from: factors that were trained or drawn, and vectors that go with them.

import { ConfigError, NumericError, ShapeError, UnsupportedError } from '../base/errors.js'
import { type FloatArray, formatShape, type Matrix, type MatrixLike, toMatrix } from '../base/tensor.js'
import { type LoraConfig, scalingOf } from './config.js'
import { rowNorms } from './dora.js'
import { firstFactors, takenFromBase } from './initializers.js'
import { changesBase, takesFromBase } from './inits.js'
import { copyAs, product } from './product.js'

/** What some layers have besides A and B: one number per output feature each. */
export interface LayerVectors {
  /** DoRA's m (d), which useDora asks for. */
  magnitude?: FloatArray | readonly number[] | undefined
  /** The bias of B (d), which loraBias asks for. */
  biasB?: FloatArray | readonly number[] | undefined
}

/** A layer to be. */
export class Factors {
  constructor(
    readonly weightA: Matrix,
    readonly weightB: Matrix,
    readonly isNew: boolean,
    readonly vectors: LayerVectors = {},
    readonly baseWeight?: Matrix,
  ) {}
}

/**
 * For a weight that stays where it is.
 *
 * @throws ConfigError when the rank is above min(d, k), UnsupportedError when what the config asks for needs the weight
 */
export function factorsOfShape(
  shape: readonly [number, number],
  config: LoraConfig,
  name: string,
  like: FloatArray,
): Factors {
  if (config.useDora || config.loraBias) {
    throw new UnsupportedError({
      where: where(name, config.useDora ? 'useDora' : 'loraBias'),
      what: 'a new layer of this kind needs its base weight',
    })
  }
  checkRank(shape, config, name)
  const { weightA, weightB } = firstFactors(config, name, shape, like)
  return new Factors(weightA, weightB, true)
}

/** Over a copy of W (d, k), less what its initialisation takes into B·A. Throws as {@link factorsOfShape}. */
export function factorsOver(weight: MatrixLike, config: LoraConfig, name: string): Factors {
  const matrix = toMatrix(weight, where(name, 'baseWeight'))
  const base = copyAs(matrix, matrix.data)
  checkRank(base.shape, config, name)
  const { weightA, weightB, biasB } = firstFactors(config, name, base.shape, base.data, base)
  const vectors: LayerVectors = {
    magnitude: config.useDora ? rowNorms(base) : undefined,
    biasB: config.loraBias ? (biasB ?? new Float32Array(base.shape[0])) : undefined,
  }
  if (takesFromBase(config.init)) subtractProduct(base, weightB, weightA, config)
  return new Factors(weightA, weightB, true, vectors, base)
}

/** W − s·B₀·A₀ where the initialisation takes that from W, else W itself. Throws as {@link LoraLayer.attachBase}. */
export function startingBase(weight: Matrix, config: LoraConfig, name: string): Matrix {
  if (!changesBase(config.init)) return weight
  if (!takesFromBase(config.init)) {
    throw new UnsupportedError({
      where: where(name, 'attachBase'),
      what: `init ${config.init} changed the weights by data that the adapter does not hold`,
      hint: 'Assign the changed weight to baseWeight, or convert the adapter with the one that it started from',
    })
  }
  checkRank(weight.shape, config, name)
  const base = copyAs(weight, weight.data)
  const { weightA, weightB } = takenFromBase(config, name, base)
  subtractProduct(base, copyAs(weightB, base.data), copyAs(weightA, base.data), config)
  return base
}

/** base −= s·B·A, in place. */
export function subtractProduct(base: Matrix, weightB: Matrix, weightA: Matrix, config: LoraConfig): void {
  const { rank, alpha, useRslora } = config
  product(weightB, weightA, { scale: -scalingOf(rank, alpha, useRslora), addTo: base })
}

/** @throws ShapeError when it is no shape, ConfigError when the rank is above min(d, k) */
export function checkRank(shape: readonly [number, number], { rank }: LoraConfig, name: string): void {
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
  if (rank > maximum) {
    throw new ConfigError({
      where: name === '' ? 'LoraLayer' : name,
      what: `the rank is above min(d, k) of a weight ${formatShape(shape)}`,
      expected: `at most ${maximum}`,
      got: `${rank}`,
    })
  }
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
  return like instanceof Float64Array ? new Float64Array(values) : new Float32Array(values)
}

/** A member of a layer, for messages. */
export function where(name: string, member: string): string {
  return name === '' ? `LoraLayer.${member}` : `${name}.${member}`
}

export function notFinite(location: string): NumericError {
  return new NumericError({ where: location, what: 'holds a value that is not finite' })
}
