// ModernBERT.

import type { Config, HeadRows, ModelTypes } from './family.js'

function headOver(config: Config, rows: HeadRows) {
  const { classifier_activation: activation = 'gelu', classifier_bias, norm_bias, norm_eps } = config
  if (activation !== 'gelu') return undefined
  const epsilon = typeof norm_eps === 'number' ? norm_eps : 1e-5
  return {
    encoder: 'model',
    rows,
    layers: [
      { module: 'head.dense', hasBias: classifier_bias === true, activation: 'Gelu' as const },
      { module: 'head.norm', kind: 'norm' as const, hasBias: norm_bias === true, epsilon },
      { module: 'classifier' },
    ],
    modulesToSave: ['classifier', 'head'],
  }
}

function text(config: Config) {
  const { classifier_pooling: pooling = 'cls' } = config
  return pooling === 'cls' || pooling === 'mean' ? headOver(config, pooling === 'cls' ? 'first' : 'mean') : undefined
}

export const TYPES: ModelTypes = { modernbert: { heads: { text, token: (config) => headOver(config, 'all') } } }
