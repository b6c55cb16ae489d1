// Guesses for names that lowrank does not have.

import { expect, it } from 'vitest'
import { TRAIN_OPTIONS } from '../../../src/api/gen/options.js'
import { adviceOn, meantBy } from '../../../src/core/base/words.js'
import { LORA_CONFIG } from '../../../src/lora/gen/options.js'
import { textOf } from '../../structure/project.js'

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
  expect(meantBy(word, COMMANDS, 'lowrank ')).toBe(meant)
})

it('sentences are for their places alone', () => {
  expect(adviceOn('bf16', ['--dtype'])).toMatch(/--dtype fp16/)
  expect(adviceOn('bf16', ['--outDtype'])).toMatch(/--out-dtype/)
  expect(adviceOn('bf16', ['dtype', 'lowrank'])).toBeUndefined()
  expect(adviceOn('fsync', [])).toMatch(/leave it out/)
})

it('the table has at most 120 rows, each with words, a place, and no word twice for one place', () => {
  const rows = /const ROWS = `\n([^`]*)\n`/.exec(textOf('src/core/base/words.ts'))![1].split('\n')
  expect(rows.length).toBeLessThanOrEqual(120)
  const uses = rows.flatMap((row) => {
    const [words, place, sentence = ''] = row.split(' | ')
    return words.split(' ').map((word) => `${word.replaceAll('_', '')} | ${place} | ${sentence !== ''}`)
  })
  expect(uses.filter((use) => !/^[a-z0-9-]+ \| (\*|[a-zA-Z -]+) \| /.test(use))).toEqual([])
  expect(uses.filter((use, i) => uses.indexOf(use) !== i)).toEqual([])
})
