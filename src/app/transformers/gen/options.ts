// Made by scripts/generate/options.mjs from the types. Do not edit.

import { type OptionTable, NAME, ranged, OBJECT, anyOf, oneOf, SIGNAL, eventsOf } from '../../../core/base/options.js'
import { NAMED_ADAPTERS } from '../../../model/source-values.js'

export const PIPELINE_OPTIONS: OptionTable = {
  adapters: NAMED_ADAPTERS,
  device: NAME,
  threads: ranged('an integer in [1, 1024]'),
  transformers: OBJECT,
  dtype: anyOf(oneOf('auto'), oneOf('fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'), OBJECT),
  signal: SIGNAL,
  on: eventsOf('download'),
  modules: OBJECT,
}

