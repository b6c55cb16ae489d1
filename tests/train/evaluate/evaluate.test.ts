// Evaluating a finished adapter gives the same numbers as the evaluation during training, for each kind of task.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Model } from '../../../src/api/node.js'
import { evaluateAdapters } from '../../../src/train/evaluate/evaluate-adapters.js'
import type { TrainInput } from '../../../src/train/options.js'
import { train } from '../../../src/train/train.js'
import { oneThread, openModel } from '../../run/models.js'
import { data, evalData } from '../tiny.js'

let decoder: Model
let encoder: Model
beforeAll(async () => {
  decoder = await openModel('tests/golden/models/llama-optimum')
  encoder = await openModel('tests/golden/text-classification/encoder')
})
afterAll(async () => {
  await decoder.close()
  await encoder.close()
})

const silent = { on: {}, threads: 1, resamples: 50 }

/** Trains for a few steps, and returns the adapter and the run's evaluation. */
async function trained(options: Pick<TrainInput, 'model' | 'data' | 'evalData' | 'task' | 'chatTemplate'>) {
  const { adapter, report } = await train({
    ...{ maxLength: 24, batchSize: 4, maxSteps: 2, learningRate: 2e-2, threads: 1, config: { rank: 4 } },
    ...options,
  })
  return { adapter, loss: report.evalLoss!, metrics: report.evalMetrics! }
}

describe('evaluation', () => {
  it('gives loss, perplexity and accuracy of base and adapter as training did', async () => {
    const run = await trained({ model: decoder, data: data.slice(0, 16), evalData })
    // JSON has no bigint, and the report has records as JSON.
    const numbered = evalData.map((record, i) => ({ ...record, id: BigInt(i) }))
    const report = await evaluateAdapters(decoder, { own: run.adapter }, numbered, { ...silent, maxLength: 24 })
    const [base, own] = report.models
    expect(report.differing[0].record).toMatch(/"id":"[0-3]"/)
    expect([report.task, report.records, base.name, own.name]).toEqual(['causal-lm', 4, null, 'own'])
    expect(base.metrics.loss.value).toBeCloseTo(run.loss.before, 5)
    expect(own.metrics.loss.value).toBeCloseTo(run.loss.after, 5)
    for (const [name, value] of Object.entries(run.metrics)) {
      expect(Math.abs(own.metrics[name].value - value), name).toBeLessThanOrEqual(1e-4 * value)
    }
    const { value, low, high } = own.differences!.loss
    expect(value).toBeCloseTo(run.loss.after - run.loss.before, 5)
    expect(low).toBeLessThanOrEqual(value)
    expect(high).toBeGreaterThanOrEqual(value)
    expect(report.differBy).toBe('loss')
    const gaps = report.differing.map(({ values: [a, b] }) => Math.abs(a - b))
    expect(gaps).toEqual([...gaps].sort((a, b) => b - a))
    expect(report.differing.every(({ where }) => /^data\[\d\]$/.test(where))).toBe(true)
  })

  it('computes attention in blocks for texts of more than 1,024 tokens alone', async () => {
    const graphs: Uint8Array[] = []
    const create: typeof oneThread.InferenceSession.create = (graph, options) => {
      graphs.push(graph)
      return oneThread.InferenceSession.create(graph, options)
    }
    const runtime = { module: { ...oneThread, InferenceSession: { create } } }
    const hasBlocks = async (words: number) => {
      graphs.length = 0
      const model = { ...decoder, runtime, contextLength: 2048 }
      await evaluateAdapters(model, {}, [{ text: 'the '.repeat(words) }], { ...silent, maxLength: 2048 })
      return graphs.some((graph) => Buffer.from(graph).includes('Scan'))
    }
    expect(await hasBlocks(1000)).toBe(false)
    expect(await hasBlocks(1100)).toBe(true)
  })

  it('gives the metrics of labels, and leaves out a base without a head', async () => {
    const rows = Array.from({ length: 12 }, (_, i) => {
      return { text: `${i % 3 === 0 ? 'a good' : 'the grim'} day ${i}`, label: i % 3 === 0 ? 'up' : 'down' }
    })
    const run = await trained({ model: encoder, data: rows, evalData: rows, task: 'text-classification' })
    const warnings: string[] = []
    const report = await evaluateAdapters(encoder, { own: run.adapter, twin: run.adapter }, rows.slice(0, 12), {
      ...{ ...silent, maxLength: 24, on: { warning: (message: string) => void warnings.push(message) } },
    })
    expect(report.task).toBe('text-classification')
    expect(report.models.map(({ name }) => name)).toEqual(['own', 'twin'])
    expect(warnings).toContain('the base is left out: it has no head for these labels')
    expect(report.models[0].metrics.loss.value).toBeCloseTo(run.loss.after, 5)
    for (const [name, value] of Object.entries(run.metrics)) {
      expect(report.models[0].metrics[name].value, name).toBeCloseTo(value, 5)
    }
    expect(report.models[1].differences!.accuracy).toEqual({ value: 0, low: 0, high: 0, isNoWorse: true })
    // Labels keep the adapter's order even if the data only has some of them.
    const some = rows.filter(({ label }) => label === 'up')
    const part = await evaluateAdapters(encoder, { own: run.adapter }, some, silent)
    expect(part.models[0].metrics.accuracy.value).toBeGreaterThanOrEqual(0)
    for (const more of [[], rows]) {
      const other = [{ text: 'a', label: 'x' }, ...more]
      await expect(evaluateAdapters(encoder, { own: run.adapter }, other, silent)).rejects.toThrow(
        /labels are not those of own; expected down, up, got "x"/,
      )
    }
  })

  it('gives rewards against the base, and ranks of partners', async () => {
    const pairs = ['sea', 'day', 'king'].map((word) => {
      return { prompt: `The ${word}`, chosen: ' was good.', rejected: ' was not there.' }
    })
    const preference = await trained({ model: decoder, data: pairs, evalData: pairs, task: 'dpo' })
    const rewards = await evaluateAdapters(decoder, { own: preference.adapter }, pairs, { ...silent, task: 'dpo' })
    expect(rewards.models[0].metrics.loss.value).toBeCloseTo(Math.log(2), 6)
    expect(rewards.models[0].metrics['rewards/margins'].value).toBe(0)
    for (const [name, value] of Object.entries(preference.metrics)) {
      expect(rewards.models[1].metrics[name].value, name).toBeCloseTo(value, 4)
    }
    const texts = ['the sea', 'a day', 'the king', 'rain'].map((text) => ({ text, textPair: `${text} is calm` }))
    const near = await trained({ model: encoder, data: texts, evalData: texts, task: 'embedding' })
    const ranks = await evaluateAdapters(encoder, { own: near.adapter }, texts, { ...silent, batchSize: 4 })
    expect(ranks.task).toBe('embedding')
    expect(ranks.models[1].metrics.loss).toMatchObject({ low: null, high: null })
    expect(ranks.models[1].metrics.loss.value).toBeCloseTo(near.loss.after, 4)
    for (const [name, value] of Object.entries(near.metrics)) {
      if (!name.startsWith('corpus')) expect(ranks.models[1].metrics[name].value, name).toBeCloseTo(value, 6)
    }
    expect(ranks.differBy).toBe('mrr')
  })

  it('gives chats the template of the training', async () => {
    const rows = [{ messages: ['user', 'assistant'].map((role) => ({ role, content: `I am the ${role}.` })) }]
    const chatTemplate = '{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}'
    const run = await trained({ model: decoder, data: rows, evalData: rows, chatTemplate })
    const report = await evaluateAdapters(decoder, { own: run.adapter }, rows, { ...silent, maxLength: 24 })
    expect(report.models[1].metrics.loss.value).toBeCloseTo(run.loss.after, 5)
  })

  it('compares what the models write with what is wanted', async () => {
    const rows = [
      { prompt: 'The sea', completion: ' was calm.' },
      { prompt: 'A day', completion: ' of rain.' },
    ]
    const run = await trained({ model: decoder, data: rows, evalData: rows })
    const settings = { ...silent, generate: true, maxNewTokens: 4 }
    const report = await evaluateAdapters(decoder, { own: run.adapter }, rows, settings)
    for (const { metrics } of report.models) {
      expect(Object.keys(metrics)).toEqual(expect.arrayContaining(['exactMatch', 'rougeL', 'chrF']))
    }
    expect(report.differing[0]).toMatchObject({ wanted: expect.stringMatching(/calm|rain/) })
    expect(report.differing[0].answers).toHaveLength(2)
    await expect(evaluateAdapters(decoder, {}, [{ text: 'The sea' }], settings)).rejects.toThrow(/no answer/)
  })
})
