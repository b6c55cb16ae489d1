// The kinds of label problems (one label, several, numbers): losses and gradients as in PyTorch, metrics as in
// scikit-learn, and the results of sessions.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ConfigError, DataError, loadAdapter, loadModel, MemoryDirectory, type Model } from '../../../src/api/node.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../../src/files/safetensors.js'
import { merge } from '../../../src/merge/merge.js'
import { openEngine } from '../../../src/onnx/runtime/host.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { TrainEngine } from '../../../src/train/engine/engine.js'
import { readParameters } from '../../../src/train/engine/parameters.js'
import { TrainingSessions } from '../../../src/train/engine/sessions.js'
import { encodeRows } from '../../../src/train/rows/examples.js'
import { resolveSettings } from '../../../src/train/settings.js'
import type { LabelOptions } from '../../../src/train/tasks/labels/label-problems.js'
import { areaUnderCurve, severalMetrics, spearman } from '../../../src/train/tasks/metrics.js'
import type { Task } from '../../../src/train/tasks/task.js'
import { type LabeledExample, textClassification } from '../../../src/train/tasks/text-classification.js'
import { train as trainAdapter } from '../../../src/train/train.js'
import { relativeError, transposed } from '../../model/golden.js'
import { directoryOf, inThread, openModel } from '../../run/models.js'

const folder = 'tests/golden/label-problems'
const encoder = 'tests/golden/text-classification/encoder'

interface Golden {
  several: string[][]
  numbers: number[]
  weights: Record<string, number>
  smoothing: number
  losses: Record<string, number>
}

const golden: Golden = JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8'))
const { rows, maxLength } = JSON.parse(readFileSync(`${encoder}/golden/golden.json`, 'utf8'))

const CASES: Record<string, { labels?: unknown[]; options: LabelOptions }> = {
  several: { labels: golden.several, options: {} },
  number: { labels: golden.numbers, options: { problemType: 'regression' } },
  weights: { options: { classWeights: golden.weights } },
  balanced: { options: { classWeights: 'balanced' } },
  smoothing: { options: { labelSmoothing: golden.smoothing } },
  both: { options: { classWeights: golden.weights, labelSmoothing: golden.smoothing } },
}

let model: Model
beforeAll(async () => {
  model = await openModel(encoder)
})
afterAll(() => model.close())

it.each(Object.entries(CASES))("has PyTorch's loss and gradients: %s", async (name, { labels, options }) => {
  const data = rows.map((row: object, i: number) => (labels === undefined ? row : { ...row, label: labels[i] }))
  const task = textClassification as unknown as Task
  const { kept } = await encodeRows(readRows(data), { task, model, maxLength, name: 'data' })
  const examples = [...kept.examples] as LabeledExample[]
  const open = textClassification.open(model, examples, options)
  const adapter = await loadAdapter(`${encoder}/golden/adapter-init`)
  if (name === 'number') {
    const { data: values } = adapter.get('classifier.weight', 'replacement')!.weight
    const [bias] = adapter.get('classifier.bias', 'replacement')!.weight.data
    for (const tensor of ['classifier.weight', 'classifier.bias']) adapter.remove(tensor)
    adapter.addReplacement('classifier.weight', { data: Float32Array.from(values.slice(0, 16)), shape: [1, 16] })
    adapter.addReplacement('classifier.bias', { data: Float32Array.of(bias), shape: [1] })
  }
  const engine = await openEngine(model.runtime, 'train', async () => TrainEngine)
  const settings = resolveSettings({ threads: 1 })
  const sessions = await TrainingSessions.create(
    { model, open: open as never, adapter, modules: undefined, settings },
    engine.remote,
  )
  const parameters = readParameters(
    adapter,
    sessions.parameters.map((parameter) => parameter.name),
  )
  const zeros = () => parameters.map(({ length }) => new Float32Array(length))
  const optimizer = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 }
  await engine.remote.start(
    { parameters: sessions.parameters, optimizer, maxGradNorm: 0 },
    { parameters, firstMoments: zeros(), secondMoments: zeros(), updates: 0 },
  )
  const source = await new NodeDirectory(folder).open('gradients.safetensors')
  const expected = await parseSafetensorsHeader(source)
  const feeds = open.collate(examples, 16)
  const pass = await sessions.trainingPass(feeds, { normalizer: open.normalizer(examples), step: 0, run: 0 })
  const outputs = await engine.remote.forward(pass, [pass.loss, ...sessions.parameters.map(({ gradient }) => gradient)])
  expect(Number(outputs[pass.loss].data[0])).toBeCloseTo(golden.losses[name], 5)
  let compared = 0
  for (const { name: parameter, gradient } of sessions.parameters) {
    const factor = /^(.*)\.([AB])$/.exec(parameter)
    const key = `${name}/base_model.model.${factor === null ? parameter : `${factor[1]}.lora_${factor[2]}.weight`}`
    if (!expected.tensors.has(key)) continue
    const { data: values, shape } = await readTensorF32(expected, key)
    const wanted = factor?.[2] === 'B' ? transposed(values, shape) : values
    expect(relativeError(outputs[gradient].data as Float32Array, wanted), parameter).toBeLessThan(1e-4)
    compared++
  }
  expect(compared).toBe(3)
  await source.close()
  await engine.remote.dispose()
})

describe('training, sessions and merges', () => {
  const train = (data: object[], options: object = {}) =>
    trainAdapter({
      model,
      task: 'text-classification',
      data: data as Record<string, unknown>[],
      evalData: data as Record<string, unknown>[],
      batchSize: 4,
      epochs: 40,
      learningRate: 2e-2,
      threads: 1,
      config: { rank: 4 },
      ...options,
    })

  it('gives each text any number of labels', async () => {
    const data = [
      { text: 'the sea and the sun', labels: ['sea', 'sun'] },
      { text: 'the sea', labels: ['sea'] },
      { text: 'the sun', labels: ['sun'] },
      { text: 'a king', labels: [] },
    ]
    const { adapter, report } = await train(data)
    expect(adapter.problemType).toBe('multi_label_classification')
    expect(report.evalMetrics).toEqual({ accuracy: 1, f1: 1, 'f1/sea': 1, 'f1/sun': 1 })
    const session = await ModelSession.open(model, { adapters: { adapter } })
    const [both, , , none] = await session.classify(
      data.map(({ text }) => text),
      { adapter: 'adapter', topK: 2 },
    )
    expect(both.labels.every(({ score }) => score > 0.5)).toBe(true)
    expect(none.labels.every(({ score }) => score < 0.5)).toBe(true)
    await session.dispose()

    const out = new MemoryDirectory({}, 'out')
    await merge({ base: { directory: directoryOf(encoder) }, adapters: adapter, out })
    const config = JSON.parse(new TextDecoder().decode(out.files.get('config.json')))
    expect(config).toMatchObject({ problem_type: 'multi_label_classification', id2label: { 0: 'sea', 1: 'sun' } })
    const merged = await loadModel(out, { runtime: inThread })
    const alone = await ModelSession.open(merged)
    const again = await alone.classify(data[0].text, { topK: 2 })
    again.labels.forEach(({ score }, i) => void expect(score).toBeCloseTo(both.labels[i].score, 5))
    await alone.dispose()
    await merged.close()
  })

  it('gives each text a number', async () => {
    const data = ['the sea', 'the sun', 'a king', 'rain'].map((text, i) => ({ text, label: i / 2 }))
    const { adapter, report } = await train(data)
    expect(adapter).toMatchObject({ problemType: 'regression', labels: ['LABEL_0'] })
    expect(report.evalMetrics!.pearson).toBeGreaterThan(0.99)
    const session = await ModelSession.open(model, { adapters: { adapter } })
    const { score } = await session.classify('rain', { adapter: 'adapter' })
    expect(score).toBeCloseTo(1.5, 0)
    await session.dispose()
  })

  it('tells the area under the curve of two labels', async () => {
    const data = ['the sea', 'the sun', 'a king', 'rain'].map((text, i) => ({ text, label: i < 2 ? 'a' : 'b' }))
    const { report } = await train(data)
    expect(report.evalMetrics).toEqual({ accuracy: 1, f1: 1, auc: 1, 'f1/a': 1, 'f1/b': 1 })
  })

  it.each<[what: string, labels: unknown[], options: object, error: new (...args: never[]) => Error, message: RegExp]>([
    ['labels of different kinds', ['a', ['b']], {}, DataError, /labels of different kinds/],
    ['equal numbers', [0.5, 0.5], {}, DataError, /all records have the same number/],
    ['names for numbers', ['a', 'b'], { problemType: 'regression' }, DataError, /not a number to learn.*"a"/],
    [
      'weights of labels that are not there',
      ['a', 'b'],
      { classWeights: { c: 2 } },
      DataError,
      /expected a, b, got "c"/,
    ],
    ['weights of numbers', [0.5, 1.5], { classWeights: 'balanced' }, ConfigError, /classWeights.*only for one label/],
    ['a smoothing of 1', ['a', 'b'], { labelSmoothing: 1 }, ConfigError, /labelSmoothing.*\[0, 1\)/],
    ['a misspelled option', ['a', 'b'], { labelSmothing: 0.1 }, ConfigError, /Did you mean labelSmoothing/],
  ])('refuses %s', async (_, labels, taskOptions, error, message) => {
    const training = train(
      labels.map((label) => ({ text: 'the sea', label })),
      { taskOptions },
    )
    await expect(training).rejects.toThrow(error)
    await expect(training).rejects.toThrow(message)
  })
})

it('scores as scikit-learn does', () => {
  // accuracy_score, f1_score(average='macro') and roc_auc_score
  const sets = (...lists: number[][]) => lists.map((list) => new Set(list))
  const { accuracy, f1, scores } = severalMetrics(sets([0, 2], [1], [0, 1], []), sets([0], [1], [0, 1, 2], []), 3)
  expect(accuracy).toBe(0.5)
  expect(f1).toBeCloseTo(2 / 3, 10)
  expect(scores).toEqual([1, 1, 0])
  const truth = [false, false, true, true, true, false]
  expect(areaUnderCurve(truth, [0.1, 0.4, 0.35, 0.8, 0.4, 0.2])).toBeCloseTo(0.8333333, 6)
})

it('ends for scores that are not numbers, as those of an adapter that has become NaN', () => {
  const bad = Array(4).fill(Number.NaN)
  const truth = [true, false, true, false]
  expect(areaUnderCurve(truth, bad)).toBeLessThanOrEqual(1)
  expect(spearman(bad, [1, 2, 3, 4])).toBeTypeOf('number')
})
