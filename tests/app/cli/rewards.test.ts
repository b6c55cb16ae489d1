// lowrank train --task grpo: rewards from graders, and from a module, which runs in a worker with a deadline.

import { execFile } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, it, onTestFinished, vi } from 'vitest'
import { lowrank, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const model = join(root, 'tests/golden/models/llama-optimum')
const data = join(scratch, 'prompts.jsonl')
writeFileSync(data, '{"prompt":"And the people"}\n{"prompt":"The sea"}\n')

function train(name: string, module: string, file = `${name}.mjs`, more: string[] = []) {
  writeFileSync(join(scratch, file), module)
  const options = 'numGenerations=4,maxCompletionLength=6,rewardSeconds=3'
  return lowrank(
    ...['train', '--task', 'grpo', '--model', model, '--data', data, '--rewards', join(scratch, file)],
    ...[
      '--task-options',
      options,
      '--max-steps',
      '2',
      '--rank',
      '2',
      '--threads',
      '1',
      '--out',
      join(scratch, name),
      ...more,
    ],
  )
}

it('learns from the default export of a module, whose weights count, and names the rewards first', async () => {
  const functions = `const short = ({ text }) => -text.length
    async function asked({ prompt, tokens, row }) { return prompt === row.prompt && tokens > 0 }
    export function helper() { throw new Error('not a reward') }
    export default { short, asked }
    export const weights = { short: 0.01 }`
  const { code, stderr } = await train('learned', functions)
  expect([code, stderr]).toEqual([0, expect.stringMatching(/Rewards: short, asked\n.*reward /s)])
  const [line] = readFileSync(join(scratch, 'learned/metrics.jsonl'), 'utf8').split('\n')
  const { rewards } = JSON.parse(line)
  expect(rewards.byFunction.asked).toBe(1)
  expect(rewards.byFunction.short).toBeGreaterThan(-1)
  expect(rewards.reward).toBeCloseTo(1 + rewards.byFunction.short, 5)
  const page = readFileSync(join(scratch, 'learned/report.html'), 'utf8')
  for (const curve of ['Each reward', 'asked', 'short', 'deviation within a group', 'groups without a signal']) {
    expect(page).toContain(curve)
  }
  expect(readFileSync(join(scratch, 'learned/README.md'), 'utf8')).toContain('- task: grpo')
})

it('learns from graders, of which one asks a server', async () => {
  const keys: (string | undefined)[] = []
  const server = createServer((request, response) => {
    keys.push(request.headers.authorization)
    response.end('{"choices":[{"message":{"content":"{\\"steps\\":[],\\"result\\":0.5}"}}]}')
  })
  await new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => {
    server.close()
    vi.unstubAllEnvs()
  })
  const graders = [
    { type: 'string_check', name: 'sea', operation: 'like', input: '{{item.prompt}}', reference: 'sea' },
    { type: 'score_model', name: 'rated', model: 'm', input: [{ role: 'user', content: '{{sample.output_text}}' }] },
  ]
  vi.stubEnv('LOWRANK_GRADER_KEY', 'sesame')
  const models = `m=http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`
  const { code, stderr } = await train('graded', JSON.stringify(graders), 'graders.json', ['--grader-models', models])
  expect([code, stderr]).toEqual([0, expect.stringContaining('reward ')])
  const [line] = readFileSync(join(scratch, 'graded/metrics.jsonl'), 'utf8').split('\n')
  expect(JSON.parse(line).rewards.byFunction).toEqual({ sea: 0.5, rated: 0.5 })
  expect(new Set(keys)).toEqual(new Set(['Bearer sesame']))
  // run.json repeats the run, without the key, and TRL can go on with it.
  const run = readFileSync(join(scratch, 'graded/run.json'), 'utf8')
  expect(run).not.toContain('sesame')
  const [graded, again] = [join(scratch, 'graded'), join(scratch, 'again')]
  expect((await lowrank('train', '--config', join(graded, 'run.json'), '--out', again)).code).toBe(0)
  const [first, second] = [graded, again].map((folder) => readFileSync(join(folder, 'adapter_model.safetensors')))
  expect(first).toEqual(second)
  const handed = await lowrank('handoff', graded, '--to', 'trl', '--out', join(scratch, 'for-trl'))
  expect([handed.code, handed.stderr]).toEqual([1, expect.stringContaining('task grpo: it cannot be handed off')])
})

it.each([
  [
    'hangs',
    'export default function hang() { for (;;); }',
    /reward hang: it gave nothing within 3 seconds.*The text: "/,
  ],
  [
    'throws',
    'const broken = () => { throw new Error("no file") }; export default [broken]',
    /reward broken: it threw: no file/,
  ],
  ['is empty', 'export const nothing = 1', /no default export.*got no function/],
  [
    'chooses none',
    'export const mine = () => 1; export const helper = () => 2',
    /no default export.*got (mine, helper|helper, mine)\. .*chooses none\.mjs#/,
  ],
  ['is not there', 'import "./not-there.mjs"', /not-there/],
])('ends with a module that %s', async (name, module, message) => {
  const { code, stderr } = await train(name, module)
  expect([code, stderr]).toEqual([1, expect.stringMatching(message)])
  if (name === 'hangs') expect(existsSync(join(scratch, name, 'training-state.safetensors'))).toBe(true)
})

it('takes the functions that the option names, and says at the end that it learned nothing from equal rewards', async () => {
  writeFileSync(join(scratch, 'helpers.mjs'), 'export const same = () => true; export const helper = () => 2')
  const run = (name: string, functions: string) =>
    lowrank(
      ...['train', '--task', 'grpo', '--model', model, '--data', data, '--max-steps', '3', '--threads', '1'],
      ...['--task-options', 'numGenerations=2,maxCompletionLength=3', '--out', join(scratch, name)],
      ...['--rewards', `${join(scratch, 'helpers.mjs')}#${functions}`],
    )
  const { code, stderr } = await run('equal', 'same')
  expect(code).toBe(0)
  expect(stderr).toMatch(/Rewards: same\n.*in the first 3 steps no text was better/s)
  expect(stderr.trim()).toMatch(/warning: no text was better than another: nothing was learned$/)
  expect(readFileSync(join(scratch, 'equal/report.html'), 'utf8')).toContain('nothing was learned')
  expect((await run('misnamed', 'sane')).stderr).toMatch(/exports no function sane; got helper, same/)
})

it('is read by a program that Node got as a text, and does not keep it running', async () => {
  const file = join(scratch, 'length.mjs')
  writeFileSync(file, 'const length = ({ text }) => text.length; export default length')
  const program = `import { loadRewards } from ${JSON.stringify(new URL('../../../src/api/node/rewards.js', import.meta.url))}
    const [length] = await loadRewards(${JSON.stringify(file)})
    console.log(length.name, await length({ text: 'abc' }))`
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program])
  expect(stdout).toBe('length 3\n')
}, 20_000)
