// Mistakes that are cheap to find are reported before anything is loaded. In these tests, nothing could be loaded.

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { DATA, MODEL, scratchFolder } from './lowrank.js'

const ADAPTER = 'tests/golden/peft/f32'
const scratch = scratchFolder()
const file = join(scratch, 'file')
const template = join(scratch, 'bad.jinja')
writeFileSync(file, '')
writeFileSync(template, '{% for %}')

const NOWHERE = './nowhere'
const RUNS = [
  ['generate', NOWHERE, '--prompt', 'a'],
  ['chat', NOWHERE],
  ['classify', NOWHERE, '--text', 'a'],
  ['embed', NOWHERE, '--text', 'a'],
  ['serve', NOWHERE],
  ['evaluate', '--model', NOWHERE, '--data', DATA],
  ['train', NOWHERE, '--data', DATA, '--out', join(scratch, 'run')],
]
const WRITES = [
  ['train', NOWHERE, '--data', DATA],
  ['merge', NOWHERE, '--adapter', ADAPTER],
  ['unmerge', NOWHERE, '--adapter', ADAPTER],
  ['combine', NOWHERE, NOWHERE],
  ['resize', NOWHERE, '--rank', '1'],
  ['convert', NOWHERE, '--to', 'mlx'],
  ['to-plain', NOWHERE, '--base', MODEL],
]

it.each(RUNS)('%s: a device that is not there', async (...args) => {
  const { code, stderr } = await lowrankHere(...args, '--device', 'gpu')
  expect([code, stderr]).toEqual([1, expect.stringMatching(/--device: .*expected cpu.*got gpu. Did you mean webgpu\?/)])
})

it.each([
  [['generate', NOWHERE, '--prompt', 'a'], 'max-new-tokens', '0', 'an integer of at least 1'],
  [['generate', NOWHERE, '--prompt', 'a'], 'temperature', '-1', 'a finite number of at least 0'],
  [['generate', NOWHERE, '--prompt', 'a'], 'top-p', '0', 'a number in (0, 1]'],
  [['chat', NOWHERE], 'top-k', '2.5', 'an integer of at least 1, or Infinity'],
  [['serve', NOWHERE], 'max-running', '0', 'an integer of at least 1'],
  [['serve', NOWHERE], 'port', '65536', 'an integer in [0, 65535]'],
  [['embed', NOWHERE, '--text', 'a'], 'threads', '0', 'an integer in [1, 1024]'],
  [['evaluate', NOWHERE, '--data', DATA], 'batch-size', '0', 'an integer of at least 1'],
  [['resize', NOWHERE, '--out', NOWHERE], 'rank', '0', 'an integer of at least 1'],
])('%j: a number out of its range: --%s %s', async (args, flag, value, expected) => {
  const { code, stderr } = await lowrankHere(...args, `--${flag}`, value)
  expect([code, stderr]).toEqual([
    2,
    expect.stringContaining(`--${flag}: not valid; expected ${expected}, got ${value}`),
  ])
})

it('what is no number', async () => {
  const { code, stderr } = await lowrankHere('generate', NOWHERE, '--prompt', 'a', '--temperature', 'x')
  expect([code, stderr]).toEqual([
    2,
    expect.stringContaining("--temperature takes a number, such as 8, 0.5 or 1e-3; got 'x'"),
  ])
})

it.each(WRITES)('%s: a place where nothing can be written', async (...args) => {
  const { stderr } = await lowrankHere(...args, '--out', join(file, 'out'))
  expect(stderr).toMatch(/--out: .*file is a file, not a folder; got .*out/)
  expect(stderr).not.toMatch(/\.tmp|\.lowrank-/)
})

it.each(RUNS.filter(([name]) => name !== 'embed' && name !== 'serve' && name !== 'classify'))(
  '%s: a chat template that is none',
  async (...args) => {
    const { stderr } = await lowrankHere(...args, '--chat-template', template)
    expect(stderr).toMatch(/bad\.jinja: the chat template cannot be read/)
  },
)

it.each([
  [['generate', ADAPTER, '--prompt', 'a'], `--model ${ADAPTER}: this is an adapter: use --adapter ${ADAPTER}`],
  [['serve', ADAPTER], 'this is an adapter: use --adapter'],
  [['train', ADAPTER, '--data', DATA, '--out', NOWHERE], 'this is an adapter: use --adapter'],
  [['merge', ADAPTER, '--adapter', ADAPTER, '--out', NOWHERE], `--base ${ADAPTER}: this is an adapter: use --adapter`],
  [['generate', '--adapter', MODEL, '--prompt', 'a'], `this is a model: use --model ${MODEL}`],
  [['serve', '--adapter', `sea=${MODEL}`], `this is a model: use --model ${MODEL}`],
  [['evaluate', MODEL, '--data', DATA], `this is a model: use --model ${MODEL}`],
  [['merge', '--adapter', MODEL, '--out', NOWHERE], `this is a model: use --base ${MODEL}`],
  [['combine', MODEL, '--out', NOWHERE], "this is a model: 'lowrank combine' takes an adapter here"],
])('a folder in the wrong role: %j', async (args, message) => {
  const { code, stderr } = await lowrankHere(...args)
  expect([code, stderr]).toEqual([2, expect.stringContaining(message)])
})

it('target modules that the model does not have, before its records are read', async () => {
  const broken = join(scratch, 'broken.jsonl')
  writeFileSync(broken, '{')
  const args = ['train', MODEL, '--data', broken, '--out', join(scratch, 'run'), '--target-modules', 'q_projj']
  const { code, stderr } = await lowrankHere(...args)
  expect([code, stderr]).toEqual([1, expect.stringMatching(/--target-modules: .*"q_projj".*Did you mean q_proj/)])
})

it.each([
  [['train', MODEL, '--data', DATA, '--out', NOWHERE, '--eval-every', '2'], /--eval-every needs.*Give --eval-data/],
])('an option that needs another one: %j', async (args, message) => {
  const { code, stderr } = await lowrankHere(...args)
  expect([code, stderr]).toEqual([2, expect.stringMatching(message)])
})

it('says what to write in place of what other formats have', async () => {
  const data = async (record: object) => {
    const name = join(scratch, 'records.jsonl')
    writeFileSync(name, JSON.stringify(record))
    const { stdout, stderr } = await lowrankHere('data', name)
    return stdout + stderr
  }
  expect(await data({ text: 123 })).toMatch(/"text" is not text; expected a string, got 123/)
  expect(await data({ text: 123 })).not.toContain('--columns')
  expect(await data({ question: 'a', answer: ['b'] })).toMatch(/"answer" is not text/)
  const role = (name: string) => data({ messages: [{ role: name, content: 'a' }] })
  expect(await role('human')).toMatch(/unknown role.*Write user/)
  expect(await role('gpt')).toMatch(/unknown role.*Write assistant/)
  expect(await data({ text: 'The sea was calm.' })).toMatch(/1 record\. It fits/)
  expect((await lowrankHere('inspect', 'some/chats.jsonl')).stderr).toMatch(/these are records: use lowrank data/)
  expect((await lowrankHere('generate', MODEL, '--prompt', '', '--max-new-tokens', '2')).code).toBe(0)
  const { stderr } = await lowrankHere('classify', MODEL, '--text', 'a')
  expect(stderr).toMatch(new RegExp(`^error: ${MODEL}: the model has no head`, 'm'))
})
