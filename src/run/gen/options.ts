// Made by scripts/generate/options.mjs from the types. Do not edit.

import { type OptionTable, ranged, orNull, NAME, SIGNAL, oneOf, STRING, BOOLEAN, OBJECT, listOf, eventsOf, anyOf } from '../../core/base/options.js'
import { ONE_CHOICE } from '../adapters/choice.js'
import { RANGES } from '../readings/quantize.js'
import { IMAGES, TOKEN_IDS, LOGIT_BIAS } from '../media-values.js'

export const SAMPLING_OPTIONS: OptionTable = {
  temperature: ranged('a finite number of at least 0'),
  topK: ranged('an integer of at least 1, or Infinity'),
  topP: ranged('a number in (0, 1]'),
  minP: ranged('a number in [0, 1]'),
  repetitionPenalty: ranged('a finite number above 0'),
  presencePenalty: ranged('a number in [-2, 2]'),
  frequencyPenalty: ranged('a number in [-2, 2]'),
}

export const CLASSIFY_OPTIONS: OptionTable = {
  topK: ranged('an integer of at least 1'),
  adapter: orNull(NAME),
  maxLength: ranged('an integer of at least 1'),
  batchSize: ranged('an integer of at least 1'),
  signal: SIGNAL,
}

export const EMBED_OPTIONS: OptionTable = {
  adapter: ONE_CHOICE,
  pooling: oneOf('mean', 'cls', 'lasttoken'),
  inputType: oneOf('query', 'document'),
  prompt: STRING,
  normalize: BOOLEAN,
  dimensions: ranged('an integer of at least 1'),
  precision: oneOf('float32', 'int8', 'uint8', 'binary', 'ubinary'),
  ranges: RANGES,
  maxLength: ranged('an integer of at least 1'),
  batchSize: ranged('an integer of at least 1'),
  signal: SIGNAL,
}

export const RERANK_OPTIONS: OptionTable = {
  topN: ranged('an integer of at least 1'),
  adapter: orNull(NAME),
  maxLength: ranged('an integer of at least 1'),
  batchSize: ranged('an integer of at least 1'),
  signal: SIGNAL,
}

export const TAG_OPTIONS: OptionTable = {
  adapter: orNull(NAME),
  maxLength: ranged('an integer of at least 1'),
  batchSize: ranged('an integer of at least 1'),
  signal: SIGNAL,
}

export const ENCODE_OPTIONS: OptionTable = {
  adapter: ONE_CHOICE,
  chatTemplate: NAME,
  chatTemplateArgs: OBJECT,
  tools: listOf(OBJECT),
  answerStart: NAME,
  toolForm: oneOf('hermes', 'qwen3-coder', 'llama', 'pythonic', 'mistral', 'mistral-11', 'function-gemma', 'gemma-4', 'lfm2', 'granite', 'phi', 'harmony', 'deepseek', 'deepseek-31'),
}

export const GENERATE_OPTIONS: OptionTable = {
  batchSize: ranged('an integer of at least 1'),
  on: eventsOf('text'),
  adapter: anyOf(ONE_CHOICE, listOf(ONE_CHOICE)),
  images: IMAGES,
  maxNewTokens: ranged('an integer of at least 1'),
  minNewTokens: ranged('an integer of at least 0'),
  ignoreEos: BOOLEAN,
  stopTokenIds: TOKEN_IDS,
  logitBias: LOGIT_BIAS,
  stop: anyOf(NAME, listOf(NAME)),
  logprobs: ranged('an integer of at least 0'),
  seed: ranged('a safe integer'),
  schema: OBJECT,
  structure: OBJECT,
  cacheScope: NAME,
  signal: SIGNAL,
  temperature: ranged('a finite number of at least 0'),
  topK: ranged('an integer of at least 1, or Infinity'),
  topP: ranged('a number in (0, 1]'),
  minP: ranged('a number in [0, 1]'),
  repetitionPenalty: ranged('a finite number above 0'),
  presencePenalty: ranged('a number in [-2, 2]'),
  frequencyPenalty: ranged('a number in [-2, 2]'),
  chatTemplate: NAME,
  chatTemplateArgs: OBJECT,
  tools: listOf(OBJECT),
  answerStart: NAME,
  toolForm: oneOf('hermes', 'qwen3-coder', 'llama', 'pythonic', 'mistral', 'mistral-11', 'function-gemma', 'gemma-4', 'lfm2', 'granite', 'phi', 'harmony', 'deepseek', 'deepseek-31'),
}

export const GENERATE_OPTIONS_DEFAULTS = {
  batchSize: 8,
  maxNewTokens: 128,
} as const

export const RUN_OPTIONS: OptionTable = {
  adapter: anyOf(ONE_CHOICE, listOf(ONE_CHOICE)),
  outputNames: listOf(NAME),
  graph: NAME,
}

export const SCORE_OPTIONS: OptionTable = {
  adapter: ONE_CHOICE,
  logprobs: ranged('an integer of at least 0'),
}

export const STREAM_OPTIONS: OptionTable = {
  adapter: anyOf(ONE_CHOICE, listOf(ONE_CHOICE)),
  images: IMAGES,
  maxNewTokens: ranged('an integer of at least 1'),
  minNewTokens: ranged('an integer of at least 0'),
  ignoreEos: BOOLEAN,
  stopTokenIds: TOKEN_IDS,
  logitBias: LOGIT_BIAS,
  stop: anyOf(NAME, listOf(NAME)),
  logprobs: ranged('an integer of at least 0'),
  seed: ranged('a safe integer'),
  schema: OBJECT,
  structure: OBJECT,
  cacheScope: NAME,
  signal: SIGNAL,
  temperature: ranged('a finite number of at least 0'),
  topK: ranged('an integer of at least 1, or Infinity'),
  topP: ranged('a number in (0, 1]'),
  minP: ranged('a number in [0, 1]'),
  repetitionPenalty: ranged('a finite number above 0'),
  presencePenalty: ranged('a number in [-2, 2]'),
  frequencyPenalty: ranged('a number in [-2, 2]'),
  chatTemplate: NAME,
  chatTemplateArgs: OBJECT,
  tools: listOf(OBJECT),
  answerStart: NAME,
  toolForm: oneOf('hermes', 'qwen3-coder', 'llama', 'pythonic', 'mistral', 'mistral-11', 'function-gemma', 'gemma-4', 'lfm2', 'granite', 'phi', 'harmony', 'deepseek', 'deepseek-31'),
}

