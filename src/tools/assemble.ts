// New adapters, as mergekit and PEFT write them: each layer has its own rank, and alpha = rank.

import { LoraAdapter } from '../lora/adapter.js'
import { configForLayer, type LoraConfig, resolveConfig } from '../lora/config.js'
import { padded } from '../lora/delta.js'
import type { PartValues } from '../lora/part.js'
import { type Change, changedPart, configRank, type PartShell } from './factor-parts.js'

export interface NewLayer {
  readonly part: PartShell
  readonly change: Change
}

export interface UniformRank {
  readonly rank: number
  readonly useRslora: boolean
}

/** The settings of `config` stay but for those of rank and training. `layers` is empty afterwards, to free memory. */
export function assemble(
  config: LoraConfig,
  layers: NewLayer[],
  values: readonly PartValues[],
  uniform?: UniformRank,
): LoraAdapter {
  const ranks = new Map(layers.map((layer) => [layer.part.name, rankOf(layer)]))
  const own = uniform === undefined ? configOf(config, ranks) : uniformConfig(config, uniform)
  const adapter = new LoraAdapter(own)
  layers.reverse()
  for (let layer = layers.pop(); layer !== undefined; layer = layers.pop()) {
    const { part, change } = layer
    const rank = configForLayer(own, part.name).rank / configRank(part, 1, change.pairs.length)
    adapter.addPart(changedPart(part, { ...change, pairs: change.pairs.map((pair) => padded(pair, rank)) }))
  }
  for (const part of values) adapter.addPart(part)
  return adapter
}

function rankOf({ part, change: { pairs } }: NewLayer): number {
  return configRank(part, pairs[0].weightA.shape[0], pairs.length)
}

function configOf(config: LoraConfig, ranks: ReadonlyMap<string, number>): LoraConfig {
  const rank = mostFrequent([...ranks.values()]) ?? config.rank
  const pattern = Object.fromEntries([...ranks].filter(([, own]) => own !== rank).sort(([a], [b]) => (a < b ? -1 : 1)))
  const own = resolveConfig({ ...plain(config), rank, alpha: rank, rankPattern: pattern, alphaPattern: pattern })
  // A pattern is for the end of a name, and names can end alike: then all layers get the largest rank, with zeros.
  if ([...ranks].every(([name, wanted]) => configForLayer(own, name).rank === wanted)) return own
  return uniformConfig(config, { rank: Math.max(...ranks.values()), useRslora: false })
}

function uniformConfig(config: LoraConfig, { rank, useRslora }: UniformRank): LoraConfig {
  return resolveConfig({ ...plain(config), useRslora, rank, alpha: rank, rankPattern: {}, alphaPattern: {} })
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
