// Made by scripts/generate/options.mjs from the types. Do not edit.

import { type OptionTable, eventsOf, ENDPOINT, NAME, anyOf, oneOf, OBJECT, SIGNAL, listOf, ranged, BOOLEAN } from '../../core/base/options.js'
import { RUNTIME, NAMED_ADAPTERS } from '../../model/source-values.js'

export const HUB_OPTIONS: OptionTable = {
  on: eventsOf('warning', 'download'),
  endpoint: ENDPOINT,
  token: NAME,
}

export const LOAD_MODEL_OPTIONS: OptionTable = {
  runtime: RUNTIME,
  dtype: anyOf(oneOf('auto'), oneOf('fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'), OBJECT),
  onnxPath: NAME,
  on: eventsOf('download'),
  signal: SIGNAL,
}

export const OPEN_SESSION_OPTIONS: OptionTable = {
  adapters: NAMED_ADAPTERS,
  on: eventsOf('warning'),
  device: anyOf(NAME, listOf(NAME)),
  threads: ranged('an integer in [1, 1024]'),
  memory: oneOf('low', 'fast'),
  modules: OBJECT,
  allowMissing: BOOLEAN,
  yieldProcessors: BOOLEAN,
  optimization: oneOf('disabled', 'basic', 'extended', 'all'),
  profilePrefix: NAME,
  allow: listOf(oneOf('lora', 'dora', 'biases', 'embeddings', 'heads')),
  accuracyLevel: oneOf(0, 4),
  maxBatch: ranged('an integer of at least 1'),
  cacheBytes: ranged('an integer of at least 1'),
  prefixCache: ranged('an integer of at least 0'),
}

export const LOAD_OPTIONS: OptionTable = {
  name: NAME,
}

