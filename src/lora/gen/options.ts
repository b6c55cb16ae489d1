// Made by scripts/generate/options.mjs from the types. Do not edit.

import { type OptionTable, ranged, BOOLEAN, STRING, oneOf, OBJECT, NAME } from '../../core/base/options.js'
import { MODULES, LAYERS, RANKS, ALPHAS, INIT, SHORT_LIST, TOKEN_INDICES } from '../config-kinds.js'

export const LORA_CONFIG: OptionTable = {
  rank: ranged('an integer of at least 1'),
  alpha: ranged('a finite number'),
  dropout: ranged('a number in [0, 1]'),
  targetModules: MODULES,
  excludeModules: MODULES,
  layersToTransform: LAYERS,
  layersPattern: MODULES,
  rankPattern: RANKS,
  alphaPattern: ALPHAS,
  useRslora: BOOLEAN,
  fanInFanOut: BOOLEAN,
  init: INIT,
  seed: ranged('a safe integer'),
  baseModel: STRING,
  taskType: STRING,
  useDora: BOOLEAN,
  loraBias: BOOLEAN,
  bias: oneOf('none', 'all', 'lora_only'),
  modulesToSave: SHORT_LIST,
  targetParameters: SHORT_LIST,
  ensureWeightTying: BOOLEAN,
  trainableTokenIndices: TOKEN_INDICES,
  peftFields: OBJECT,
}

export const LORA_CONFIG_DEFAULTS = {
  rank: 8,
  alpha: 8,
  dropout: 0,
  targetModules: [],
  excludeModules: undefined,
  layersToTransform: undefined,
  layersPattern: undefined,
  rankPattern: {},
  alphaPattern: {},
  useRslora: false,
  fanInFanOut: false,
  init: 'normal',
  seed: 42,
  baseModel: undefined,
  taskType: undefined,
  useDora: false,
  loraBias: false,
  bias: 'none',
  modulesToSave: [],
  targetParameters: [],
  ensureWeightTying: false,
  trainableTokenIndices: undefined,
  peftFields: {},
} as const

/** What `train` takes if they are left out. */
export const TRAIN_CONFIG_DEFAULTS = {
  rank: 8,
  alpha: 16,
  dropout: 0,
  targetModules: 'all-linear',
  init: 'kaiming-uniform',
  seed: 42,
} as const

export const REPLACEMENT_OPTIONS: OptionTable = {
  isTrained: BOOLEAN,
  key: NAME,
}

