// Made by scripts/generate/options.mjs from the types. Do not edit.

import type { TrainConfig } from '../options.js'
import { type OptionTable, ranged, anyOf, listOf, NAME, BOOLEAN, STRING, oneOf, OBJECT } from '../../base/options.js'
import { INIT, MODULES, LAYERS, RANKS, ALPHAS, SHORT_LIST, REPLICATION, TOKEN_INDICES, INVOCATION } from '../../lora/config-kinds.js'
import type { TrainSettings } from '../settings.js'

export const TRAIN_CONFIG: OptionTable<TrainConfig> = {
  rank: ranged('an integer of at least 1'),
  alpha: ranged('a finite number above 0'),
  dropout: ranged('a number in [0, 1)'),
  targetModules: anyOf(listOf(NAME), NAME),
  init: INIT,
  seed: ranged('a safe integer'),
  excludeModules: MODULES,
  layersToTransform: LAYERS,
  layersPattern: MODULES,
  rankPattern: RANKS,
  alphaPattern: ALPHAS,
  useRslora: BOOLEAN,
  fanInFanOut: BOOLEAN,
  baseModel: STRING,
  taskType: STRING,
  useDora: BOOLEAN,
  loraBias: BOOLEAN,
  bias: oneOf('none', 'all', 'lora_only'),
  modulesToSave: SHORT_LIST,
  targetParameters: SHORT_LIST,
  layerReplication: REPLICATION,
  ensureWeightTying: BOOLEAN,
  trainableTokenIndices: TOKEN_INDICES,
  aloraInvocationTokens: INVOCATION,
  peftFields: OBJECT,
}

export const TRAIN_CONFIG_DEFAULTS = {
  rank: 8,
  alpha: 16,
  dropout: 0,
  targetModules: 'all-linear',
  init: 'kaiming-uniform',
  seed: 42,
} as const satisfies Partial<TrainConfig>

export const TRAIN_SETTINGS: OptionTable<TrainSettings> = {
  epochs: ranged('an integer of at least 1'),
  maxSteps: ranged('an integer of at least 1'),
  batchSize: ranged('an integer of at least 1'),
  gradientAccumulation: ranged('an integer of at least 1'),
  maxLength: ranged('an integer of at least 2'),
  learningRate: ranged('a number in (0, 10]'),
  schedule: oneOf('cosine', 'linear', 'constant'),
  warmupRatio: ranged('a number in [0, 1]'),
  loraPlusRatio: ranged('a number in [1, 1000]'),
  loraFa: BOOLEAN,
  weightDecay: ranged('a number in [0, 1]'),
  maxGradNorm: ranged('a finite number of at least 0'),
  device: anyOf(NAME, listOf(NAME)),
  threads: ranged('an integer in [1, 1024]'),
  lowMemory: BOOLEAN,
  fast: BOOLEAN,
  newHead: BOOLEAN,
  saveEvery: ranged('an integer of at least 1'),
  packing: BOOLEAN,
  evalEvery: ranged('an integer of at least 1'),
  keep: oneOf('last', 'best'),
  bestMetric: NAME,
  earlyStopping: ranged('an integer of at least 1'),
}

export const TRAIN_SETTINGS_DEFAULTS = {
  epochs: 1,
  maxSteps: undefined,
  batchSize: 8,
  gradientAccumulation: 1,
  maxLength: undefined,
  learningRate: undefined,
  schedule: 'cosine',
  warmupRatio: 0.03,
  loraPlusRatio: undefined,
  loraFa: false,
  weightDecay: 0,
  maxGradNorm: 1,
  device: undefined,
  threads: undefined,
  lowMemory: undefined,
  fast: false,
  newHead: false,
  saveEvery: undefined,
  packing: false,
  evalEvery: undefined,
  keep: 'last',
  bestMetric: 'loss',
  earlyStopping: undefined,
} as const satisfies Partial<TrainSettings>

