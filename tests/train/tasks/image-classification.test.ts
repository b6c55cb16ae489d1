// Image classification with ViT and DINOv2: PEFT's loss, logits and gradients, in training, sessions and merges.

import { readFileSync } from 'node:fs'
import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  DataError,
  LoraAdapter,
  loadAdapter,
  loadModel,
  MemoryDirectory,
  type Model,
  UnsupportedError,
} from '../../../src/api/node.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { merge } from '../../../src/merge/merge.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { encodeRows } from '../../../src/train/rows/examples.js'
import { type ImageExample, imageClassification } from '../../../src/train/tasks/image-classification.js'
import type { Task } from '../../../src/train/tasks/task.js'
import { train as trainAdapter } from '../../../src/train/train.js'
import { relativeError } from '../../model/golden.js'
import { checkGoldenRun, type GoldenRun } from './golden-run.js'

const folder = 'tests/golden/image-classification'
const runtime = { module: ort }

interface Golden extends GoldenRun {
  rows: { image: { data: number[]; width: number; height: number }; label: string }[]
  labels: string[]
  logits: number[][]
}

const open = (name: string) => loadModel(`${folder}/${name}`, { runtime })

describe.each(['vit', 'dinov2'])('%s', (name) => {
  const golden: Golden = JSON.parse(readFileSync(`${folder}/${name}/golden/golden.json`, 'utf8'))
  const { rows, labels } = golden
  const images = rows.map(({ image }) => image)
  let model: Model
  beforeAll(async () => {
    model = await open(name)
  })
  afterAll(() => model.close())

  async function peft() {
    const adapter = await loadAdapter(`${folder}/${name}/golden/adapter-init`)
    adapter.labels = labels
    return adapter
  }

  it("gives PyTorch's and PEFT's loss, logits and gradients, and takes their steps", async () => {
    const options = { task: imageClassification as unknown as Task, model, name: 'data' }
    const examples = [...(await encodeRows(readRows(rows), options)).kept.examples] as ImageExample[]
    const task = imageClassification.open(model, examples)
    expect(task.labels).toEqual(labels)
    const run = { folder: `${folder}/${name}/golden`, golden, length: 1 }
    const { logits } = await checkGoldenRun(model, task, examples, run)
    expect(relativeError(logits.data as Float32Array, golden.logits.flat())).toBeLessThan(1e-5)
  })

  it('counts patches where memory does not last, and gives no advice for texts', async () => {
    const [warnings, notes]: string[][] = [[], []]
    const used = [
      { anonymous: 5, mapped: 1 },
      { anonymous: 3, mapped: 2 },
    ]
    const run = { model, task: 'image-classification', data: rows, batchSize: 4, maxSteps: 2, threads: 1 } as const
    const limits = [{ bytes: 1000, of: 'this machine has free' }]
    const on = { warning: (line: string) => void warnings.push(line), note: (line: string) => void notes.push(line) }
    const { report } = await trainAdapter({ ...run, on }, { limits, memoryUse: () => used.pop() })
    expect(notes).toEqual([
      expect.stringMatching(/^Of the weights \(\d+ MB\), none are copied .*\. `memory: 'fast'` copies all/),
    ])
    expect(report.memory).toEqual({ anonymous: 5, mapped: 2 })
    await trainAdapter({ ...run, maxSteps: 1, memory: 'fast', on }, { limits })
    expect(notes.length).toBe(1)
    const { image_size: size, patch_size: patch } = model.config as { image_size: number; patch_size: number }
    const [warning] = warnings.filter((message) => message.includes('of memory'))
    expect(warning).toMatch(`Training with 4 records of ${(size / patch) ** 2 + 1} tokens in a batch needs about`)
    expect(warning).not.toMatch('maxLength')
  })

  it('learns, and saves what PEFT reads', async () => {
    const out = new MemoryDirectory()
    const { adapter, report } = await trainAdapter({
      model,
      task: 'image-classification',
      data: rows,
      evalData: rows,
      batchSize: 4,
      epochs: 25,
      learningRate: 2e-2,
      threads: 1,
      config: { rank: 3 },
      out,
    })
    expect(report.trainLoss.at(-1)).toBeLessThan(report.trainLoss[0] / 2)
    expect(report.evalMetrics).toMatchObject({ accuracy: 1, f1: 1 })
    const config = JSON.parse(new TextDecoder().decode(out.files.get('adapter_config.json')))
    expect(config).toMatchObject({ task_type: null, modules_to_save: ['classifier'] })
    expect(adapter.names()).toContain(`${name}.encoder.layer.0.attention.attention.query`)
    expect((await loadAdapter(out)).labels).toEqual(labels)
  })

  it('has a learning rate of its own, which run.json has too, and the preset peft has another', async () => {
    const rateOf = async (options: object) => {
      const out = new MemoryDirectory()
      const rates: number[] = []
      await trainAdapter(
        {
          ...{
            model,
            task: 'image-classification',
            data: rows,
            batchSize: 4,
            maxSteps: 1,
            warmupRatio: 0,
            threads: 1,
            out,
          },
          ...{ on: { step: ({ learningRate }: { learningRate: number }) => void rates.push(learningRate) } },
          ...options,
        },
        { sources: { model: 'a-model', data: 'a-file' } },
      )
      const { learningRate, loraPlusRatio } = JSON.parse(new TextDecoder().decode(out.files.get('run.json')))
      expect(rates).toEqual([learningRate])
      return { learningRate, loraPlusRatio }
    }
    expect(await rateOf({})).toEqual({ learningRate: 1e-3, loraPlusRatio: 16 })
    // The only step of a run without warm-up.
    expect(await rateOf({ preset: 'peft', config: { targetModules: 'all-linear' } })).toEqual({ learningRate: 5e-5 })
    expect(await rateOf({ learningRate: 3e-4 })).toEqual({ learningRate: 3e-4 })
  })

  it('takes the adapter by the names of the other version of transformers, and of the part without its head', async () => {
    const adapter = await peft()
    const renamed = (around: string) => {
      const own = new LoraAdapter(adapter.config)
      for (const { name: module, weightA, weightB } of adapter.parts('linear')) {
        const last = module
          .replace(`${name}.`, around)
          .replace(name === 'vit' ? 'encoder.layer.' : '?', 'layers.')
          .replace(/attention\.attention\.(q|k|v)\w+$/, 'attention.$1_proj')
          .replace(/attention\.output\.dense$/, 'attention.o_proj')
          .replace(/(\.\d+)\.intermediate\.dense$/, '$1.mlp.fc1')
          .replace(/(\.\d+)\.output\.dense$/, '$1.mlp.fc2')
        own.addFactors(last, weightA, weightB)
      }
      for (const { name: tensor, weight } of adapter.parts('replacement')) own.addReplacement(tensor, weight)
      return own
    }
    const session = await ModelSession.open(model, { adapters: { own: renamed(`${name}.`), part: renamed('') } })
    for (const each of ['own', 'part']) {
      const [{ logits }] = await session.classify(images.slice(0, 1), { adapter: each })
      expect(relativeError(logits, golden.logits[0])).toBeLessThan(1e-5)
    }
    await session.dispose()
  })

  it("gives PEFT's logits in sessions, and in a merged graph", async () => {
    const adapter = await peft()
    const session = await ModelSession.open(model, { adapters: { peft: adapter } })
    for (const batchSize of [1, 4]) {
      const found = await session.classify(images, { adapter: 'peft', batchSize, topK: 3 })
      found.forEach(({ logits }, i) => void expect(relativeError(logits, golden.logits[i])).toBeLessThan(1e-5))
      expect(found[0].labels.map(({ label }) => label).sort()).toEqual(labels)
    }
    await expect(session.classify(images[0])).rejects.toThrow(UnsupportedError)
    await session.dispose()
    const out = new MemoryDirectory({}, 'out')
    await merge({ base: { directory: new NodeDirectory(`${folder}/${name}`) }, adapters: adapter, out })
    const config = JSON.parse(new TextDecoder().decode(out.files.get('config.json')))
    expect(config.architectures).toEqual([
      name === 'vit' ? 'ViTForImageClassification' : 'Dinov2ForImageClassification',
    ])
    expect(config.id2label).toEqual(Object.fromEntries(labels.entries()))
    expect(out.files.has('preprocessor_config.json')).toBe(true)
    const merged = await loadModel(out, { runtime })
    const own = await ModelSession.open(merged)
    const { logits } = await own.classify(images[2])
    expect(relativeError(logits, golden.logits[2])).toBeLessThan(1e-5)
    await own.dispose()
    await merged.close()
  })
})

describe('rows', () => {
  let model: Model
  beforeAll(async () => {
    model = await open('vit-classifier')
  })
  afterAll(() => model.close())
  const black = { data: new Uint8Array(64 * 3), width: 8, height: 8 }
  const train = (data: object[], options: object = {}) =>
    trainAdapter({ model, task: 'image-classification', data: data as never, maxSteps: 1, threads: 1, ...options })

  it('may name files, which a function reads', async () => {
    const read: unknown[] = []
    const decodeImage = (file: string | Uint8Array) => {
      read.push(file)
      return { ...black, data: black.data.map(() => (file === 'b.png' ? 255 : 0)) }
    }
    const bytes = Uint8Array.of(1)
    const data = [
      { image: 'a.png', label: 'red' },
      { image: 'b.png', label: 'blue' },
      { image: { bytes, path: null }, label: 'red' },
    ]
    const { report, adapter } = await train(data, { decodeImage })
    expect(read).toEqual(['a.png', 'b.png', bytes])
    // The graph has a head with these labels.
    expect(report.labels).toEqual(['blue', 'green', 'red'])
    expect(adapter.get('classifier.weight', 'replacement')?.shape).toEqual([3, 16])
  })

  it.each([
    [{ image: 'a.png' }, /data\[1\]: not a picture with a label.*image/s],
    [{ image: 3, label: 'x' }, /not a picture with a label/],
    [{ text: 'a', label: 'x' }, /not a picture with a label.*"text" \(string\), "label" \(string\)/s],
    [{ image: { data: [1], width: 3, height: 3 }, label: 'red' }, /data\[1\], image: not a picture/],
    [{ image: 'broken.png', label: 'red' }, /data\[1\], image, broken\.png: the picture cannot be read \(no PNG\)/],
  ])('are refused: %j', async (row, message) => {
    const decodeImage = () => {
      throw new Error('no PNG')
    }
    const training = train([{ image: black, label: 'blue' }, row], { decodeImage })
    await expect(training).rejects.toThrow(DataError)
    await expect(training).rejects.toThrow(message)
  })

  it('of evaluation have no labels of their own', async () => {
    const data = [
      { image: black, label: 'blue' },
      { image: black, label: 'red' },
    ]
    const evalData = [{ image: black, label: 'violet' }]
    await expect(train(data, { evalData })).rejects.toThrow(/evalData\[0\], label: no record.*"violet"/s)
  })
})

it('is for models that read pictures, whose files tell how', async () => {
  const [text, vit] = [await loadModel('tests/golden/text-classification/encoder', { runtime }), await open('vit')]
  expect(() => imageClassification.check(text)).toThrow(/it does not read pictures.*input_ids/s)
  expect(() => imageClassification.check({ ...vit, preprocessorConfig: undefined })).toThrow(
    /preprocessor_config\.json/,
  )
  const training = trainAdapter({ model: vit, data: [{ text: 'a' }], threads: 1 })
  await expect(training).rejects.toThrow(/can be trained for image-classification/)
  await text.close()
  await vit.close()
})
