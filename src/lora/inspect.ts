// What an adapter holds, in numbers: for `lowrank inspect` and for anyone who wants to know before merging.

import type { FloatDtype } from '../base/dtype.js'
import type { SafetensorsDtype } from '../formats/safetensors.js'
import type { LoraAdapter } from './adapter.js'
import type { LoraConfig } from './config.js'
import type { ConvolutionLora } from './convolution.js'
import { EmbeddingLora } from './embedding.js'
import { ExpertLora } from './experts.js'
import { LoraLayer } from './layer.js'
import { PatternTable } from './patterns.js'

export interface LayerReport {
  name: string
  kind: 'linear' | 'embedding' | 'convolution' | 'parameter'
  /** Rows of B: features out; of an embedding, its features. */
  d: number
  /** Columns of A: features in; of an embedding, its vocabulary; of a convolution, channels in times the kernel's elements. */
  k: number
  rank: number
  /** How many matrices (d, k) a parameter holds; absent for the other kinds. */
  experts?: number
  alpha: number
  scaling: number
  dtype: FloatDtype
  /** Frobenius norms of A, B and s·B·A. */
  normA: number
  normB: number
  normDelta: number
  /** It has a DoRA magnitude. */
  hasMagnitude: boolean
  /** B has a bias. */
  hasBias: boolean
}

/** A tensor that takes the place of the base's, whole or in rows. */
export interface ReplacementReport {
  /** The base's tensor. */
  name: string
  dtype: SafetensorsDtype
  shape: readonly number[]
  /** How many rows of the base's tensor it replaces; absent for a whole tensor. */
  rows?: number
}

export interface AdapterReport {
  config: LoraConfig
  trainableParams: number
  layers: LayerReport[]
  replacements: ReplacementReport[]
  /** One sentence each, for people. */
  warnings: string[]
}

/** α is usually between r/2 and 4·r; a scaling this far from 1 is more often a mistake than a choice. */
const UNUSUAL_SCALING = 16

export function inspectAdapter(adapter: LoraAdapter): AdapterReport {
  const layers = [...adapter, ...adapter.embeddings, ...adapter.convolutions, ...adapter.experts].map(
    ([name, layer]): LayerReport => ({
      name,
      kind: kindOf(layer),
      d: layer.weightB.shape[0],
      k: layer instanceof EmbeddingLora ? layer.vocabulary : layer.k,
      rank: layer.rank,
      ...(layer instanceof ExpertLora && { experts: layer.experts }),
      alpha: layer.config.alpha,
      scaling: layer.scaling,
      dtype: layer.dtype,
      normA: layer.normA(),
      normB: layer.normB(),
      normDelta: layer.normDelta(),
      hasMagnitude: !(layer instanceof ExpertLora) && layer.magnitude !== undefined,
      hasBias: 'biasB' in layer && layer.biasB !== undefined,
    }),
  )
  return {
    config: adapter.config,
    trainableParams: adapter.totalTrainableParams(),
    layers,
    replacements: [
      ...[...adapter.replacements].map(([name, { dtype, shape }]) => ({ name, dtype, shape })),
      ...[...adapter.tokenRows].map(([name, { dtype, shape, indices }]) => {
        return { name: `${name}.weight`, dtype, shape, rows: indices.length }
      }),
    ],
    warnings: warningsOf(layers, adapter.config),
  }
}

function kindOf(layer: LoraLayer | EmbeddingLora | ConvolutionLora | ExpertLora): LayerReport['kind'] {
  if (layer instanceof LoraLayer) return 'linear'
  if (layer instanceof EmbeddingLora) return 'embedding'
  return layer instanceof ExpertLora ? 'parameter' : 'convolution'
}

function warningsOf(layers: readonly LayerReport[], config: LoraConfig): string[] {
  const warnings: string[] = []
  const warn = (affected: readonly LayerReport[], what: string) => {
    if (affected.length > 0) warnings.push(`${count(affected, layers)}: ${what}`)
  }
  warn(
    layers.filter(({ normA, normB, hasMagnitude, hasBias }) => {
      return (normA === 0 || normB === 0) && !hasMagnitude && !hasBias
    }),
    'A or B is all zero, so the layer changes nothing',
  )
  warn(
    layers.filter(({ rank, d, k }) => rank > Math.min(d, k)),
    'the rank is above min(d, k), which B·A cannot use',
  )
  warn(
    layers.filter(({ scaling }) => scaling > UNUSUAL_SCALING || scaling < 1 / UNUSUAL_SCALING),
    `the scaling is unusual (${[...new Set(layers.map(({ scaling }) => scaling))].slice(0, 3).join(', ')})`,
  )
  for (const field of ['rankPattern', 'alphaPattern'] as const) {
    for (const [key, value] of Object.entries(config[field])) {
      const table = new PatternTable({ [key]: value }, field)
      if (!layers.some(({ name }) => table.find(name) !== undefined)) warnings.push(`${field} ${key} matches no layer`)
    }
  }
  return warnings
}

function count(affected: readonly LayerReport[], all: readonly LayerReport[]): string {
  if (affected.length === all.length) return all.length === 1 ? affected[0].name : `All ${all.length} layers`
  const names = affected.slice(0, 3).map(({ name }) => name)
  return names.join(', ') + (affected.length > 3 ? ` and ${affected.length - 3} more` : '')
}
