// lowrank train --task grpo: rewards from a module, which runs in a worker that a deadline ends.

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { lowrank, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const model = join(root, 'tests/golden/models/llama-optimum')
const data = join(scratch, 'prompts.jsonl')
writeFileSync(data, '{"prompt":"And the people"}\n{"prompt":"The sea"}\n')

function train(name: string, module: string, file = `${name}.mjs`) {
  writeFileSync(join(scratch, file), module)
  const options = 'numGenerations=4,maxCompletionLength=6,rewardSeconds=3'
  return lowrank(
    ...['train', '--task', 'grpo', '--model', model, '--data', data, '--rewards', join(scratch, file)],
    ...['--task-options', options, '--max-steps', '2', '--rank', '2', '--threads', '1', '--out', join(scratch, name)],
  )
}

it('learns from a module, whose weights count', async () => {
  const functions = `export const short = ({ text }) => -text.length
    export async function asked({ prompt, tokens, row }) { return prompt === row.prompt && tokens > 0 ? 1 : 0 }
    export const weights = { short: 0.01 }`
  const { code, stderr } = await train('learned', functions)
  expect([code, stderr]).toEqual([0, expect.stringContaining('reward ')])
  const [line] = readFileSync(join(scratch, 'learned/metrics.jsonl'), 'utf8').split('\n')
  const { rewards } = JSON.parse(line)
  expect(rewards.byFunction.asked).toBe(1)
  expect(rewards.byFunction.short).toBeGreaterThan(-1)
  expect(rewards.reward).toBeCloseTo(1 + rewards.byFunction.short, 5)
})

it.each([
  ['hangs', 'export function hang() { for (;;); }', /reward hang: it gave nothing within 3 seconds.*The text: "/],
  ['throws', 'export function broken() { throw new Error("no file") }', /reward broken: it threw: no file/],
  ['is empty', 'export const nothing = 1', /exports no function/],
  ['is not there', 'import "./not-there.mjs"', /not-there/],
])('ends with a module that %s', async (name, module, message) => {
  const { code, stderr } = await train(name, module)
  expect([code, stderr]).toEqual([1, expect.stringMatching(message)])
  if (name === 'hangs') expect(existsSync(join(scratch, name, 'training-state.safetensors'))).toBe(true)
})
