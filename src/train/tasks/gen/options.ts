// Made by scripts/generate/options.mjs from the types. Do not edit.

import { type OptionTable, ranged, oneOf, BOOLEAN, STRING, anyOf } from '../../../core/base/options.js'
import { LOSS_NAME, DIMENSIONS, CLASS_WEIGHTS, RANK_LOSS_NAME, TAG_NAMES } from '../task-values.js'

export const DPO_OPTIONS: OptionTable = {
  beta: ranged('a finite number above 0'),
  labelSmoothing: ranged('a number in [0, 0.5)'),
}

export const EMBEDDING_OPTIONS: OptionTable = {
  loss: LOSS_NAME,
  scale: ranged('a finite number above 0'),
  temperature: ranged('a finite number above 0'),
  margin: ranged('a finite number of at least 0'),
  marginStrategy: oneOf('absolute', 'relative'),
  symmetric: BOOLEAN,
  matryoshkaDims: DIMENSIONS,
  queryPrompt: STRING,
  documentPrompt: STRING,
}

export const KTO_OPTIONS: OptionTable = {
  desirableWeight: ranged('a finite number above 0'),
  undesirableWeight: ranged('a finite number above 0'),
  beta: ranged('a finite number above 0'),
}

export const LABEL_OPTIONS: OptionTable = {
  problemType: anyOf(oneOf('single_label_classification', 'regression'), oneOf('multi_label_classification')),
  classWeights: CLASS_WEIGHTS,
  labelSmoothing: ranged('a number in [0, 1)'),
}

export const RERANKING_OPTIONS: OptionTable = {
  loss: RANK_LOSS_NAME,
  posWeight: ranged('a finite number above 0'),
  k: ranged('an integer of at least 1'),
}

export const TAG_OPTIONS: OptionTable = {
  tagNames: TAG_NAMES,
  classWeights: CLASS_WEIGHTS,
  labelSmoothing: ranged('a number in [0, 1)'),
}

