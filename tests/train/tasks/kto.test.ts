// Kahneman-Tversky optimization: tokens, the KL term, losses, gradients, steps and rewards equal those of TRL's
// KTOTrainer. Also errors.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ConfigError, DataError, type EvaluationEvent, loadAdapter, type Model } from '../../../src/api/node.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../../src/files/safetensors.js'
import { openEngine } from '../../../src/onnx/runtime/host.js'
import { TrainEngine } from '../../../src/train/engine/engine.js'
import { readParameters } from '../../../src/train/engine/parameters.js'
import { TrainingSessions } from '../../../src/train/engine/sessions.js'
import type { TrainInput } from '../../../src/train/options.js'
import { checkRecords } from '../../../src/train/rows/check.js'
import { encodeRows } from '../../../src/train/rows/examples.js'
import { resolveSettings } from '../../../src/train/settings.js'
import { type JudgedExample, kto } from '../../../src/train/tasks/kto.js'
import type { Task } from '../../../src/train/tasks/task.js'
import { train as trainAdapter } from '../../../src/train/train.js'
import { relativeError, transposed } from '../../model/golden.js'
import { openModel } from '../../run/models.js'
import { THOROUGH } from '../../thorough.js'

const folder = 'tests/golden/kto'

type Row = Record<string, unknown>
type Side = { ids: number[]; start: number }
type Step = { loss: number; gradNorm: number; kl: number } & Record<string, number>

interface Golden {
  adamw: { lr: number; weightDecay: number; maxGradNorm: number }
  beta: number
  desirableWeight: number
  undesirableWeight: number
  maxLength: number
  rows: Record<'texts' | 'chats', Row[]>
  tokens: Record<'texts' | 'chats' | 'cut' | 'slices', { own: Side; other: Side }[]>
  reference: [own: number[], other: number[]]
  loss: number
  metrics: Record<string, number>
  started: Step[]
  continued: Step[]
}

const golden: Golden = JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8'))
const { adamw, beta, desirableWeight, undesirableWeight, maxLength } = golden
const taskOptions = { beta, desirableWeight, undesirableWeight }
const chatTemplate = readFileSync('models/data/chat.jinja', 'utf8')
const rows = golden.rows.texts
const load = (name: string) => loadAdapter(`${folder}/${name}`)

let model: Model
let tiny: Model
beforeAll(async () => {
  model = await openModel('models/union-3m')
  tiny = await openModel('tests/golden/models/llama-optimum')
})
afterAll(async () => {
  await model.close()
  await tiny.close()
})

async function encode(data: Row[], options: { maxLength?: number } = {}) {
  const task = kto as unknown as Task
  const { kept } = await encodeRows(readRows(data), { task, model, name: 'data', chatTemplate, ...options })
  return [...kept.examples] as JudgedExample[]
}

/** Returns the tokens of all sequences of a batch in the graph's order, with the first target of each. */
function sequencesOf(examples: JudgedExample[]): Side[] {
  const feeds = kto.open(model, examples).collate(examples, 1)
  const ids = Object.entries(feeds).find(([name]) => name.includes('input_ids'))![1]
  const width = ids.dims[1]
  const mask = feeds.attention_mask.data as BigInt64Array
  const targets = [...(feeds['loss/rows'].data as BigInt64Array)].map(Number)
  return Array.from({ length: 2 * examples.length }, (_, row) => {
    const length = mask.subarray(row * width, (row + 1) * width).filter((bit) => bit === 1n).length
    const own = Array.from((ids.data as BigInt64Array).subarray(row * width, row * width + length), Number)
    return { ids: own, start: targets.find((target) => Math.floor(target / width) === row)! - row * width + 1 }
  })
}

describe('rows', () => {
  it.each([
    ['texts', rows, {}],
    ['chats', golden.rows.chats, {}],
    ['cut', rows, { maxLength }],
  ] as const)('have the tokens of TRL, and so have those of the KL term: %s', async (name, data, options) => {
    const sides = sequencesOf(await encode(data, options))
    const wanted = golden.tokens[name]
    expect(sides).toEqual([...wanted.map(({ own }) => own), ...wanted.map(({ other }) => other)])
  })

  it('have the KL term of their slice of the file', async () => {
    const examples = await encode(rows)
    const slices = [examples.slice(0, 2), examples.slice(2, 4), examples.slice(4)]
    const others = slices.flatMap((slice) => sequencesOf(slice).slice(slice.length))
    expect(others).toEqual(golden.tokens.slices.map(({ other }) => other))
  })

  it('are told from those of other tasks, also in files where all values are texts', async () => {
    const data = rows.map((row) => ({ ...row, label: String(row.label) }))
    expect(await checkRecords({ data })).toMatchObject({ task: 'kto', records: 5, labels: { true: 4, false: 1 } })
  })

  it.each<[string, Row, RegExp]>([
    ['no label', { prompt: 'a', completion: 'b' }, /not an answer that is wanted or not/],
    ['a label that is no truth value', { prompt: 'a', completion: 'b', label: 'good' }, /"label": true or false/],
    ['no answer', { prompt: 'a', label: true }, /data\[0\]/],
  ])('refuse %s', async (_, row, message) => {
    await expect(encode([row])).rejects.toThrow(DataError)
    await expect(encode([row])).rejects.toThrow(message)
  })
})

it('has the loss, the KL term, the rewards and the gradients of TRL', async () => {
  const examples = await encode(rows)
  const adapter = await load('adapter-init')
  const open = kto.open(model, examples, taskOptions)
  const engine = await openEngine(model.runtime, 'train', async () => TrainEngine)
  const settings = resolveSettings({ threads: 1 })
  const parts = { model, open: open as never, adapter, modules: undefined, settings }
  const sessions = await TrainingSessions.create(parts, engine.remote)
  const names = sessions.parameters.map(({ name }) => name)
  const start = async (from: typeof adapter) => {
    const parameters = readParameters(from, names)
    const zeros = () => parameters.map(({ length }) => new Float32Array(length))
    const setup = { parameters: sessions.parameters, optimizer: { weightDecay: 0 }, maxGradNorm: 0 }
    await engine.remote.start(setup, { parameters, firstMoments: zeros(), secondMoments: zeros(), updates: 0 })
  }
  const evaluate = async () => {
    const pass = await sessions.evaluationPass(open.collate(examples, 40), open.normalizer(examples))
    return engine.remote.forward(pass, [pass.loss, ...pass.predictions])
  }
  await start(await load('adapter-zero'))
  const { loss: _, ...reference } = await evaluate()
  const { data } = Object.values(reference)[0]
  examples.forEach((_, i) => {
    expect(-Number(data[2 * i])).toBeCloseTo(golden.reference[0][i], 3)
    expect(-Number(data[2 * i + 1])).toBeCloseTo(golden.reference[1][i], 3)
  })
  open.reference!(reference).forEach((before, i) => void Object.assign(examples[i], { before }))
  await start(adapter)
  const { loss, ...outputs } = await evaluate()
  expect(Number(loss.data[0])).toBeCloseTo(golden.loss, 5)
  const metrics = open.metrics({ loss: 0, examples, predictions: open.predict!(outputs, examples) })
  expect(Object.keys(metrics).sort()).toEqual(Object.keys(golden.metrics).sort())
  for (const [name, value] of Object.entries(metrics)) expect(value, name).toBeCloseTo(golden.metrics[name], 4)
  expect(golden.metrics.kl).toBeGreaterThan(0)

  const source = await new NodeDirectory(folder).open('gradients.safetensors')
  const expected = await parseSafetensorsHeader(source)
  const feeds = open.collate(examples, 40)
  const pass = await sessions.trainingPass(feeds, { normalizer: open.normalizer(examples), step: 0, run: 0 })
  const gradients = await engine.remote.forward(
    pass,
    sessions.parameters.map(({ gradient }) => gradient),
  )
  for (const { name, gradient } of sessions.parameters) {
    const [, module, factor] = /^(.*)\.([AB])$/.exec(name)!
    const { data: values, shape } = await readTensorF32(expected, `base_model.model.${module}.lora_${factor}.weight`)
    const wanted = factor === 'B' ? transposed(values, shape) : values
    expect(relativeError(gradients[gradient].data as Float32Array, wanted), name).toBeLessThan(2e-4)
  }
  await source.close()
  await engine.remote.dispose()
})

async function train(options: Partial<TrainInput>) {
  const evaluations: EvaluationEvent[] = []
  const norms: number[] = []
  const { lr: learningRate, weightDecay, maxGradNorm } = adamw
  const given = {
    ...{ model, task: 'kto', data: rows, threads: 1, learningRate, weightDecay, maxGradNorm, taskOptions },
    ...{ schedule: 'constant', warmupRatio: 0, batchSize: rows.length },
    on: {
      evaluation: (event: EvaluationEvent) => void evaluations.push(event),
      step: ({ gradientNorm }: { gradientNorm: number }) => void norms.push(gradientNorm),
    },
    ...options,
  } as TrainInput
  return { ...(await trainAdapter(given)), evaluations, norms }
}

it.each([
  ['a new adapter, against the base', 'adapter-zero', golden.started],
  ['an adapter, against what it was', 'adapter-init', golden.continued],
])('takes the steps of TRL with %s', async (_, name, all) => {
  const steps = all.slice(0, THOROUGH ? undefined : 2)
  const adapter = await load(name)
  const { report, evaluations, norms } = await train({ adapter, maxSteps: steps.length, evalData: rows, evalEvery: 1 })
  for (const [i, step] of steps.entries()) {
    expect(report.trainLoss[i], `step ${i}`).toBeCloseTo(step.loss, 3)
    expect(norms[i] / step.gradNorm, `step ${i}`).toBeCloseTo(1, 2)
    for (const [metric, value] of Object.entries(evaluations[i].metrics)) {
      expect(value, `${metric} before step ${i}`).toBeCloseTo(step[metric], 2)
    }
  }
})

it('takes slices of the file in their order, and at least two records to a batch', async () => {
  const options = { model: tiny, epochs: 2, batchSize: 2, taskOptions: {} }
  const { report } = await train(options)
  expect((await train(options)).report.trainLoss).toEqual(report.trainLoss)
  expect(report.trainLoss[0]).toBeCloseTo(0.5, 5)
  await expect(train({ ...options, batchSize: 1 })).rejects.toThrow(ConfigError)
})
