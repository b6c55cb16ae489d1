// Builds an adapter from the layers of another format: factors and a scaling for each layer.

import type { FloatDtype } from '../base/dtype.js'
import { FormatError, ShapeError } from '../base/errors.js'
import { type FloatArray, formatShape, type Matrix } from '../base/tensor.js'
import { LoraAdapter } from '../lora/adapter.js'
import { configForLayer, type LoraConfigInput, resolveConfig } from '../lora/config.js'
import { padded, scaled } from '../lora/delta.js'

export interface ReadLayer {
  readonly name: string
  readonly kind: 'linear' | 'embedding'
  /** A (r, k), or (r, V) for an embedding. */
  readonly weightA: Matrix
  /** B (d, r), or (D, r) for an embedding. */
  readonly weightB: Matrix
  /** s, by which B·A is multiplied. */
  readonly scaling: number
  /** DoRA's m (d). */
  readonly magnitude?: FloatArray | undefined
  readonly dtype: FloatDtype
}

export function pairedLayer(
  layer: Omit<ReadLayer, 'weightA' | 'weightB'>,
  { a, b }: { readonly a: Matrix | undefined; readonly b: Matrix | undefined },
  file: string,
): ReadLayer {
  const where = `${file}: ${layer.name}`
  if (a === undefined || b === undefined) {
    throw new FormatError({ where, what: `half a pair: no factor ${a === undefined ? 'A' : 'B'}` })
  }
  if (a.shape[0] === b.shape[1]) return { ...layer, weightA: a, weightB: b }
  const got = `${formatShape(a.shape)}, ${formatShape(b.shape)}`
  throw new ShapeError({ where, what: 'factors that do not fit each other', got })
}

/** Builds the adapter. Scalings become alphas; if PEFT's patterns cannot express them, they are multiplied into B. */
export function adapterOf(layers: readonly ReadLayer[], config: LoraConfigInput): LoraAdapter {
  const [{ weightA, scaling }] = layers
  const rank = weightA.shape[0]
  const alphaOf = (layer: ReadLayer) => layer.scaling * layer.weightA.shape[0]
  const patterns = (of: (layer: ReadLayer) => number, standard: number) =>
    Object.fromEntries(layers.flatMap((layer) => (of(layer) === standard ? [] : [[layer.name, of(layer)]])))
  const names = layers.map(({ name }) => name)
  const byLayer = resolveConfig({
    ...config,
    init: 'kaiming-uniform',
    rank,
    alpha: scaling * rank,
    // The last parts of the names. Saving writes full names if these would match other layers too.
    targetModules: [...new Set(names.map((name) => name.slice(name.lastIndexOf('.') + 1)))].sort(),
    rankPattern: patterns(({ weightA: a }) => a.shape[0], rank),
    alphaPattern: patterns(alphaOf, scaling * rank),
    useDora: layers.some(({ magnitude }) => magnitude !== undefined),
  })
  const isSaid = layers.every((layer) => {
    const given = configForLayer(byLayer, layer.name)
    return given.rank === layer.weightA.shape[0] && given.alpha === alphaOf(layer)
  })
  const most = Math.max(...layers.map(({ weightA: a }) => a.shape[0]))
  const uniform = resolveConfig({ ...byLayer, rank: most, alpha: most, rankPattern: {}, alphaPattern: {} })
  const adapter = new LoraAdapter(isSaid ? byLayer : uniform)
  for (const layer of layers) {
    const { name, kind, magnitude } = layer
    const scaledB = { weightA: layer.weightA, weightB: scaled(layer.weightB, layer.scaling) }
    const { weightA: a, weightB: b } = isSaid ? layer : padded(scaledB, most)
    const vector = magnitude && { data: magnitude, shape: [magnitude.length] }
    const tensors = { weightA: a, weightB: b, magnitude: vector }
    adapter.addPart({ kind, name, module: name, config: adapter.config, tensors, dtype: layer.dtype })
  }
  return adapter
}
