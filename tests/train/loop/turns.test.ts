// Turns: a function answers texts, the model goes on, and nothing of an answer is learned.

import { afterAll, beforeAll, expect, it, onTestFinished } from 'vitest'
import {
  ConfigError,
  loadModel,
  type Model,
  type OnTurn,
  openTrainer,
  type RewardInput,
  RuntimeError,
  type Sample,
} from '../../../src/api/node.js'
import { grpoLoss } from '../../../src/train/loop/grpo-loss.js'
import type { Trainer } from '../../../src/train/loop/trainer.js'
import { takeTurns } from '../../../src/train/loop/turns.js'
import { train } from '../../../src/train/train.js'
import { folder, module } from '../tiny.js'

let model: Model
let trainer: Trainer
let open: Sample
let ended: Sample
beforeAll(async () => {
  model = await loadModel(folder, { runtime: { module } })
  trainer = await openTrainer(model, { config: { rank: 2 }, threads: 1 })
  const [[first], [second]] = await trainer.sample(['And the people', 'The sea'], { maxNewTokens: 4, seed: 1 })
  open = first
  ended = { ...second, finish: 'eos' }
})
afterAll(async () => {
  await trainer.dispose()
  await model.close()
})

const row = { prompt: 'The sea' }
const about = Array(2).fill({ prompt: 'The sea', messages: undefined, answer: undefined, row })
const options = { maxTokens: 20, temperature: 0.7, topP: 1, seed: 5, seconds: 5 }
const once: OnTurn = ({ turns }) => (turns!.length === 0 ? ' yes, ' : undefined)

it('go on after the answer, which has no weight', async () => {
  const asked: unknown[] = []
  const onTurn: OnTurn = (input) => {
    asked.push(input)
    return once(input)
  }
  const [untouched, { sample, turns }] = await takeTurns(trainer, [open, ended], about, onTurn, options)
  expect(untouched).toEqual({ sample: open, turns: [] })
  expect(asked).toEqual([{ ...about[0], text: ended.text, turns: [] }])
  expect(turns).toEqual([{ text: ended.text, reply: ' yes, ' }])
  const reply = model.tokenizer!.encode(' yes, ', { specialTokens: false })
  const start = ended.ids.length
  const end = start + reply.length
  expect([...sample.ids.subarray(0, end)]).toEqual([...ended.ids, ...reply])
  expect(sample.ids.length).toBe(ended.promptTokens + 20)
  expect(sample.text).toBe(model.tokenizer!.decode([...sample.ids.subarray(end)]))
  const weights = [...sample.weights]
  expect(weights).toEqual([...ended.weights, ...reply.map(() => 0), ...weights.slice(end).map(() => 1)])

  const examples = [{ ...sample, advantages: 1 }]
  const { logprobs } = await trainer.forwardBackward(examples, { loss: grpoLoss({}), temperature: 0.7 })
  for (let i = start; i < sample.ids.length; i++)
    expect(Math.abs(logprobs[0][i] - sample.logprobs[i])).toBeLessThan(1e-4)
  expect([...logprobs[0].subarray(start, end)]).toEqual(reply.map(() => 0))
  expect(logprobs[0].subarray(end).every((value) => value < 0)).toBe(true)
})

it('are messages in a chat, between the end of the turn and the next', async () => {
  const chatTemplate =
    '{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}'
  const reply = [{ role: 'tool', content: '42' }]
  const eos = model.eosTokenIds[0]
  const ids = Int32Array.from([...ended.ids, eos])
  const one = (values: Float32Array) => Float32Array.from([...values, 1])
  const turn = { ...ended, ids, weights: one(ended.weights), logprobs: one(ended.logprobs) }
  const onTurn: OnTurn = ({ turns }) => (turns!.length === 0 ? reply : undefined)
  const more = { ...options, maxTokens: 60, chatTemplate }
  const [{ sample }] = await takeTurns(trainer, [turn], about, onTurn, more)
  const after = model.tokenizer!.decode([...sample.ids.subarray(ids.length)])
  expect(after.startsWith('[tool]42')).toBe(true)
  expect(after.slice(0, 40)).toContain('[assistant]')
  expect(sample.ids[ids.length - 1]).toBe(eos)
  expect(sample.ids[ids.length]).not.toBe(eos)
})

it('end without an answer that has no room', async () => {
  const [{ sample, turns }] = await takeTurns(trainer, [ended], about, once, { ...options, maxTokens: 5 })
  expect([sample, turns]).toEqual([ended, []])
})

it.each([
  [
    'hangs',
    () => new Promise<never>(() => {}),
    RuntimeError,
    /onTurn: it gave nothing within 0.05 seconds.*"The sea".*The text: "/,
  ],
  [
    'throws',
    () => {
      throw new Error('no tool')
    },
    RuntimeError,
    /onTurn: it threw: no tool.*The text: "/,
  ],
  ['gives a number', () => 5 as unknown as string, ConfigError, /onTurn: not an answer.*got 5/],
] as const)('end the run if the function %s', async (_, onTurn, error, message) => {
  const caught = await takeTurns(trainer, [ended], about, onTurn, { ...options, seconds: 0.05 }).catch((e) => e)
  expect(caught).toBeInstanceOf(error)
  expect(caught.message).toMatch(message)
})

it('reach the rewards of a run', async () => {
  const inputs: RewardInput[] = []
  const judge = (input: RewardInput) => inputs.push(input)
  const { eosTokenIds } = model
  // Half of all tokens end a text.
  Object.assign(model, { eosTokenIds: Array.from({ length: model.vocabularySize! / 2 }, (_, i) => 2 * i) })
  onTestFinished(() => void Object.assign(model, { eosTokenIds }))
  const taskOptions = { numGenerations: 2, maxCompletionLength: 40 }
  const given = { model, data: [row], rewards: [judge], onTurn: once, taskOptions, task: 'grpo' as const }
  await train({ ...given, batchSize: 1, maxSteps: 1, threads: 1, config: { rank: 2 } })
  for (const { turns } of inputs) expect(turns).toEqual([{ text: expect.any(String), reply: ' yes, ' }])
  expect(inputs.map(({ tokens }) => tokens < 40)).toEqual([true, true])
})
