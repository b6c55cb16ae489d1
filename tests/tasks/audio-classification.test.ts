// Audio classification: PEFT's and PyTorch's loss, logits and gradients over a tiny Whisper; training, sessions and
// merges.

import { readFileSync } from 'node:fs'
import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import { readRows } from '../../src/data/read-rows.js'
import { loadModel, type Model } from '../../src/graph/model-folder.js'
import { ModelSession } from '../../src/infer/model-session.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import { merge } from '../../src/merge/merge.js'
import { loadAdapter } from '../../src/peft/adapter-folder.js'
import type { OrtModule } from '../../src/runtime/onnxruntime.js'
import { audioClassification, type SoundExample } from '../../src/tasks/audio-classification.js'
import type { Task } from '../../src/tasks/task.js'
import { encodeRows } from '../../src/train/rows/examples.js'
import { train } from '../../src/train/train.js'
import { relativeError } from '../graph/golden.js'
import { checkGoldenRun, type GoldenRun } from './golden-run.js'

const folder = 'tests/golden/audio-classification'
const runtime = { module: ort as unknown as OrtModule }
const [BANDS, TIMES] = [8, 24]
const golden: GoldenRun & { rows: string[]; labels: string[]; logits: number[][]; base: number[][] } = JSON.parse(
  readFileSync(`${folder}/golden/golden.json`, 'utf8'),
)
const features = (row: number) =>
  Array.from({ length: BANDS * TIMES }, (_, i) => Math.sin(Math.fround(0.37 * (1 + (row % 3))) * i + row))
const rows = golden.rows.map((label, i) => ({ input_features: features(i), label }))
const feeds = {
  input_features: {
    type: 'float32',
    data: Float32Array.from(rows.flatMap((row) => row.input_features)),
    dims: [rows.length, BANDS, TIMES],
  },
} as const

const open = (name: string) => loadModel(new NodeDirectory(`${folder}/${name}`), { runtime })
async function peft() {
  const adapter = await loadAdapter(new NodeDirectory(`${folder}/golden/adapter-init`))
  adapter.labels = golden.labels
  return adapter
}

describe.each(['encoder', 'classifier'])('%s', (name) => {
  let model: Model
  beforeAll(async () => {
    model = await open(name)
  })
  afterAll(() => model.close())

  it("gives PEFT's logits in sessions, and in a merged graph", async () => {
    const adapter = await peft()
    const session = await ModelSession.open(model, { adapters: { adapter }, threads: 1 })
    const { logits } = await session.run(feeds, { adapter: 'adapter' })
    expect(relativeError(logits.data as Float32Array, golden.logits.flat())).toBeLessThan(1e-5)
    if (name === 'classifier') {
      const base = await session.run(feeds)
      expect(relativeError(base.logits.data as Float32Array, golden.base.flat())).toBeLessThan(1e-5)
    }
    await session.dispose()
    const out = new MemoryDirectory()
    await merge({ base: { directory: model.directory }, adapters: adapter, out })
    const { architectures, id2label } = JSON.parse(new TextDecoder().decode(out.files.get('config.json')))
    expect([architectures, Object.values(id2label)]).toEqual([['WhisperForAudioClassification'], golden.labels])
    const merged = await loadModel(out, { runtime })
    const own = await ModelSession.open(merged, { threads: 1 })
    const made = await own.run(feeds)
    expect(relativeError(made.logits.data as Float32Array, golden.logits.flat())).toBeLessThan(1e-5)
    await own.dispose()
    await merged.close()
  })

  it('learns, and labels the sounds', async () => {
    const out = new MemoryDirectory()
    const { adapter, report } = await train({
      ...{ model, task: 'audio-classification', data: rows as never, evalData: rows as never, batchSize: 6, out },
      ...{ maxSteps: 40, learningRate: 2e-2, threads: 1, config: { rank: 3 } },
    })
    expect(report.trainLoss.at(-1)).toBeLessThan(report.trainLoss[0] / 2)
    expect(report.evalMetrics).toMatchObject({ accuracy: 1 })
    const config = JSON.parse(new TextDecoder().decode(out.files.get('adapter_config.json')))
    const modules = name === 'encoder' ? ['projector', 'classifier'] : ['classifier']
    expect([config.task_type, config.modules_to_save]).toEqual([null, modules])
    expect(adapter.names()).toContain('encoder.layers.0.self_attn.q_proj')
    const session = await ModelSession.open(model, { adapters: { adapter }, threads: 1 })
    const { logits } = await session.run(feeds, { adapter: 'adapter' })
    const best = rows.map((_, i) => {
      const own = [...(logits.data as Float32Array).slice(3 * i, 3 * i + 3)]
      return golden.labels[own.indexOf(Math.max(...own))]
    })
    expect(best).toEqual(golden.rows)
    await session.dispose()
  })
})

it("gives PyTorch's and PEFT's loss, logits and gradients, and takes their steps", async () => {
  const model = await open('encoder')
  const options = { task: audioClassification as unknown as Task, model, name: 'data' }
  const examples = [...(await encodeRows(readRows(rows), options)).kept.examples] as SoundExample[]
  const task = audioClassification.open(model, examples)
  expect(task.labels).toEqual(golden.labels)
  const { logits } = await checkGoldenRun(model, task, examples, { folder: `${folder}/golden`, golden, length: 1 })
  expect(relativeError(logits.data as Float32Array, golden.logits.flat())).toBeLessThan(1e-5)
  await model.close()
})

describe('features of sounds', () => {
  it('are classified, alone and together, as lists in a list too', async () => {
    const model = await open('classifier')
    const session = await ModelSession.open(model, { adapters: { own: await peft() }, threads: 1 })
    const nested = Array.from({ length: BANDS }, (_, band) => features(1).slice(band * TIMES, (band + 1) * TIMES))
    const sounds = [rows[0], { input_features: nested }, rows[2]].map(({ input_features }) => ({ input_features }))
    const found = await session.classify(sounds, { adapter: 'own', topK: 3, batchSize: 2 })
    found.forEach(({ logits, labels }, i) => {
      expect(relativeError(logits, golden.logits[i])).toBeLessThan(1e-5)
      expect(labels.map(({ label }) => label).sort()).toEqual(golden.labels)
    })
    const alone = await session.classify(sounds[2], { adapter: 'own' })
    expect(relativeError(alone.logits, golden.logits[2])).toBeLessThan(1e-5)
    await expect(session.classify('a text')).rejects.toThrow(/the features of a sound: \{ input_features \}/)
    await expect(session.classify({ input_features: [1] })).rejects.toThrow(/sound 1, input_features.*8 x 24.*got 1/)
    await session.dispose()
    await model.close()
  })

  it.each([
    [{ input_features: [1] }, /data\[0\]: not a sound with a label/],
    [{ text: 'a', label: 'calm' }, /not a sound with a label.*"text" \(string\)/s],
    [{ audio: { array: [0], sampling_rate: 16000 }, label: 'calm' }, /not a sound.*AutoProcessor/s],
    [{ input_features: [1, 2], label: 'calm' }, /data\[0\], input_features: not as many numbers.*8 x 24.*got 2/s],
  ])('are refused: %#', async (row, message) => {
    const model = await open('encoder')
    const training = train({ model, task: 'audio-classification', data: [row] as never, threads: 1 })
    await expect(training).rejects.toThrow(message)
    await model.close()
  })
})
