// Parts of an adapter as pairs of factors: one pair for a linear layer or an embedding, one for each group of a
// convolution, and one for each expert. Tools that change ranks work on these pairs and then assemble an adapter, as
// mergekit and PEFT do: each layer has its own rank, and alpha = rank.

import type { FloatArray, Shaped, Tensor } from '../../core/base/tensor.js'
import { beside, normOfProduct, stacked } from '../../core/linalg/product.js'
import { type AdapterPart, LoraAdapter, type PartOfKind } from '../../lora/adapter.js'
import { configForLayer, type LoraConfig, resolveConfig } from '../../lora/config.js'
import { type FactorPair, padded, scaled } from '../../lora/delta.js'
import type { LayerVectors } from '../../lora/factors.js'
import { besideByExpert } from '../../lora/kinds/experts.js'
import type { PartValues } from '../../lora/part.js'
import { factorPairs } from '../../lora/spectrum.js'

export interface NewLayer {
  readonly part: PartShell
  readonly change: Change
}

/** Assembles an adapter with all settings of `config` except rank and training. Empties `layers` to free memory. */
export function assemble(config: LoraConfig, layers: NewLayer[], values: readonly PartValues[]): LoraAdapter {
  const ranks = new Map(
    layers.map(({ part, change: { pairs } }) => [part.name, configRank(part, pairs[0].weightA.shape[0], pairs.length)]),
  )
  const resultConfig = configOf(config, ranks)
  const adapter = new LoraAdapter(resultConfig)
  layers.reverse()
  for (let layer = layers.pop(); layer !== undefined; layer = layers.pop()) {
    const { part, change } = layer
    const rank = configForLayer(resultConfig, part.name).rank / configRank(part, 1, change.pairs.length)
    adapter.addPart(changedPart(part, { ...change, pairs: change.pairs.map((pair) => padded(pair, rank)) }))
  }
  for (const part of values) adapter.addPart(part)
  return adapter
}

function configOf(config: LoraConfig, ranks: ReadonlyMap<string, number>): LoraConfig {
  const rank = mostFrequent([...ranks.values()]) ?? config.rank
  const pattern = Object.fromEntries(
    [...ranks].filter(([, layerRank]) => layerRank !== rank).sort(([a], [b]) => (a < b ? -1 : 1)),
  )
  const patterned = resolveConfig({ ...plain(config), rank, alpha: rank, rankPattern: pattern, alphaPattern: pattern })
  // A pattern matches the end of a name. If names end alike, all layers get the largest rank, filled with zeros.
  if ([...ranks].every(([name, wanted]) => configForLayer(patterned, name).rank === wanted)) return patterned
  const highest = Math.max(...ranks.values())
  return resolveConfig({ ...plain(config), rank: highest, alpha: highest, rankPattern: {}, alphaPattern: {} })
}

function plain(config: LoraConfig): LoraConfig {
  return { ...config, init: 'kaiming-uniform', useRslora: false, dropout: 0 }
}

function mostFrequent(values: readonly number[]): number | undefined {
  const counts = new Map<number, number>()
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1)
  const sorted = [...counts].sort(([a, x], [b, y]) => y - x || a - b)
  return sorted[0]?.[0]
}

export type FactorPart = PartOfKind<'linear' | 'embedding' | 'convolution' | 'parameter'>

export function isFactorPart(part: AdapterPart): part is FactorPart {
  return part.kind !== 'replacement' && part.kind !== 'token-rows'
}

export interface PartShell extends Pick<FactorPart, 'kind' | 'name' | 'dtype'> {
  readonly tensors: { readonly weightA: Shaped; readonly weightB: Shaped }
}

export function shellOf({ kind, name, dtype, tensors }: FactorPart): PartShell {
  const { weightA, weightB } = tensors
  return { kind, name, dtype, tensors: { weightA: { shape: weightA.shape }, weightB: { shape: weightB.shape } } }
}

/** The change of a part's weight: Δ = B·A for each pair. B includes the scaling. */
export interface Change {
  /** B (d, r) and A (r, k) of each matrix that the part changes. All pairs have the same rank. */
  readonly pairs: readonly FactorPair[]
  /** DoRA's m, and the bias of B times the scaling. */
  readonly vectors: LayerVectors
}

export function changeOf(part: FactorPart): Change {
  const { weightA, weightB } = part.tensors
  const pairs = factorPairs(weightA, weightB, part.kind === 'parameter' ? part.experts : undefined)
  const { scaling } = part
  const vectors: LayerVectors = 'magnitude' in part && part.magnitude !== undefined ? { magnitude: part.magnitude } : {}
  const biasB = 'biasB' in part ? part.biasB : undefined
  if (biasB !== undefined) vectors.biasB = Float32Array.from(biasB, (value) => scaling * value)
  return { pairs: pairs.map(({ weightA: a, weightB: b }) => ({ weightA: a, weightB: scaled(b, scaling) })), vectors }
}

export function differencePair(minuend: FactorPair, subtrahend: FactorPair): FactorPair {
  return {
    weightA: stacked([subtrahend.weightA, minuend.weightA]),
    weightB: beside([subtrahend.weightB, scaled(minuend.weightB, -1)]),
  }
}

export function normOf(pairs: readonly FactorPair[]): number {
  return Math.hypot(...pairs.map(({ weightA, weightB }) => normOfProduct(weightB, weightA)))
}

/** A rank as the config counts it: the rows of A, or of each expert's A. */
export function configRank(part: Pick<FactorPart, 'kind'>, rank: number, pairs: number): number {
  return part.kind === 'convolution' ? rank * pairs : rank
}

function changedPart({ kind, name, dtype, tensors }: PartShell, { pairs, vectors }: Change): PartValues {
  const [first] = pairs
  const isConvolution = kind === 'convolution'
  const isMany = isConvolution || kind === 'parameter'
  const a = isMany ? stacked(pairs.map(({ weightA }) => weightA)) : first.weightA
  const b = isConvolution
    ? stacked(pairs.map(({ weightB }) => weightB))
    : kind === 'parameter'
      ? besideByExpert(pairs.map(({ weightB }) => weightB))
      : first.weightB
  const vector = (data: ArrayLike<number> | undefined) => {
    return data && { data: data instanceof Float64Array ? data : Float32Array.from(data), shape: [data.length] }
  }
  const [shapeA, shapeB] = [tensors.weightA.shape.slice(1), tensors.weightB.shape.slice(2)]
  const weightA: Tensor<FloatArray> = isConvolution ? { ...a, shape: [a.shape[0], ...shapeA] } : a
  const weightB: Tensor<FloatArray> = isConvolution ? { ...b, shape: [...b.shape, ...shapeB] } : b
  return {
    ...{ kind, name, module: name, dtype },
    tensors: { weightA, weightB, magnitude: vector(vectors.magnitude), biasB: vector(vectors.biasB) },
  } as PartValues
}
