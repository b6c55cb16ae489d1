// Made by scripts/generate/options.mjs from the types. Do not edit.

import { type OptionTable, anyOf, FUNCTION, needed, ranged, BOOLEAN, NAME, oneOf, eventsOf, SIGNAL, OBJECT, listOf, STRING } from '../../core/base/options.js'
import { SOURCE, ADAPTER, MODEL, NAMED_ADAPTERS, DATA, TARGET, ADAPTERS, ADAPTER_LIST, TOKEN } from '../../model/source-values.js'
import { DIMENSIONS } from '../../train/tasks/task-values.js'

export const TO_PLAIN_OPTIONS: OptionTable = {
  base: anyOf(SOURCE, FUNCTION),
  initial: anyOf(SOURCE, ADAPTER),
}

export const EVALUATE_OPTIONS: OptionTable = {
  model: needed(anyOf(MODEL, SOURCE)),
  adapters: NAMED_ADAPTERS,
  data: needed(DATA),
  corpus: DATA,
  batchSize: ranged('an integer of at least 1'),
  generate: BOOLEAN,
  judge: NAME,
  judgeModel: NAME,
  judgeKey: NAME,
  at: DIMENSIONS,
  dimensions: ranged('an integer of at least 1'),
  precision: oneOf('float32', 'int8', 'uint8', 'binary', 'ubinary'),
  rescore: ranged('an integer of at least 0'),
  measure: oneOf('calls'),
  match: oneOf('values', 'bfcl'),
  against: NAME,
  maxNewTokens: ranged('an integer of at least 1'),
  resamples: ranged('an integer of at least 1'),
  seed: ranged('a safe integer'),
  differing: ranged('an integer of at least 0'),
  on: eventsOf('warning', 'progress'),
  signal: SIGNAL,
  task: NAME,
  taskOptions: OBJECT,
  columns: OBJECT,
  maxLength: ranged('an integer of at least 2'),
  decodeImage: FUNCTION,
  chatTemplate: NAME,
  chatTemplateArgs: OBJECT,
  device: anyOf(NAME, listOf(NAME)),
  threads: ranged('an integer in [1, 1024]'),
  memory: oneOf('auto', 'low', 'fast'),
  dtype: anyOf(oneOf('auto'), oneOf('fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'), OBJECT),
}

export const MINE_OPTIONS: OptionTable = {
  model: needed(anyOf(MODEL, SOURCE)),
  adapter: anyOf(ADAPTER, SOURCE),
  data: needed(DATA),
  evalData: DATA,
  reranker: anyOf(MODEL, SOURCE),
  corpus: DATA,
  columns: OBJECT,
  queryPrompt: STRING,
  documentPrompt: STRING,
  seed: ranged('a safe integer'),
  on: eventsOf('warning', 'progress'),
  rangeMin: ranged('an integer of at least 0'),
  rangeMax: ranged('an integer of at least 1'),
  maxScore: ranged('a finite number'),
  minScore: ranged('a finite number'),
  absoluteMargin: ranged('a finite number'),
  relativeMargin: ranged('a finite number'),
  numNegatives: ranged('an integer of at least 1'),
  samplingStrategy: oneOf('top', 'random'),
  form: oneOf('triplet', 'n-tuple', 'labeled-list'),
  outputScores: BOOLEAN,
  chunk: ranged('an integer of at least 8'),
  overlap: ranged('an integer of at least 0'),
  device: anyOf(NAME, listOf(NAME)),
  threads: ranged('an integer in [1, 1024]'),
  signal: SIGNAL,
  dtype: anyOf(oneOf('auto'), oneOf('fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'), OBJECT),
}

export const HANDOFF_OPTIONS: OptionTable = {
  to: needed(oneOf('trl')),
  out: needed(TARGET),
  base: NAME,
  rows: oneOf('tokens', 'records'),
}

export const INSPECT_OPTIONS: OptionTable = {
  base: SOURCE,
  dtype: anyOf(oneOf('auto'), oneOf('fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'), OBJECT),
}

export const MERGE_OPTIONS: OptionTable = {
  base: needed(SOURCE),
  adapters: needed(ADAPTERS),
  out: needed(TARGET),
  signal: SIGNAL,
  on: eventsOf('progress'),
  format: oneOf('onnx', 'safetensors', 'gguf'),
  layout: oneOf('transformers.js', 'optimum'),
  dtype: anyOf(oneOf('auto'), oneOf('fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'), OBJECT),
  tied: oneOf('untie', 'keep'),
  allowMissing: BOOLEAN,
  outDtype: anyOf(oneOf('q8_0', 'q4_0', 'keep'), oneOf('fp32', 'fp16', 'bf16')),
  maxShardBytes: ranged('an integer of at least 1'),
  weightsOnly: BOOLEAN,
  modules: OBJECT,
  overwrite: BOOLEAN,
  threads: ranged('an integer in [1, 1024]'),
}

export const UNMERGE_OPTIONS: OptionTable = {
  merged: needed(SOURCE),
  threads: ranged('an integer in [1, 1024]'),
  dtype: anyOf(oneOf('auto'), oneOf('fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'), OBJECT),
  out: needed(TARGET),
  modules: OBJECT,
  overwrite: BOOLEAN,
  signal: SIGNAL,
  on: eventsOf('progress'),
  adapters: needed(ADAPTERS),
  format: oneOf('onnx', 'safetensors', 'gguf'),
  layout: oneOf('transformers.js', 'optimum'),
  allowMissing: BOOLEAN,
  maxShardBytes: ranged('an integer of at least 1'),
  weightsOnly: BOOLEAN,
}

export const PUSH_OPTIONS: OptionTable = {
  public: BOOLEAN,
  branch: NAME,
  message: NAME,
  base: SOURCE,
}

export const COMBINE_OPTIONS: OptionTable = {
  adapters: needed(ADAPTER_LIST),
  combinationType: oneOf('exact', 'linear'),
  rank: ranged('an integer of at least 1'),
  energy: ranged('a number in (0, 1]'),
  on: eventsOf('progress'),
  signal: SIGNAL,
}

export const CONVERT_ADAPTER_OPTIONS: OptionTable = {
  to: needed(oneOf('peft', 'gguf', 'mlx')),
  out: needed(TARGET),
  base: SOURCE,
  outDtype: anyOf(oneOf('q8_0', 'keep'), oneOf('fp32', 'fp16', 'bf16')),
  on: eventsOf('progress'),
  signal: SIGNAL,
}

export const DIFF_OPTIONS: OptionTable = {
  on: eventsOf('progress'),
  signal: SIGNAL,
}

export const RESIZE_OPTIONS: OptionTable = {
  rank: ranged('an integer of at least 1'),
  energy: ranged('a number in (0, 1]'),
  on: eventsOf('progress'),
  signal: SIGNAL,
}

export const CHECK_DATA_OPTIONS: OptionTable = {
  model: anyOf(MODEL, SOURCE),
  preview: ranged('an integer of at least 0'),
  maxInvalid: ranged('an integer of at least 1'),
  task: NAME,
  columns: OBJECT,
  maxLength: ranged('an integer of at least 2'),
  decodeImage: FUNCTION,
  chatTemplate: NAME,
  chatTemplateArgs: OBJECT,
  dtype: anyOf(oneOf('auto'), oneOf('fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'), OBJECT),
  data: needed(DATA),
  evalData: DATA,
  termsRead: BOOLEAN,
  signal: SIGNAL,
}

export const SAVE_OPTIONS: OptionTable = {
  dtype: oneOf('fp32', 'fp16', 'bf16'),
  overwrite: BOOLEAN,
}

export const TRAIN_OPTIONS: OptionTable = {
  model: needed(anyOf(MODEL, SOURCE)),
  dtype: anyOf(oneOf('auto'), oneOf('fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'), OBJECT),
  data: needed(DATA),
  evalData: DATA,
  adapter: anyOf(ADAPTER, SOURCE),
  out: TARGET,
  task: NAME,
  rewards: anyOf(listOf(anyOf(FUNCTION, OBJECT)), NAME),
  graderModels: OBJECT,
  onTurn: FUNCTION,
  teacher: anyOf(MODEL, SOURCE),
  taskOptions: OBJECT,
  skipInvalid: ranged('an integer of at least 0'),
  termsRead: BOOLEAN,
  evalSplit: ranged('a number in [0, 1)'),
  columns: OBJECT,
  chatTemplate: NAME,
  chatTemplateArgs: OBJECT,
  toolForm: oneOf('hermes', 'qwen3-coder', 'llama', 'pythonic', 'mistral', 'mistral-11', 'function-gemma', 'gemma-4', 'lfm2', 'granite', 'phi', 'harmony', 'deepseek', 'deepseek-31'),
  toolsInAdapter: BOOLEAN,
  decodeImage: FUNCTION,
  preset: oneOf('peft'),
  trainedTokens: anyOf(listOf(TOKEN), OBJECT),
  numLayers: ranged('an integer of at least 1'),
  config: OBJECT,
  modules: OBJECT,
  resume: BOOLEAN,
  keepState: BOOLEAN,
  overwrite: BOOLEAN,
  signal: SIGNAL,
  sample: listOf(NAME),
  on: eventsOf('task', 'stage', 'progress', 'step', 'evaluation', 'sample', 'note', 'warning'),
  epochs: ranged('a finite number above 0'),
  maxSteps: ranged('an integer of at least 1'),
  batchSize: ranged('an integer of at least 1'),
  gradientAccumulation: ranged('an integer of at least 1'),
  maxLength: ranged('an integer of at least 2'),
  learningRate: ranged('a number in (0, 10]'),
  schedule: oneOf('cosine', 'linear', 'constant'),
  warmupRatio: ranged('a number in [0, 1]'),
  warmupSteps: ranged('an integer of at least 0'),
  loraPlusRatio: ranged('a number in [1, 1000]'),
  weightDecay: ranged('a number in [0, 1]'),
  maxGradNorm: ranged('a finite number of at least 0'),
  device: anyOf(NAME, listOf(NAME)),
  threads: ranged('an integer in [1, 1024]'),
  memory: oneOf('auto', 'low', 'fast'),
  newHead: BOOLEAN,
  saveEvery: ranged('an integer of at least 1'),
  packing: BOOLEAN,
  evalEvery: ranged('an integer of at least 1'),
  keep: oneOf('last', 'best'),
  bestMetric: NAME,
  earlyStopping: ranged('an integer of at least 1'),
}

