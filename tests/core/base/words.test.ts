// Guesses for names that lowrank does not have.

import { expect, it } from 'vitest'
import { TRAIN_OPTIONS } from '../../../src/api/gen/options.js'
import { parseCommand } from '../../../src/app/cli/options.js'
import { COMMANDS as PROGRAMS } from '../../../src/app/cli/program.js'
import { unknownOption } from '../../../src/core/base/options.js'
import { adviceOn, meantBy } from '../../../src/core/base/words.js'
import { LORA_CONFIG } from '../../../src/lora/gen/options.js'
import { GENERATE_OPTIONS } from '../../../src/run/gen/options.js'
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

it.each([
  ['stream', /on: \{ text \}/],
  ['onToken', /on: \{ text \}/],
  ['n', /as often as you want texts/],
  ['numBeams', /no beam search/],
  ['doSample', /temperature of 0/],
  ['responseFormat', /Did you mean schema/],
  ['jsonSchema', /Did you mean schema/],
  ['grammar', /Did you mean schema/],
])('generate leads from %s', (word, hint) => {
  expect(unknownOption(word, 'generate', Object.keys(GENERATE_OPTIONS)).message).toMatch(hint)
})

it.each([
  ['callbacks', /on: \{ step \}/],
  ['optim', /AdamW/],
  ['peftConfig', /Did you mean config/],
  ['rewardFuncs', /Did you mean rewards/],
])('train leads from %s', (word, hint) => {
  expect(unknownOption(word, 'train', Object.keys(TRAIN_OPTIONS)).message).toMatch(hint)
})

it.each([
  ['generate', '--schema', /lowrank serve/],
  ['generate', '--prompt-file', /\$\(cat FILE\)/],
  ['train', '--test', /--eval-data/],
  ['evaluate', '--test', /on --data/],
])('lowrank %s leads from %s', async (command, flag, hint) => {
  const program = await PROGRAMS[command]()
  expect(() => parseCommand(program, [`${flag}=x`])).toThrow(hint)
})

it('sentences are for their places alone', () => {
  expect(adviceOn('bf16', ['--dtype'])).toMatch(/--dtype fp16/)
  expect(adviceOn('bf16', ['--outDtype'])).toMatch(/--out-dtype/)
  expect(adviceOn('bf16', ['dtype', 'lowrank'])).toBeUndefined()
  expect(adviceOn('fsync', [])).toMatch(/leave it out/)
})

it('the table has at most 128 rows, each with words, a place, and no word twice for one place', () => {
  const rows = /const ROWS = `\n([^`]*)\n`/.exec(textOf('src/core/base/words.ts'))![1].split('\n')
  expect(rows.length).toBeLessThanOrEqual(128)
  const uses = rows.flatMap((row) => {
    const [words, place, sentence = ''] = row.split(' | ')
    return words.split(' ').map((word) => `${word.replaceAll('_', '')} | ${place} | ${sentence !== ''}`)
  })
  expect(uses.filter((use) => !/^[a-z0-9-]+ \| (\*|[a-zA-Z -]+) \| /.test(use))).toEqual([])
  expect(uses.filter((use, i) => uses.indexOf(use) !== i)).toEqual([])
})
