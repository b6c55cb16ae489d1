// Guesses for names that lowrank does not have.

import { expect, it } from 'vitest'
import { COMMAND_SYNONYMS, meantBy } from '../../src/base/synonyms.js'
import { TRAIN_OPTIONS } from '../../src/index/gen/options.js'
import { LORA_CONFIG } from '../../src/lora/gen/options.js'

const OPTIONS = [...Object.keys(TRAIN_OPTIONS), ...Object.keys(LORA_CONFIG)]
const COMMANDS = ['train', 'merge', 'unmerge', 'resize', 'inspect', 'generate', 'convert']

it.each([
  ['lr', 'learningRate'],
  ['lerning-rate', 'learningRate'],
  ['num_train_epochs', 'epochs'],
  ['loraAlpha', 'alpha'],
  ['lora_r', 'rank'],
  ['evalSteps', 'evalEvery'],
  ['iters', 'maxSteps'],
  ['load_in_4bit', 'dtype'],
  ['max-seq-length', 'maxLength'],
  ['output_dir', 'out'],
  ['lowMemory', 'memory'],
  ['low-memory', 'memory'],
  ['fast', 'memory'],
  ['somethingElse', undefined],
  ['x', undefined],
])('option %s: %s', (word, meant) => {
  expect(meantBy(word, OPTIONS)).toBe(meant)
})

it.each([
  ['finetune', 'train'],
  ['fuse', 'merge'],
  ['info', 'inspect'],
  ['serve', undefined],
  ['convrt', 'convert'],
  ['trian', 'train'],
  ['megre', 'merge'],
])('command %s: %s', (word, meant) => {
  expect(meantBy(word, COMMANDS, COMMAND_SYNONYMS)).toBe(meant)
})
