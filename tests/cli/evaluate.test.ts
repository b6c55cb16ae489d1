// lowrank evaluate: what is printed, the document, and the page.

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { lowrankHere } from './in-process.js'
import { root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const model = join(root, 'tests/golden/models/llama-optimum')
const adapter = join(root, 'tests/golden/settings/base')

it('compares an adapter with its base, and mixes', async () => {
  const data = join(scratch, 'texts.jsonl')
  const texts = ['The sea was calm.', 'And the people <b>went</b> out.', 'A good day.']
  writeFileSync(data, texts.map((text) => JSON.stringify({ text })).join('\n'))
  const out = join(scratch, 'tiny')
  await lowrankHere(
    ...['train', '--model', model, '--data', data, '--out', out, '--max-steps', '2', '--rank', '2', '--threads', '1'],
  )
  const html = join(scratch, 'report.html')
  const args = ['evaluate', '--adapter', out, '--data', data, '--threads', '1', '--resamples', '20']
  const { code, stdout, stderr } = await lowrankHere(...args, '--html', html)
  expect([code, stderr]).toEqual([0, expect.stringContaining('3 records')])
  expect(stdout).toMatch(/^base\nmetric +value +95 %\nloss +\d/)
  expect(stdout).toContain('Records that differ most in loss')
  expect(readFileSync(html, 'utf8')).toContain('lowrank evaluate')
  expect(readFileSync(html, 'utf8')).not.toContain('<b>went')
  const again = await lowrankHere(...args, '--html', html)
  expect([again.code, again.stderr]).toEqual([1, expect.stringContaining('exists already')])
  const mix = await lowrankHere(...args, '--weight', '0.5', '--adapter', out, '--weight', '0.5', '--mix', '--json')
  const whole = await lowrankHere(...args, '--json')
  const losses = [mix, whole].map((outcome) => JSON.parse(outcome.stdout).models[1].metrics.loss.value)
  expect(losses[0]).toBeCloseTo(losses[1], 5)
  expect(JSON.parse(whole.stdout)).toMatchObject({ version: 1, task: 'causal-lm', records: 3, differBy: 'loss' })
})

it.each<[args: string[], code: number, message: RegExp]>([
  [['--data', 'x.jsonl'], 2, /--model .* is missing/],
  [['--model', model, '--adapter', adapter, '--data', join(root, 'missing.jsonl')], 1, /missing\.jsonl/],
  [['--model', model, '--data', join(root, 'models/data/scripture.eval.jsonl'), '--task', 'x'], 2, /--task/],
])('refuses %j', async (args, code, message) => {
  const outcome = await lowrankHere('evaluate', ...args)
  expect([outcome.code, outcome.stderr]).toEqual([code, expect.stringMatching(message)])
})
