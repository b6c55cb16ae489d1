// Made by scripts/generate/options.mjs from the types. Do not edit.

import { type OptionTable, ranged, NAME, oneOf, BOOLEAN, OBJECT, needed, listOf, NUMBERS, anyOf, FUNCTION, SIGNAL } from '../../../core/base/options.js'
import { TOKEN_IDS, LOGIT_BIAS } from '../../../run/media-values.js'
import { SOURCE, ADAPTER, TOKEN } from '../../../model/source-values.js'

export const DISTILL_OPTIONS: OptionTable = {
  beta: ranged('a number in [0, 1]'),
  temperature: ranged('a finite number above 0'),
  maxCompletionLength: ranged('an integer of at least 1'),
  topP: ranged('a number in (0, 1]'),
  topK: ranged('an integer of at least 0'),
  teacherModel: NAME,
  teacherKey: NAME,
}

export const GRPO_OPTIONS: OptionTable = {
  numGenerations: ranged('an integer of at least 2'),
  beta: ranged('a finite number of at least 0'),
  epsilon: ranged('a number in [0, 1]'),
  epsilonHigh: ranged('a finite number of at least 0'),
  lossType: oneOf('grpo', 'bnpo', 'dr_grpo', 'dapo', 'cispo'),
  scaleRewards: oneOf('group', 'batch', 'none'),
  numIterations: ranged('an integer of at least 1'),
  maskTruncatedCompletions: BOOLEAN,
  maxCompletionLength: ranged('an integer of at least 1'),
  temperature: ranged('a finite number above 0'),
  topP: ranged('a number in (0, 1]'),
  rewardWeights: OBJECT,
  rewardSeconds: ranged('a finite number above 0'),
}

export const LABEL_MODEL_GRADER: OptionTable = {
  type: needed(oneOf('label_model')),
  name: needed(NAME),
  model: needed(NAME),
  input: needed(listOf(OBJECT)),
  labels: needed(listOf(NAME)),
  passing_labels: needed(listOf(NAME)),
}

export const MULTI_GRADER: OptionTable = {
  type: needed(oneOf('multi')),
  name: needed(NAME),
  graders: needed(OBJECT),
  calculate_output: needed(NAME),
}

export const SAMPLING_PARAMS: OptionTable = {
  temperature: ranged('a finite number of at least 0'),
  top_p: ranged('a number in (0, 1]'),
  seed: ranged('a safe integer'),
  max_completions_tokens: ranged('an integer of at least 1'),
  reasoning_effort: NAME,
}

export const SCORE_MODEL_GRADER: OptionTable = {
  type: needed(oneOf('score_model')),
  name: needed(NAME),
  model: needed(NAME),
  input: needed(listOf(OBJECT)),
  range: NUMBERS,
  sampling_params: OBJECT,
  pass_threshold: ranged('a finite number'),
}

export const STRING_CHECK_GRADER: OptionTable = {
  type: needed(oneOf('string_check')),
  name: needed(NAME),
  input: needed(NAME),
  reference: needed(NAME),
  operation: needed(oneOf('eq', 'ne', 'like', 'ilike')),
}

export const TEXT_SIMILARITY_GRADER: OptionTable = {
  type: needed(oneOf('text_similarity')),
  name: needed(NAME),
  input: needed(NAME),
  reference: needed(NAME),
  evaluation_metric: needed(oneOf('cosine', 'fuzzy_match', 'bleu', 'gleu', 'rouge_1', 'rouge_2', 'rouge_3', 'rouge_4', 'rouge_5', 'rouge_l')),
  pass_threshold: ranged('a finite number'),
}

export const FORWARD_BACKWARD_OPTIONS: OptionTable = {
  loss: anyOf(oneOf('cross-entropy', 'importance-sampling', 'ppo', 'cispo', 'dpo'), FUNCTION),
  temperature: ranged('a finite number above 0'),
  check: BOOLEAN,
  epsilon: ranged('a finite number of at least 0'),
  epsilonHigh: ranged('a finite number of at least 0'),
  beta: ranged('a finite number above 0'),
  normalizer: ranged('a finite number above 0'),
}

export const SAMPLE_OPTIONS: OptionTable = {
  n: ranged('an integer of at least 1'),
  chatTemplate: NAME,
  chatTemplateArgs: OBJECT,
  batchSize: ranged('an integer of at least 1'),
  toolForm: oneOf('hermes', 'qwen3-coder', 'llama', 'pythonic', 'mistral', 'mistral-11', 'function-gemma', 'gemma-4', 'lfm2', 'granite', 'phi', 'harmony', 'deepseek', 'deepseek-31'),
  signal: SIGNAL,
  maxNewTokens: ranged('an integer of at least 1'),
  minNewTokens: ranged('an integer of at least 0'),
  ignoreEos: BOOLEAN,
  stopTokenIds: TOKEN_IDS,
  logitBias: LOGIT_BIAS,
  stop: anyOf(NAME, listOf(NAME)),
  seed: ranged('a safe integer'),
  schema: OBJECT,
  structure: OBJECT,
  temperature: ranged('a finite number of at least 0'),
  topK: ranged('an integer of at least 1, or Infinity'),
  topP: ranged('a number in (0, 1]'),
  minP: ranged('a number in [0, 1]'),
  repetitionPenalty: ranged('a finite number above 0'),
  presencePenalty: ranged('a number in [-2, 2]'),
  frequencyPenalty: ranged('a number in [-2, 2]'),
  tools: listOf(OBJECT),
  answerStart: NAME,
}

export const STEP_OPTIONS: OptionTable = {
  learningRate: needed(ranged('a number in [0, 10]')),
}

export const TRAINER_OPTIONS: OptionTable = {
  entropy: BOOLEAN,
  resume: SOURCE,
  maxLength: ranged('an integer of at least 2'),
  chatTemplate: NAME,
  chatTemplateArgs: OBJECT,
  device: anyOf(NAME, listOf(NAME)),
  threads: ranged('an integer in [1, 1024]'),
  memory: oneOf('auto', 'low', 'fast'),
  dtype: anyOf(oneOf('auto'), oneOf('fp32', 'fp16', 'q8', 'int8', 'uint8', 'q4', 'q4f16', 'bnb4', 'q2', 'q2f16', 'q1', 'q1f16'), OBJECT),
  adapter: anyOf(ADAPTER, SOURCE),
  batchSize: ranged('an integer of at least 1'),
  loraPlusRatio: ranged('a number in [1, 1000]'),
  weightDecay: ranged('a number in [0, 1]'),
  maxGradNorm: ranged('a finite number of at least 0'),
  termsRead: BOOLEAN,
  trainedTokens: anyOf(listOf(TOKEN), OBJECT),
  numLayers: ranged('an integer of at least 1'),
  config: OBJECT,
  modules: OBJECT,
}

export const TRAINER_SAVE_OPTIONS: OptionTable = {
  overwrite: BOOLEAN,
}

