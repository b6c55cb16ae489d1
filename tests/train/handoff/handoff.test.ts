// Handing off: rows and settings; that TRL's losses and weights, which scripts/golden/handoff.py measured, are
// those of lowrank; and that the adapter that comes back goes on here.

import { readFileSync } from 'node:fs'
import { loadAdapter, loadModel, MemoryDirectory, openSession, type TrainOptions, train } from 'lowrank'
import { handoff } from 'lowrank/handoff'
import { beforeAll, describe, expect, it } from 'vitest'
import { parse } from 'yaml'
import { loadChatTemplate } from '../../../src/model/text/chat-template.js'
import { enginesHere } from '../../engines-here.js'
import { goldenPath } from '../../golden.js'
import { THOROUGH } from '../../thorough.js'

interface Golden {
  first: { input_ids: number[][]; labels?: number[][]; KL_input_ids?: number[][] }
  losses: number[]
  weights: Record<string, number[]>
}

const read = (name: string) => JSON.parse(readFileSync(goldenPath('handoff', name), 'utf8'))
const cases: Record<string, TrainOptions> = read('cases.json')
const golden: Record<string, Golden> & { logits: number[] } = read('golden.json')
const MODEL = 'models/union-3m'

beforeAll(enginesHere)

async function handed(options: TrainOptions, more: { rows?: 'records' } = {}) {
  const out = new MemoryDirectory()
  const report = await handoff(options, { to: 'trl', out, ...more })
  const text = (name: string) => new TextDecoder().decode(out.files.get(name))
  const rows = text('data/train.jsonl')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  return { out, report, text, rows, settings: parse(text(report.settings), { version: '1.1' }) }
}

/** Rows without the padding of a batch. */
const unpadded = (rows: number[][], labels: number[][]) =>
  rows.map((row, i) => {
    const end = labels[i].findLastIndex((label) => label !== -100) + 1
    return { input_ids: row.slice(0, end), labels: labels[i].slice(0, end) }
  })

const trained = Object.keys(cases)

/** One with each optimizer and loss. */
const compared = THOROUGH ? trained : ['warm', 'accumulated', 'preferences']

describe('a run', () => {
  it.each(compared)('of %s has the losses and the weights that TRL comes to', async (name) => {
    const { adapter, report } = await train(cases[name])
    report.trainLoss.forEach((loss, step) => void expect(Math.abs(loss - golden[name].losses[step])).toBeLessThan(1e-4))
    const layers = Object.entries(golden[name].weights).filter(([key]) => /lora_[AB]/.test(key))
    expect(layers.length).toBe(2 * adapter.size)
    for (const [key, wanted] of layers) {
      const [, module, half] = /^base_model\.model\.(.+)\.lora_([AB])\.weight$/.exec(key)!
      const layer = adapter.parts('linear').find((part) => part.name === module)!
      const { data } = half === 'A' ? layer.weightA : layer.weightB
      wanted.forEach((value, i) => void expect(Math.abs(value - data[i])).toBeLessThan(1e-4))
    }
  })

  const generic = trained.filter((name) => cases[name].task === undefined)
  it.each(generic)('of %s is handed off with the tokens and labels of TRL’s first batch', async (name) => {
    const { rows, report } = await handed(cases[name])
    const { input_ids, labels } = golden[name].first
    expect(rows.slice(0, input_ids.length)).toEqual(unpadded(input_ids, labels!))
    expect(report).toMatchObject({ rows: 20, steps: 5, settings: 'sft.yaml' })
  })
})

it('KTO has TRL’s first batch, answers of other rows too, and the order of the data', async () => {
  const { settings, rows, report } = await handed(cases.judged)
  expect(rows[1]).toEqual((cases.judged.data as unknown[])[1])
  expect(report).toMatchObject({ rows: 12, settings: 'kto.yaml' })
  expect(settings).toMatchObject({ beta: 0.2, desirable_weight: 1.1, undesirable_weight: 0.3, loss_type: 'kto' })
  expect(settings).toMatchObject({ train_sampling_strategy: 'sequential', per_device_train_batch_size: 2 })
  expect(report.differences.join()).toMatch(/KL term/)
  const model = await loadModel(MODEL)
  const { input_ids, KL_input_ids } = golden.judged.first
  const { prompt, completion } = Object.fromEntries(
    ['prompt', 'completion'].map((key) => [key, rows.slice(0, 2).map((row) => row[key])]),
  )
  const ids = (i: number, j: number) => [
    ...model.tokenizer!.encode(`${prompt[i]}${completion[j]}`),
    model.eosTokenIds[0],
  ]
  const cut = (row: number[], like: number[]) => row.slice(0, like.length)
  for (const [i, row] of input_ids.entries()) expect(cut(row, ids(i, i))).toEqual(ids(i, i))
  for (const [i, row] of KL_input_ids!.entries()) expect(cut(row, ids(i, 1 - i))).toEqual(ids(i, 1 - i))
  await model.close()
})

describe('the folder', () => {
  it('has every setting, the adapter, and the command', async () => {
    const { settings, text, out, report } = await handed(cases.warm)
    expect(settings).toMatchObject({ max_steps: 5, learning_rate: 3e-4, adam_epsilon: 1e-8, eval_strategy: 'no' })
    expect(settings).toMatchObject({ warmup_steps: 2, train_sampling_strategy: 'sequential', lora_r: 2, seed: 3 })
    expect(settings).not.toHaveProperty('label_smoothing')
    expect(report.differences.join()).toMatch(/starts a new adapter/)
    expect(text('README.md')).toContain('trl sft --config sft.yaml')
    expect([...out.files.keys()].filter((name) => name.endsWith('.py'))).toEqual([])
    const adapter = new MemoryDirectory()
    for (const [name, bytes] of out.files)
      if (name.startsWith('adapter/')) adapter.files.set(name.slice('adapter/'.length), bytes)
    expect((await loadAdapter(adapter)).size).toBe(12)
  })

  it('has records, and a template that marks answers, where these are asked for', async () => {
    const { rows, settings, text } = await handed(cases.dora, { rows: 'records' })
    expect(rows[0].messages.at(-1).role).toBe('assistant')
    expect(settings).toMatchObject({ assistant_only_loss: true, chat_template_path: 'chat_template.jinja' })
    const [own, marked] = await Promise.all(
      [cases.dora.chatTemplate, text('chat_template.jinja')].map((jinja) =>
        loadChatTemplate(new MemoryDirectory(), jinja),
      ),
    )
    const chat = [
      { role: 'user', content: 'Who?' },
      { role: 'assistant', content: 'Ahab.' },
      { role: 'user', content: 'Where?' },
    ]
    for (const addGenerationPrompt of [false, true]) {
      const options = { addGenerationPrompt }
      expect(marked!.render(chat, options, 'chat').text).toBe(own!.render(chat, options, 'chat').text)
    }
    const { generated, text: all } = marked!.render(chat, {}, 'chat')
    expect(generated.map(({ start, end }) => all.slice(start, end))).toEqual(['Ahab.<|eos|>\n'])
  })

  it('refuses records of chats that TRL would cut elsewhere', async () => {
    const turns = (length: number) =>
      Array(length).fill([
        { role: 'user', content: 'Who?' },
        { role: 'assistant', content: 'Ahab.' },
      ])
    const { model, chatTemplate } = cases.dora
    const run = (length: number) => ({ model, chatTemplate, maxLength: 32, data: [{ messages: turns(length).flat() }] })
    await expect(handed(run(9), { rows: 'records' })).rejects.toThrow(/rows: chats longer than maxLength: 1\./)
    expect((await handed(run(9))).rows).toHaveLength(1)
    expect((await handed(run(1), { rows: 'records' })).rows).toHaveLength(1)
  })

  it.each([
    [{ task: 'seq2seq' }, 'encoder'],
    [{ taskOptions: { beta: 1 } }, 'beta'],
    [{ task: 'text-classification', data: ['x', 'y'].map((label) => ({ text: 'a', label })) }, 'cannot be handed off'],
    [{ task: 'grpo', rewards: [() => 1] }, 'task grpo: it cannot be handed off; expected causal-lm, dpo, kto'],
    [{ loraPlusRatio: 16 }, 'trl sft has nothing for LoRA+ (B learns 16 times as fast)'],
    [{ config: { rankPattern: { q_proj: 3 }, bias: 'all' } }, 'rank_pattern, trained biases'],
    [{ config: { init: 'orthogonal', rank: 2 }, evalSplit: 0.2, earlyStopping: 1, keep: 'best' }, 'early stopping'],
    [{ ...cases.preferences, taskOptions: { labelSmoothing: 0.1 } }, 'trl dpo has nothing for labelSmoothing'],
    [{ adapter: goldenPath('handoff', 'back'), config: undefined }, 'the values of the adapter that it goes on with'],
  ] as const)('refuses %o', async (more, words) => {
    await expect(handed({ ...cases.warm, ...more } as TrainOptions)).rejects.toThrow(words)
  })
})

describe('the adapter that comes back', () => {
  const back = goldenPath('handoff', 'back')
  let logits: Float32Array

  beforeAll(async () => {
    const session = await openSession(MODEL, { adapters: { back } })
    const ids = { type: 'int64', data: BigInt64Array.from([0n, 35n, 274n, 630n]), dims: [1, 4] } as const
    const mask = { type: 'int64', data: BigInt64Array.from([1n, 1n, 1n, 1n]), dims: [1, 4] } as const
    const outputs = await session.run({ input_ids: ids, attention_mask: mask }, { adapter: 'back' })
    const { data, dims } = outputs.logits
    logits = (data as Float32Array).slice(-dims.at(-1)!)
    await session.dispose()
  })

  it('gives PEFT’s logits', () => {
    golden.logits.forEach((value, i) => void expect(Math.abs(value - logits[i])).toBeLessThan(1e-3))
  })

  it('is trained further, and is no run to resume', async () => {
    const { data } = cases.warm
    const options = { model: MODEL, data, adapter: back, batchSize: 2, maxSteps: 1, warmupRatio: 0 }
    const { adapter, report } = await train(options)
    expect(report).toMatchObject({ steps: 1, trainLoss: [expect.any(Number)] })
    const [own] = adapter.parts('linear')
    const before = (await loadAdapter(back)).get(own.name)!
    expect(own.weightB.data).not.toEqual('weightB' in before && before.weightB.data)
    await expect(train({ model: MODEL, data, out: back, resume: true })).rejects.toThrow('no unfinished run')
  })
})
