// Whole runs of encoder-decoders: training, an interruption, resuming, and answers of a session.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadModel, MemoryDirectory, type Model } from '../../../src/api/node.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { train } from '../../../src/train/train.js'
import { openTiny, ROWS, runtime } from './seq2seq-models.js'

describe.each(['t5', 'bart', 't5gemma'])('%s', (name) => {
  let model: Model
  beforeAll(async () => {
    model = await openTiny(name)
  })
  afterAll(() => model.close())

  it('trains without a task being named, resumes to the same bytes, and answers in a session', async () => {
    const run = (out: MemoryDirectory, options: object = {}) =>
      train({
        model,
        data: ROWS,
        evalData: ROWS,
        maxSteps: 60,
        learningRate: 1e-2,
        threads: 1,
        config: { rank: 4, dropout: 0.1 },
        out,
        ...options,
      })
    const [whole, broken] = [new MemoryDirectory(), new MemoryDirectory()]
    const { adapter, report } = await run(whole)
    expect(report.trainLoss.at(-1)).toBeLessThan(report.trainLoss[0] - 0.5)
    expect(report.evalMetrics?.perplexity).toBeCloseTo(Math.exp(report.evalLoss!.after), 6)
    expect(report.evalMetrics?.accuracy).toBeGreaterThan(0.2)
    expect(adapter.config.taskType).toBe('SEQ_2_SEQ_LM')
    // PEFT's names for the layers, in encoder and decoder.
    const layer = name === 't5' ? 'block.1.layer.0.SelfAttention.q' : 'layers.0.self_attn.q_proj'
    const prefix = name === 't5' ? '' : 'model.'
    for (const side of ['encoder', 'decoder']) expect(adapter.has(`${prefix}${side}.${layer}`)).toBe(true)

    const stop = new AbortController()
    const on = { step: ({ step }: { step: number }) => (step === 7 ? stop.abort() : undefined) }
    await run(broken, { signal: stop.signal, on })
    await run(broken, { resume: true })
    const file = 'adapter_model.safetensors'
    expect(broken.files.get(file)).toEqual(whole.files.get(file))

    const session = await ModelSession.open(model, { adapters: { own: adapter } })
    const options = { temperature: 0, maxNewTokens: 4 }
    const { text } = await session.generate(ROWS[0].text, { ...options, adapter: 'own' })
    expect(text).not.toBe((await session.generate(ROWS[0].text, options)).text)
    await session.dispose()
  })
})

it('trains a model from memory, whose weights are handed over', async () => {
  const files = [
    'config.json',
    'tokenizer.json',
    'tokenizer_config.json',
    'onnx/encoder_model.onnx',
    'onnx/decoder_model_merged.onnx',
  ]
  const content = files.map((file) => [file, Uint8Array.from(readFileSync(`tests/golden/graphs/t5/${file}`))])
  const model = await loadModel(new MemoryDirectory(Object.fromEntries(content)), { runtime })
  const { report } = await train({ model, data: ROWS, maxSteps: 1, threads: 1 })
  const onDisk = await openTiny('t5')
  const other = await train({ model: onDisk, data: ROWS, maxSteps: 1, threads: 1 })
  expect(report.trainLoss).toEqual(other.report.trainLoss)
  await Promise.all([model.close(), onDisk.close()])
})
