// Direct preference optimization: tokens, probabilities, losses, gradients, steps and rewards equal those of TRL's
// DPOTrainer. Also errors.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  ConfigError,
  DataError,
  type EvaluationEvent,
  FormatError,
  loadAdapter,
  MemoryDirectory,
  type Model,
  UnsupportedError,
} from '../../../src/api/node.js'
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
import { type AnswerExample, type DpoOptions, dpo } from '../../../src/train/tasks/dpo.js'
import type { Task } from '../../../src/train/tasks/task.js'
import { train as trainAdapter } from '../../../src/train/train.js'
import { relativeError, transposed } from '../../model/golden.js'
import { openModel } from '../../run/models.js'
import { THOROUGH } from '../../thorough.js'
import { abortAt } from '../tiny.js'

const folder = 'tests/golden/dpo'

type Row = Record<string, unknown>
type Side = { ids: number[]; start: number }
type Rewards = Record<'rewards/accuracies' | 'rewards/margins' | 'rewards/chosen' | 'rewards/rejected', number>
type Step = Rewards & { loss: number; gradNorm: number }

interface Golden {
  adamw: { lr: number; weightDecay: number; maxGradNorm: number }
  beta: number
  labelSmoothing: number
  maxLength: number
  rows: Record<string, Row[]>
  tokens: Record<string, { chosen: Side; rejected: Side }[]>
  cut: { chosen: Side; rejected: Side }[]
  reference: [number[], number[]]
  policy: [number[], number[]]
  loss: number
  metrics: Rewards
  smoothed: number
  started: Step[]
  continued: Step[]
}

const golden: Golden = JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8'))
const { adamw, beta, labelSmoothing, maxLength } = golden
const chatTemplate = readFileSync('models/data/chat.jinja', 'utf8')
const rows = golden.rows.texts
const load = (name: string) => loadAdapter(`${folder}/${name}`)

let model: Model
/** A model with two layers of width 32 and random weights, for tests that do not depend on the numbers. */
let tiny: Model
beforeAll(async () => {
  model = await openModel('models/union-3m')
  tiny = await openModel('tests/golden/models/llama-optimum')
})
afterAll(async () => {
  await model.close()
  await tiny.close()
})

async function encode(data: Row[], options: { maxLength?: number; chatTemplate?: string } = { chatTemplate }) {
  const task = dpo as unknown as Task
  const { kept } = await encodeRows(readRows(data), { task, model, name: 'data', ...options })
  return { ...kept, examples: [...kept.examples] as AnswerExample[] }
}

/** TRL's form of an answer: its tokens, and where it begins. */
const sideOf = ({ inputIds, labels }: AnswerExample['chosen']): Side => {
  const start = labels.findIndex((label) => label >= 0)
  expect([...labels.subarray(start)]).toEqual([...inputIds.subarray(start)])
  return { ids: [...inputIds], start }
}
const sidesOf = (examples: AnswerExample[]) =>
  examples.map(({ chosen, rejected }) => ({ chosen: sideOf(chosen), rejected: sideOf(rejected) }))

/** Shows thoughts only where the model is to write, so each answer of a chat becomes a text. */
const THOUGHTS = [
  '{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}',
  '{% if add_generation_prompt %}<assistant><thought></thought>{% endif %}',
].join('')

it('counts what the texts of a chat have in common once', async () => {
  const [first, second] = ['a', 'b'].map((content) => [
    { role: 'user', content },
    { role: 'assistant', content: `of ${content}` },
  ])
  const lengthOf = async (messages: object[]) => {
    const data = [{ messages }]
    const { lengths, examples } = await checkRecords({ model, data, task: 'causal-lm', chatTemplate: THOUGHTS }, 2)
    return { total: lengths!.total, texts: examples.map(({ tokens }) => tokens.map(({ id }) => id)) }
  }
  const { total, texts } = await lengthOf([...first, ...second])
  expect(texts).toHaveLength(2)
  const shared = texts[0].findIndex((id, i) => id !== texts[1][i])
  expect(shared).toBeGreaterThan(3)
  expect(total).toBe(texts[0].length + texts[1].length - shared)
})

describe('rows', () => {
  it.each(Object.keys(golden.rows))('of the form %s have the tokens of TRL', async (form) => {
    const { examples } = await encode(golden.rows[form])
    expect(sidesOf(examples)).toEqual(golden.tokens[form])
  })

  it('are cut at their ends, as TRL cuts them', async () => {
    const { examples, truncatedRecords } = await encode(rows, { maxLength })
    expect(sidesOf(examples)).toEqual(golden.cut)
    expect(truncatedRecords).toBe(golden.tokens.texts.filter(({ rejected }) => rejected.ids.length > maxLength).length)
    expect(truncatedRecords).toBeGreaterThan(0)
  })

  it('may have the prompt as a text beside answers that are whole chats', async () => {
    const [row] = golden.rows['implicit-chats']
    const { examples } = await encode([{ ...row, prompt: 'Who is the captain?' }])
    expect(sidesOf(examples)).toEqual(golden.tokens['implicit-chats'].slice(0, 1))
  })

  it('leave out pairs without a difference, and answers that are cut off', async () => {
    const same = { prompt: 'And the', chosen: ' king', rejected: ' king' }
    const [{ prompt, chosen }] = rows as { prompt: string; chosen: string }[]
    const tooLong = { prompt: `${prompt} `.repeat(20), chosen, rejected: ' no' }
    const late = { prompt, chosen: `${' the sea'.repeat(30)} a`, rejected: `${' the sea'.repeat(30)} b` }
    const { examples, skippedRecords } = await encode([...rows, same, tooLong, late], { maxLength })
    expect([examples.length, skippedRecords]).toEqual([rows.length, 3])
  })

  it('do not part a character of two halves', async () => {
    const { examples } = await encode([{ chosen: 'the sea 🐳', rejected: 'the sea 🐴' }])
    const [{ chosen, rejected }] = sidesOf(examples)
    expect(chosen.start).toBe(rejected.start)
    expect(model.tokenizer?.decode(chosen.ids.slice(0, chosen.start))).not.toContain('\ufffd')
  })

  const user = { role: 'user', content: 'Who?' }
  const assistant = { role: 'assistant', content: 'Ahab.' }
  it('may have the fields of OpenAI', async () => {
    const ishmael = { ...assistant, content: 'Ishmael.' }
    const trl = { prompt: [user], chosen: [assistant], rejected: [ishmael] }
    const openAi = { input: { messages: [user] }, preferred_output: [assistant], non_preferred_output: [ishmael] }
    const [expected, read] = await Promise.all([trl, openAi].map((row) => encode([row])))
    expect(expected.examples).toHaveLength(1)
    expect(sidesOf(read.examples)).toEqual(sidesOf(expected.examples))
  })

  it.each<[what: string, row: unknown, message: RegExp]>([
    [
      'no rejected',
      { prompt: 'a', chosen: 'b' },
      /not a pair of answers.*got "prompt" \(string\), "chosen" \(string\).*columns/s,
    ],
    ['no chosen', { prompt: 'a', rejected: 'b', chosen: null }, /not a pair of answers/],
    ['a number', { prompt: 'a', chosen: 'b', rejected: 3 }, /"rejected" \(number\)/],
    ['a text beside a chat', { chosen: 'b', rejected: [assistant] }, /not a pair of answers/],
    ['a prompt of another type', { prompt: {}, chosen: 'a', rejected: 'b' }, /not a pair of answers/],
    ['no object', 'text', /got no fields/],
    ['an empty text', { prompt: 'a', chosen: ' ', rejected: 'b' }, /"chosen" has no answer/],
    ['no messages', { prompt: [user], chosen: [assistant], rejected: [] }, /"rejected" has no answer/],
    [
      'a message without text',
      { prompt: [user], chosen: [assistant], rejected: [{ ...assistant, content: '' }] },
      /"rejected" has no answer/,
    ],
    [
      'an answer of the user',
      { prompt: [user, assistant], chosen: [user], rejected: [user, assistant] },
      /"chosen" has no/,
    ],
    ['texts without a prompt', { chosen: 'the sea', rejected: 'a ship' }, /do not begin with the same prompt/],
    [
      'chats with two prompts',
      { chosen: [user, assistant], rejected: [{ ...user, content: 'Where?' }, assistant] },
      /do not begin with the same prompt.*the same first messages/,
    ],
    [
      'a chat with its prompt twice',
      { prompt: [user], chosen: [user, assistant], rejected: [assistant] },
      /chosen: the answer begins with the prompt again/,
    ],
  ])('refuse %s', async (_, row, message) => {
    const training = encode([row as Row])
    await expect(training).rejects.toThrow(DataError)
    await expect(training).rejects.toThrow(message)
    await expect(training).rejects.toThrow(/^data\[0\]/)
  })

  it('refuse chats for a model without a template', async () => {
    await expect(encode(golden.rows.chats, {})).rejects.toThrow(FormatError)
  })

  it('are shown with both answers', async () => {
    const { task, examples, lengths } = await checkRecords({ model, data: rows.slice(0, 1) }, 1)
    expect(task).toBe('dpo')
    const [{ tokens }] = examples
    const [{ chosen, rejected }] = golden.tokens.texts
    expect(tokens.map(({ id }) => id)).toEqual([...chosen.ids, ...rejected.ids])
    const targets = [chosen, rejected].map(({ ids, start }) => ids.length - start)
    // The prompt counts once. In this record, the answers begin with different tokens.
    expect(lengths!.total).toBe(chosen.ids.length + rejected.ids.length - chosen.start)
    expect(tokens.filter(({ counts }) => counts)).toHaveLength(targets[0] + targets[1])
  })
})

/** Opens an engine for an adapter whose B is not zero. The reference was computed with B = 0. */
async function openPolicy(options: DpoOptions, base: Model = model) {
  const { examples } = await encode(rows)
  const adapter = await load('adapter-init')
  const open = dpo.open(base, examples, options)
  const engine = await openEngine(base.runtime, 'train', async () => TrainEngine)
  const settings = resolveSettings({ threads: 1 })
  const parts = { model: base, open: open as never, adapter, modules: undefined, settings }
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
  open.reference!(reference).forEach((before, i) => void Object.assign(examples[i], { before }))
  await start(adapter)
  return { open, examples, engine, sessions, reference, evaluate }
}

describe('the loss', () => {
  it('has the probabilities, the rewards, the value and the gradients of TRL', async () => {
    const { open, examples, engine, sessions, reference, evaluate } = await openPolicy({ beta })
    const { loss, ...outputs } = await evaluate()
    for (const [given, wanted] of [
      [reference, golden.reference],
      [outputs, golden.policy],
    ] as const) {
      const { data } = Object.values(given)[0]
      examples.forEach((_, i) => {
        expect(-Number(data[2 * i])).toBeCloseTo(wanted[0][i], 3)
        expect(-Number(data[2 * i + 1])).toBeCloseTo(wanted[1][i], 3)
      })
    }
    expect(Number(loss.data[0])).toBeCloseTo(golden.loss, 5)
    const metrics = open.metrics({ loss: 0, examples, predictions: open.predict!(outputs, examples) })
    for (const [name, value] of Object.entries(metrics))
      expect(value, name).toBeCloseTo(golden.metrics[name as never], 4)
    expect(Object.keys(metrics)).toHaveLength(4)

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
      const key = `base_model.model.${module}.lora_${factor}.weight`
      const { data, shape } = await readTensorF32(expected, key)
      const wanted = factor === 'B' ? transposed(data, shape) : data
      expect(relativeError(gradients[gradient].data as Float32Array, wanted), name).toBeLessThan(2e-4)
    }
    await source.close()
    await engine.remote.dispose()
  })

  it('is smoothed as in cDPO', async () => {
    const { engine, evaluate } = await openPolicy({ beta, labelSmoothing })
    const { loss } = await evaluate()
    expect(Number(loss.data[0])).toBeCloseTo(golden.smoothed, 5)
    await engine.remote.dispose()
  })
})

/** Settings of the steps in golden.json: each step has all rows. */
const asTrl = {
  learningRate: adamw.lr,
  schedule: 'constant',
  warmupRatio: 0,
  ...adamw,
  batchSize: rows.length,
} as const

async function train(options: Partial<TrainInput>) {
  const {
    lr: _,
    betas: __,
    eps: ___,
    ...settings
  } = asTrl as typeof asTrl & { lr: number; betas: unknown; eps: unknown }
  const evaluations: EvaluationEvent[] = []
  const norms: number[] = []
  const on = {
    evaluation: (event: EvaluationEvent) => void evaluations.push(event),
    step: (event: { gradientNorm: number }) => void norms.push(event.gradientNorm),
  }
  const given = { model, task: 'dpo', data: rows, threads: 1, ...settings, on, ...options } as TrainInput
  return { ...(await trainAdapter(given)), evaluations, norms }
}

describe('training', () => {
  it.each([
    ['a new adapter, against the base', 'adapter-zero', golden.started],
    ['an adapter, against what it was', 'adapter-init', golden.continued],
  ])('takes the steps of TRL with %s', async (_, name, all) => {
    const steps = all.slice(0, THOROUGH ? undefined : 2)
    const adapter = await load(name)
    const options = { adapter, maxSteps: steps.length, evalData: rows, evalEvery: 1, taskOptions: { beta } }
    const { report, evaluations, norms } = await train(options)
    for (const [i, step] of steps.entries()) {
      expect(report.trainLoss[i], `step ${i}`).toBeCloseTo(step.loss, 3)
      expect(norms[i] / step.gradNorm, `step ${i}`).toBeCloseTo(1, 2)
      const { loss, metrics } = evaluations[i]
      expect(loss).toBeCloseTo(step.loss, 3)
      for (const [metric, value] of Object.entries(metrics)) {
        expect(value, `${metric} before step ${i}`).toBeCloseTo(step[metric as keyof Rewards], 2)
      }
    }
    expect(report.evalLoss!.before).toBeCloseTo(Math.LN2, 6)
  })

  it('gives the same in one batch and in several', async () => {
    const taskOptions = { beta: 0.5 }
    const whole = await train({ model: tiny, maxSteps: 3, taskOptions })
    const parts = await train({ model: tiny, maxSteps: 3, batchSize: 1, gradientAccumulation: 4, taskOptions })
    const low = await train({ model: tiny, maxSteps: 3, memory: 'low', taskOptions })
    whole.report.trainLoss.forEach((loss, i) => {
      expect(parts.report.trainLoss[i]).toBeCloseTo(loss, 4)
      expect(low.report.trainLoss[i]).toBeCloseTo(loss, 4)
    })
  })

  it('resumes to the same bytes, with dropout, and tells the task', async () => {
    const options = {
      model: tiny,
      config: { rank: 2, dropout: 0.1 },
      batchSize: 2,
      epochs: 3,
      evalData: rows,
      learningRate: 5e-2,
    }
    const [whole, broken] = [new MemoryDirectory(), new MemoryDirectory()]
    const { report } = await train({ ...options, out: whole })
    await train({ ...options, out: broken, ...abortAt(3) })
    await expect(train({ ...options, out: broken, resume: true, taskOptions: { beta: 0.3 } })).rejects.toThrow(/beta/)
    const resumed = await train({ ...options, out: broken, resume: true })
    expect(resumed.report.trainLoss).toEqual(report.trainLoss)
    expect(resumed.report.evalLoss).toEqual(report.evalLoss)
    const file = 'adapter_model.safetensors'
    expect(broken.files.get(file)).toEqual(whole.files.get(file))
    expect(report.evalMetrics!['rewards/accuracies']).toBeGreaterThan(0.5)
    const text = (name: string) => new TextDecoder().decode(whole.files.get(name))
    expect(JSON.parse(text('adapter_config.json')).task_type).toBe('CAUSAL_LM')
    expect(text('README.md')).toMatch(/- task: dpo/)
    expect(text('README.md')).toMatch(/\| rewards\/margins \| -?[\d.]+ \|/)
  })

  it('is ended by a signal before the first step', async () => {
    const { report } = await train({ model: tiny, maxSteps: 3, signal: AbortSignal.abort() })
    expect(report).toMatchObject({ steps: 0, interrupted: true })
  })

  it('learns on quantized bases', async () => {
    const quantized = await openModel('tests/golden/models/llama-q4')
    const { report } = await train({ model: quantized, maxSteps: 8, learningRate: 2e-2, evalData: rows })
    expect(report.evalLoss!.before).toBeCloseTo(Math.LN2, 6)
    expect(report.evalLoss!.after).toBeLessThan(0.6)
    await quantized.close()
  })

  it.each<[what: string, options: Partial<TrainInput>, error: new (...args: never[]) => Error, message: RegExp]>([
    ['an unknown option', { taskOptions: { Beta: 1 } }, ConfigError, /Did you mean beta/],
    ['a beta of 0', { taskOptions: { beta: 0 } }, ConfigError, /beta.*a finite number above 0/],
    [
      'much smoothing',
      { taskOptions: { labelSmoothing: 0.5 } },
      ConfigError,
      /labelSmoothing.*in \[0, 0\.5\), got 0\.5/,
    ],
    ['packing', { packing: true }, ConfigError, /the task dpo cannot put several records into one row/],
    ['a new head', { newHead: true }, ConfigError, /the task dpo trains no head/],
  ])('refuses %s', async (_, options, error, message) => {
    const training = train({ model: tiny, maxSteps: 1, ...options })
    await expect(training).rejects.toThrow(error)
    await expect(training).rejects.toThrow(message)
  })

  it('refuses an encoder', async () => {
    const encoder = await openModel('tests/golden/text-classification/encoder')
    await expect(train({ model: encoder })).rejects.toThrow(UnsupportedError)
    await expect(train({ model: encoder })).rejects.toThrow(/can be trained for/)
    await encoder.close()
  })
})
