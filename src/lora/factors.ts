// Makes and checks the values that a layer is constructed from.

import { ConfigError, ShapeError, StateError, UnsupportedError } from '../core/base/errors.js'
import { checkArgument, describe, OBJECT } from '../core/base/options.js'
import { type FloatArray, formatShape, type Matrix, type MatrixLike, toMatrix } from '../core/base/tensor.js'
import { copyAs } from '../core/linalg/product.js'
import { configForShape, type LoraConfig, scalingOf } from './config.js'
import { addDelta, rowNorms } from './delta.js'
import { firstFactors, takenFromBase } from './init/initializers.js'
import { changesBase, isComputedFromBase, takesFromBase } from './init/inits.js'

/** Vectors that some layers have besides A and B, each with a number per output feature. */
export interface LayerVectors {
  /** DoRA's magnitude m (d). Required if the config has useDora. */
  magnitude?: FloatArray | readonly number[] | undefined
  /** The bias of B (d). Required if the config has loraBias. */
  biasB?: FloatArray | readonly number[] | undefined
}

/** Everything that a layer is made from. It is a class so that the layer's constructor can tell it from a weight. */
export class Factors {
  constructor(
    /** (r, k) */
    readonly weightA: Matrix,
    /** (d, r) */
    readonly weightB: Matrix,
    /** True if the layer is about to be trained. False for factors that have been trained. */
    readonly isNew: boolean,
    readonly vectors: LayerVectors = {},
    /** (d, k) */
    readonly baseWeight?: Matrix,
  ) {}
}

/** Makes new factors, in f32, for a weight (d, k) that is not loaded. */
export function factorsOfShape(shape: readonly [number, number], config: LoraConfig, name: string): Factors {
  if (config.useDora || config.loraBias) {
    throw new UnsupportedError({
      where: where(name, config.useDora ? 'useDora' : 'loraBias'),
      what: 'a new layer of this kind needs its base weight',
    })
  }
  checkRank(shape, config, name)
  const { weightA, weightB } = firstFactors(config, name, shape, new Float32Array())
  return new Factors(weightA, weightB, true)
}

/** Makes new factors and a copy of W (d, k), from which s·B·A is subtracted if the init moves a part of W there. */
export function factorsOver(weight: MatrixLike, config: LoraConfig, name: string): Factors {
  const matrix = toMatrix(weight, where(name, 'baseWeight'))
  const base = copyAs(matrix, matrix.data)
  const fittingConfig = configForShape(config, base.shape)
  checkRank(base.shape, fittingConfig, name)
  const { weightA, weightB, biasB } = firstFactors(fittingConfig, name, base.shape, base.data, base)
  const vectors: LayerVectors = {
    magnitude: config.useDora ? rowNorms(base) : undefined,
    biasB: config.loraBias ? (biasB ?? new Float32Array(base.shape[0])) : undefined,
  }
  if (takesFromBase(config.init)) addDelta(base, { weightA, weightB }, -scalingOf(fittingConfig))
  return new Factors(weightA, weightB, true, vectors, base)
}

/**
 * Returns W − s·B₀·A₀ if the init subtracts it, else W itself. Throws UnsupportedError if B₀·A₀ cannot be computed from
 * W alone (pissa-niter-N, lora-ga, corda).
 */
export function startingBase(weight: Matrix, config: LoraConfig, name: string): Matrix {
  if (!changesBase(config.init)) return weight
  if (!isComputedFromBase(config.init)) {
    throw new UnsupportedError({
      where: where(name, 'attachBase'),
      what: `init ${config.init} changed the weights with data or draws that the adapter does not contain`,
      hint: 'Assign the changed weight to baseWeight, or convert the adapter with the one that it started from',
    })
  }
  checkRank(weight.shape, config, name)
  const base = copyAs(weight, weight.data)
  const { weightA, weightB } = takenFromBase(config, base)
  const pair = { weightA: copyAs(weightA, base.data), weightB: copyAs(weightB, base.data) }
  return addDelta(base, pair, -scalingOf(config))
}

export function checkRank(shape: readonly [number, number], { rank }: LoraConfig, name: string): void {
  const [d, k] = Array.isArray(shape) ? (shape as readonly [number, number]) : [-1, -1]
  if (!Number.isSafeInteger(d) || !Number.isSafeInteger(k) || d < 0 || k < 0) {
    throw new ShapeError({ where: where(name, 'shape'), what: 'not a shape', expected: '[d, k]', got: describe(shape) })
  }
  const maximum = Math.min(d, k)
  if (rank > maximum) {
    throw new ConfigError({
      where: name === '' ? 'LoraLayer' : name,
      what: `the rank is too high for a weight of shape ${formatShape(shape)}`,
      expected: `at most ${maximum}`,
      got: `${rank}`,
    })
  }
}

/**
 * Copies a layer's vectors in the precision of its factors. Throws ConfigError if the config asks for other vectors.
 */
export function layerVectors(
  { weightA, weightB, vectors }: Factors,
  { useDora, loraBias }: LoraConfig,
  name: string,
): { magnitude: FloatArray | undefined; biasB: FloatArray | undefined } {
  checkArgument(vectors, OBJECT, where(name, 'vectors'))
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

export function copyVector(values: FloatArray | readonly number[], like: FloatArray): FloatArray {
  return like instanceof Float64Array ? new Float64Array(values) : new Float32Array(values)
}

/** Returns the place for an error message. If the layer has no name, the class `owner` is named instead. */
export function where(name: string, member: string, owner = 'LoraLayer'): string {
  return `${String(name || owner)}.${member}`
}

export function noForward(location: string, isMerged: boolean): StateError {
  return new StateError({
    where: location,
    what: isMerged ? 'not while merged' : 'there was no forward() whose gradient can be computed',
    hint: isMerged
      ? 'Call unmerge() and forward() first'
      : 'Call forward() before backward(), and change no weight between them',
  })
}
