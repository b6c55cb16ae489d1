// Training models of texts and pictures on chats with pictures gives PEFT's loss, gradients and steps.

import { readFileSync } from 'node:fs'
import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  type LoraAdapter,
  loadAdapter,
  loadModel,
  MemoryDirectory,
  type Model,
  type Prompt,
  type RgbImage,
} from '../../../src/api/node.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { evaluateAdapters } from '../../../src/train/evaluate/evaluate-adapters.js'
import { joinGraphs } from '../../../src/train/graph/joined-graph.js'
import { checkRecords } from '../../../src/train/rows/check.js'
import { encodeRows } from '../../../src/train/rows/examples.js'
import { causalLm } from '../../../src/train/tasks/causal-lm.js'
import { type PicturedExample, PictureEncoder } from '../../../src/train/tasks/pictures/encoder.js'
import type { Task } from '../../../src/train/tasks/task.js'
import { train } from '../../../src/train/train.js'
import { goldenPath } from '../../golden.js'
import { cases } from '../../thorough.js'
import { checkGoldenRun, type GoldenRun } from './golden-run.js'

interface Golden extends GoldenRun {
  readonly chatTemplate: string
  readonly rows: { messages: object[]; images: string[] }[]
  readonly pictures: Record<string, { width: number; height: number; data: string }>
  readonly inputIds: number[][]
  readonly labels: number[][]
}

const runtime = { module: ort }
const open = (name: string) =>
  loadModel(goldenPath(name === 'gemma3' ? 'picture-training' : 'graphs', name), { runtime })

function goldenOf(name: string) {
  const folder = goldenPath('picture-training', name)
  const golden: Golden = JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8'))
  const picture = (key: string): RgbImage => {
    const { data, width, height } = golden.pictures[key]
    return { data: new Uint8Array(Buffer.from(data, 'base64')), width, height }
  }
  const rows = golden.rows.map((row) => ({ ...row, images: row.images.map(picture) }))
  return { folder, golden, rows, picture }
}

describe.each(cases(['llava', 'qwen2-vl'], ['idefics3', 'gemma3']))('%s', (name) => {
  it('has the tokens of its processor, and PEFT’s loss, gradients and steps', async () => {
    const { folder, golden, rows } = goldenOf(name)
    const model = await joinGraphs(await open(name))
    const pictures = new PictureEncoder({ model })
    const { chatTemplate } = golden
    const options = { task: causalLm as unknown as Task, model, name: 'data', chatTemplate, pictures }
    const examples = [...(await encodeRows(readRows(rows), options)).kept.examples] as PicturedExample[]
    expect(examples.map(({ inputIds }) => [...inputIds])).toEqual(golden.inputIds)
    expect(examples.map(({ labels }) => [...labels])).toEqual(golden.labels)
    const task = causalLm.open(model, examples)
    await task.prepare?.(examples)
    const length = Math.max(...golden.inputIds.map((ids) => ids.length))
    await checkGoldenRun(model, task, examples, { folder, golden, length })
    await pictures.close()
    await model.close()
  })
})

describe('a run', () => {
  const { rows, picture, golden } = goldenOf('idefics3')
  const decodeImage = (file: string | Uint8Array) => picture(String(file).replace('.png', ''))
  const files = golden.rows.map((row) => ({ ...row, images: row.images.map((image) => `${image}.png`) }))
  const settings = { maxSteps: 4, batchSize: 2, learningRate: 0.02, config: { rank: 4 }, decodeImage }
  let model: Model
  beforeAll(async () => {
    model = await open('idefics3')
  })
  afterAll(() => model.close())

  it('reads files of pictures, learns, and is resumed to the same bytes; the adapter is PEFT’s, and writes', async () => {
    const whole = new MemoryDirectory()
    const { adapter, report } = await train({ model, data: files, evalData: files, ...settings, out: whole })
    expect(report.evalLoss!.after).toBeLessThan(report.evalLoss!.before - 0.5)
    const config = JSON.parse(new TextDecoder().decode(whole.files.get('adapter_config.json')!))
    expect(adapter.names()).toContain('model.text_model.layers.0.self_attn.q_proj')
    // PEFT matches the ends of names, so the targets must not match layers of the vision encoder.
    expect(config.target_modules.every((one: string) => one.startsWith('model.text_model.layers.0.'))).toBe(true)
    expect(config.task_type).toBeNull()

    const parted = new MemoryDirectory()
    const controller = new AbortController()
    const on = { step: ({ step }: { step: number }) => void (step === 2 && controller.abort()) }
    await train({ model, data: files, evalData: files, ...settings, out: parted, on, signal: controller.signal })
    const other = files.map((row) => ({ ...row, images: row.images.map(() => 'other.png') }))
    const again = train({ model, data: other, evalData: files, ...settings, out: parted, resume: true })
    await expect(again).rejects.toThrow(/started with another data/)
    const resumed = await train({ model, data: files, evalData: files, ...settings, out: parted, resume: true })
    const factors = (one: LoraAdapter) =>
      one.parts('linear').map(({ weightA, weightB }) => [weightA.data, weightB.data])
    expect(factors(resumed.adapter)).toEqual(factors(adapter))

    const session = await ModelSession.open(model, { adapters: { own: await loadAdapter(whole) } })
    const { messages, images } = rows[0]
    const [answer] = await session.generate([messages.slice(0, -1) as unknown as Prompt], {
      ...{ adapter: 'own', images: [images], temperature: 0, maxNewTokens: 4 },
    })
    expect(answer.text.trim()).not.toBe('')
    await session.dispose()
    const options = { generate: true, maxNewTokens: 3, decodeImage, on: {} }
    const { models } = await evaluateAdapters(model, { own: adapter }, files, options)
    expect(models[1].metrics.loss.value).toBeCloseTo(report.evalLoss!.after, 4)
  })

  it('checks data, with and without the model', async () => {
    const data = [...files, { ...files[0], images: [] }, { ...files[0], image: 'a.png', images: null }]
    for (const own of [{ model, decodeImage }, {}]) {
      const { records, invalid, lengths } = await checkRecords({ data, ...own })
      expect([records, invalid.length]).toEqual('model' in own ? [3, 2] : [4, 1])
      expect(invalid[0].message).toMatch(/places for pictures is not the number.*expected 0 times.*got 1/s)
      expect(lengths!.unit).toBe('model' in own ? 'tokens' : 'characters')
    }
  })

  const chat = (content: unknown) => [
    { role: 'user', content },
    { role: 'assistant', content: 'the sea' },
  ]
  it.each([
    ['a text', { text: 'the sea', images: ['a.png'] }, {}, /pictures beside a text/],
    ['no picture', { messages: chat([{ type: 'image' }]), images: [3] }, {}, /image 1: not a picture/],
    ['a row for several', files[0], { packing: true }, /packing: records with pictures/],
    ['a vision tower', files[0], { config: { targetModules: ['k_proj', 'fc1'] } }, /fc1 is in the vision encoder/],
    ['an expression', files[0], { config: { targetModules: '.*vision_model.*q_proj' } }, /is in the vision encoder/],
    ['a part of another kind', { messages: chat([{ type: 'video' }]) }, {}, /content that is not text/],
  ])('refuses %s', async (_, row, options, message) => {
    await expect(train({ model, task: 'causal-lm', data: [row], ...settings, ...options })).rejects.toThrow(message)
  })

  it('refuses pictures for a model of texts', async () => {
    const texts = await loadModel('models/union-3m', { runtime })
    await expect(train({ model: texts, data: files, ...settings })).rejects.toThrow(
      /pictures beside texts are not read here/,
    )
    await texts.close()
  })

  it('takes pictures from questions, from parts, and in the first question; long chats lose theirs with their turns', async () => {
    const joined = await joinGraphs(model)
    const pictures = new PictureEncoder({ model: joined, decodeImage })
    const encode = async (row: object, maxLength?: number) => {
      const options = { task: causalLm as unknown as Task, model: joined, name: 'data', pictures, maxLength }
      return [...(await encodeRows(readRows([row]), options)).kept.examples] as PicturedExample[]
    }
    const [first] = await encode(files[0])
    const part = { type: 'text', text: 'What is this' }
    for (const row of [
      { question: part.text, answer: 'the sea', image: 'wide.png' },
      { messages: chat(part.text), images: ['wide.png'] },
      { messages: chat([{ type: 'image', image: 'wide.png' }, part]) },
    ]) {
      const [own] = await encode(row)
      expect(own.inputIds).toEqual(first.inputIds)
      expect(own.pictures!.list.map(({ digest }) => digest)).toEqual(first.pictures!.list.map(({ digest }) => digest))
    }
    const messages = [...chat([{ type: 'image' }, part]), ...chat([part, { type: 'image' }])]
    const row = { messages, images: ['wide.png', 'high.png'] }
    const digests = (examples: PicturedExample[]) => examples.map(({ pictures }) => pictures!.list.length)
    const [both] = await encode(row)
    const parts = await encode(row, both.inputIds.length - 1)
    expect([digests([both]), digests(parts)]).toEqual([[2], [1]])
    const [alone] = await encode({ messages: messages.slice(2), images: ['high.png'] })
    expect(parts[0].inputIds).toEqual(alone.inputIds)
    expect(parts[0].pictures!.list[0].digest).toEqual(alone.pictures!.list[0].digest)
    await pictures.close()
  })
})
