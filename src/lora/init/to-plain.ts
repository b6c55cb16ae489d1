// Turns an adapter whose init changed the base weights into plain LoRA. The change of W is s·(B·A − B₀·A₀) = s·[B,
// −B₀]·[A; A₀], as in PEFT's conversion (LoraModel.subtract_mutated_init).

import { ConfigError, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { checkShape, formatShape, type MatrixLike, toMatrix, zeros } from '../../core/base/tensor.js'
import { beside, stacked } from '../../core/linalg/product.js'
import { LoraAdapter } from '../adapter.js'
import { configForLayer, type LoraConfig } from '../config.js'
import { type FactorPair, scaled } from '../delta.js'
import { checkRank, where } from '../factors.js'
import type { LoraLayer } from '../layer.js'
import { takenFromBase } from './initializers.js'
import { changesBase, isComputedFromBase } from './inits.js'

/** Returns a layer's original weight W (d, k), from before training, for its name and shape. */
export type BaseWeights = (name: string, shape: readonly [d: number, k: number]) => MatrixLike | Promise<MatrixLike>

/**
 * Returns an adapter of twice the rank that does to the original base what `adapter` does to the changed base. Alphas
 * double with the ranks, or grow by √2 with rsLoRA, so the scalings stay the same. `from` is the original weights, or
 * the adapter as it was before training.
 */
export async function toPlain(adapter: LoraAdapter, from: BaseWeights | LoraAdapter): Promise<LoraAdapter> {
  const { config } = adapter
  checkConvertible(adapter, from)
  const result = new LoraAdapter(plainConfig(config))
  result.labels = adapter.labels
  result.problemType = adapter.problemType
  for (const part of adapter.parts()) {
    const { name } = part
    if (part.kind === 'linear') {
      const { weightA, weightB, magnitude, biasB } = part
      const first = from instanceof LoraAdapter ? firstOf(from, part) : await takenFrom(from, part)
      // In PEFT, the initial factors can have a lower rank than the config. Zeros fill the difference.
      const missing = configForLayer(result.config, name).rank - 2 * part.rank
      const a = stacked([weightA, first.weightA, zeros(missing, part.k, weightA.data)])
      const b = beside([weightB, scaled(first.weightB, -1), zeros(part.d, missing, weightB.data)])
      result.addFactors(name, a, b, { magnitude, biasB })
    } else if (part.kind === 'embedding') {
      const { weightA, weightB, magnitude, dtype } = part
      // The init of an embedding changes no weight, so zeros fill up the doubled rank.
      const a = stacked([weightA, zeros(...weightA.shape, weightA.data)])
      const b = beside([weightB, zeros(...weightB.shape, weightB.data)])
      result.addEmbedding(name, a, b, { magnitude }).dtype = dtype
    } else result.addPart(part)
  }
  return result
}

function checkConvertible(adapter: LoraAdapter, from: BaseWeights | LoraAdapter): void {
  const { init } = adapter.config
  const [unsupported] = adapter.parts('convolution', 'parameter')
  if (unsupported !== undefined) {
    throw new UnsupportedError({
      where: unsupported.name,
      what: `a part of kind ${unsupported.kind} cannot be turned into plain LoRA`,
    })
  }
  if (from instanceof LoraAdapter || isComputedFromBase(init)) return
  if (!changesBase(init)) {
    throw new ConfigError({
      where: 'init',
      what: 'this adapter is plain LoRA already',
      got: init,
      hint: 'You can use it without conversion',
    })
  }
  throw new UnsupportedError({
    where: 'init',
    what: `the initial values of an adapter with init ${init} cannot be computed from the base weights`,
    expected: 'the adapter as it was before training (`initial`)',
  })
}

function plainConfig(config: LoraConfig): LoraConfig {
  const factor = config.useRslora ? Math.SQRT2 : 2
  const scaled = (pattern: Readonly<Record<string, number>>, by: number) =>
    Object.fromEntries(Object.entries(pattern).map(([key, value]) => [key, by * value]))
  return {
    ...config,
    init: 'kaiming-uniform',
    rank: 2 * config.rank,
    alpha: factor * config.alpha,
    rankPattern: scaled(config.rankPattern, 2),
    alphaPattern: scaled(config.alphaPattern, factor),
  }
}

async function takenFrom(weights: BaseWeights, { name, d, k, config }: LoraLayer): Promise<FactorPair> {
  const weight = toMatrix(await weights(name, [d, k]), where(name, 'baseWeight'))
  checkShape(weight, d, k, where(name, 'baseWeight'))
  checkRank(weight.shape, config, name)
  return takenFromBase(config, weight)
}

function firstOf(start: LoraAdapter, { name, weightA, weightB, scaling }: LoraLayer): FactorPair {
  const first = start.layer(name)
  const shapes = ({ weightA: a, weightB: b }: FactorPair) => `A ${formatShape(a.shape)}, B ${formatShape(b.shape)}`
  const got = `${shapes(first)}, scaling ${first.scaling}`
  const expected = `${shapes({ weightA, weightB })}, scaling ${scaling}`
  if (got === expected) return first
  throw new MismatchError({ where: name, what: 'not the layer as it was before training', expected, got })
}
