// The trainer's verbs: sampling and learning give the same log-probabilities, gradients equal those of train(), a loss
// function can do the same as a named loss, and a resumed trainer gives the same bytes.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  ConfigError,
  DataError,
  type LossFunction,
  type LossRow,
  loadModel,
  MemoryDirectory,
  MismatchError,
  type Model,
  NumericError,
  type OrtModule,
  openTrainer,
  ShapeError,
  StateError,
  type TrainerOptions,
} from '../../../src/api/node.js'
import { sampleTexts, type TextSession } from '../../../src/run/generate/generate.js'
import { PrefixStore } from '../../../src/run/generate/prefix-store.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { LOSS_NAMES } from '../../../src/train/loop/losses.js'
import type { Trainer } from '../../../src/train/loop/trainer.js'
import { train } from '../../../src/train/train.js'
import '../../equal-bytes.js'
import { recordingRuntime } from '../../run/models.js'
import { cases } from '../../thorough.js'
import { data, folder, module, path, WEIGHTS } from '../tiny.js'

let model: Model
let quantized: Model
beforeAll(async () => {
  model = await loadModel(folder, { runtime: { module } })
  quantized = await loadModel(path('tests/golden/models/llama-q4'), { runtime: { module } })
})
afterAll(() => Promise.all([model.close(), quantized.close()]))

const open = (options: TrainerOptions = {}, from = model) =>
  openTrainer(from, { config: { rank: 4 }, batchSize: 3, threads: 1, maxLength: 128, ...options })

const largest = (values: Iterable<number>) =>
  Array.from(values).reduce((most, value) => Math.max(most, Math.abs(value)), 0)
const gap = (a: Float32Array, b: Float32Array) => largest(a.map((value, i) => value - b[i]))

/** Opens a trainer and takes a step, so that B is not zero. */
async function moved(options?: TrainerOptions, from?: Model): Promise<Trainer> {
  const trainer = await open(options, from)
  for (let i = 0; i < 3; i++) {
    await trainer.forwardBackward(data.slice(4 * i, 4 * i + 4))
    await trainer.step({ learningRate: 0.02 })
  }
  return trainer
}

const LONG = 'And the king said unto the people of the land, Go ye up, and see the ships that came down '.repeat(3)

describe('log-probabilities of samples', () => {
  it.each(
    cases<[string, number]>(
      [
        ['fp32', 0.7],
        ['q4', 1],
      ],
      [
        ['fp32', 1],
        ['q4', 0.7],
      ],
    ),
  )('are those of training: %s at temperature %s', async (dtype, temperature) => {
    const trainer = await moved({}, dtype === 'q4' ? quantized : model)
    const prompts = ['And the king', LONG, 'The sea']
    // The second call begins with the prompt that the first has read.
    for (const seed of [1, 2]) {
      const samples = await trainer.sample(prompts, { n: 3, temperature, maxNewTokens: 12, seed })
      expect(samples.map(({ length }) => length)).toEqual([3, 3, 3])
      const all = samples.flat()
      expect(new Set(all.map(({ text }) => text)).size).toBeGreaterThan(6)
      expect(samples[1][0].promptTokens).toBeGreaterThan(64)
      const { logprobs } = await trainer.forwardBackward(all, { temperature })
      const reread = await trainer.logprobs(all, { temperature })
      for (const [i, sample] of all.entries()) {
        expect(sample.ids.length).toBe(sample.promptTokens + sample.weights.reduce((sum, weight) => sum + weight, 0))
        expect(gap(logprobs[i], sample.logprobs)).toBeLessThan(1e-4)
        expect(gap(reread[i], sample.logprobs)).toBeLessThan(1e-4)
        expect(largest(sample.logprobs)).toBeGreaterThan(0.1)
      }
      const reference = await trainer.logprobs(all, { temperature, reference: true })
      expect(largest(all.map((sample, i) => gap(reference[i], sample.logprobs)))).toBeGreaterThan(0.05)
    }
    await trainer.dispose()
  })

  it('follow each step without opening the session again', async () => {
    const trainer = await open()
    const before = await trainer.sample(['The'], { temperature: 0, maxNewTokens: 4 })
    for (let i = 0; i < 4; i++) {
      await trainer.forwardBackward([{ prompt: 'The', completion: ' ship' }])
      await trainer.step({ learningRate: 0.05 })
    }
    const after = await trainer.sample(['The'], { temperature: 0, maxNewTokens: 4 })
    expect(after[0][0].text).not.toBe(before[0][0].text)
    expect(after[0][0].text).toMatch(/^ ship/)
    await trainer.dispose()
  })
})

describe('steps', () => {
  it('give the bytes of train(), if their batches are the same', async () => {
    const options = { config: { rank: 4 }, threads: 1, maxLength: 24 }
    const steps = { batchSize: 16, maxSteps: 3, learningRate: 5e-3, schedule: 'constant', warmupSteps: 0 } as const
    const trained = await train({ model, data: data.slice(0, 16), ...options, ...steps })
    const trainer = await open({ ...options, batchSize: 16 })
    const losses: number[] = []
    for (let i = 0; i < 3; i++) {
      losses.push((await trainer.forwardBackward(data.slice(0, 16))).loss)
      await trainer.step({ learningRate: 5e-3 })
    }
    expect(gap(Float32Array.from(losses), Float32Array.from(trained.report.trainLoss))).toBeLessThan(1e-5)
    const adapter = await trainer.save()
    for (const layer of trained.adapter.parts('linear')) {
      const other = adapter.get(layer.name, 'linear')!
      expect(gap(Float32Array.from(layer.weightB.data), Float32Array.from(other.weightB.data))).toBeLessThan(2e-4)
    }
    await trainer.dispose()
  })

  it('add up over calls, with one normalizer', async () => {
    const [whole, parts] = [await open(), await open()]
    const examples = (await whole.sample(['And', 'The sea'], { n: 2, maxNewTokens: 9, seed: 5 })).flat()
    const normalizer = examples.reduce((sum, { weights }) => sum + weights.reduce((a, b) => a + b, 0), 0)
    const { loss } = await whole.forwardBackward(examples)
    const losses = []
    for (const example of examples) losses.push((await parts.forwardBackward([example], { normalizer })).loss)
    expect(losses.reduce((sum, value) => sum + value, 0)).toBeCloseTo(loss, 4)
    const [a, b] = [await whole.step({ learningRate: 1e-3 }), await parts.step({ learningRate: 1e-3 })]
    expect(a.gradientNorm / b.gradientNorm).toBeCloseTo(1, 4)
    await expect(parts.step({ learningRate: 1e-3 })).rejects.toThrow(StateError)
    await Promise.all([whole.dispose(), parts.dispose()])
  })

  it('go on from a state with equal bytes', async () => {
    const more = async (trainer: Trainer) => {
      for (let i = 0; i < 2; i++) {
        const samples = await trainer.sample(['And the'], { n: 4, maxNewTokens: 6, seed: i })
        await trainer.forwardBackward(
          samples.flat().map((sample, k) => ({ ...sample, advantages: k - 1.5 })),
          { loss: 'ppo' },
        )
        await trainer.step({ learningRate: 0.01 })
      }
      const out = new MemoryDirectory()
      await trainer.save(out)
      await trainer.dispose()
      return out.files.get(WEIGHTS)
    }
    const options: TrainerOptions = { config: { rank: 4, dropout: 0.1 } }
    const [state, first] = [new MemoryDirectory(), await moved(options)]
    const text = [{ text: 'And the people' }]
    const reference = await first.logprobs(text, { reference: true })
    await first.saveState(state)
    const expected = await more(first)
    const resumed = await open({ ...options, resume: state })
    expect(resumed.steps).toBe(3)
    expect(await resumed.logprobs(text, { reference: true })).toEqual(reference)
    expect(await resumed.logprobs(text)).not.toEqual(reference)
    expect(await more(resumed)).toEqual(expected)
    await expect(open({ config: { rank: 2 }, resume: state })).rejects.toThrow(MismatchError)
  })
})

describe('saving', () => {
  const found = (folder: MemoryDirectory) => [...folder.files].map(([name, bytes]) => [name, Buffer.from(bytes)])

  it('leaves the adapter of another process alone, unless it may overwrite it', async () => {
    const trainer = await open({ config: { rank: 4 } })
    for (const call of ['save', 'saveState'] as const) {
      const folder = new MemoryDirectory()
      for (const name of ['adapter_config.json', WEIGHTS]) folder.files.set(name, new TextEncoder().encode('theirs'))
      const before = found(folder)
      await expect(trainer[call](folder), call).rejects.toMatchObject({
        code: 'FILE',
        what: 'has an adapter that this process did not write',
      })
      expect(found(folder)).toEqual(before)
      await trainer[call](folder, { overwrite: true })
      expect(folder.files.get(WEIGHTS)).not.toEqual(new TextEncoder().encode('theirs'))
      await trainer[call](folder)
    }
    await trainer.dispose()
  })

  it('writes over the state that it goes on from', async () => {
    const [first, state] = [await open({ config: { rank: 4 } }), new MemoryDirectory()]
    await first.saveState(state)
    await first.dispose()
    // Another process sees another folder with the same files.
    const copy = new MemoryDirectory()
    for (const [name, bytes] of state.files) copy.files.set(name, bytes)
    const resumed = await open({ config: { rank: 4 }, resume: copy })
    await resumed.saveState(copy)
    expect([...copy.files.keys()].sort()).toEqual([...state.files.keys()].sort())
    await resumed.dispose()
  })
})

describe('losses', () => {
  const ROWS: LossRow[] = [3, 5, 2, 4].map((count, r) => {
    const wave = (phase: number) => Float32Array.from({ length: count }, (_, i) => Math.sin(phase + 2.3 * i + r))
    return {
      tokens: new Int32Array(count),
      logprobs: wave(0).map((value) => value - 2),
      entropies: undefined,
      weights: wave(1).map((value) => 1 + value / 3),
      oldLogprobs: wave(0.2).map((value) => value - 2),
      reference: wave(0.4).map((value) => value - 2),
      advantages: wave(2),
    }
  })

  it.each(LOSS_NAMES.filter((name) => name !== 'cispo'))(
    '%s has the derivatives of central differences',
    async (name) => {
      const { namedLoss, checkDerivatives } = await import('../../../src/train/loop/losses.js')
      const loss = namedLoss(name, { epsilon: 0.15 })
      const result = await loss(ROWS)
      expect(largest(result.gradients.flatMap((values) => [...values]))).toBeGreaterThan(1e-3)
      await checkDerivatives(loss, ROWS, result)
      const wrong = result.gradients.map((values) => values.map((value) => value * 1.1))
      await expect(checkDerivatives(loss, ROWS, { ...result, gradients: wrong })).rejects.toThrow(NumericError)
    },
  )

  it('of your own give what the named one gives', async () => {
    const [named, own] = [await moved(), await moved()]
    const examples = (await named.sample(['And the'], { n: 4, maxNewTokens: 8, seed: 1 })).flat()
    const weighted = examples.map((example, i) => ({ ...example, advantages: [1, -1, 0.5, 0][i] }))
    const total = examples.reduce((sum, { weights }) => sum + weights.reduce((a, b) => a + b, 0), 0)
    const loss: LossFunction = (rows) => {
      const gradients = rows.map(({ logprobs, oldLogprobs, advantages }) => {
        return logprobs.map((value, i) => (-Math.exp(value - oldLogprobs![i]) * advantages![i]) / total)
      })
      return {
        loss: gradients.flatMap((values) => [...values]).reduce((a, b) => a + b, 0),
        gradients,
        metrics: { seen: rows.length },
      }
    }
    const a = await named.forwardBackward(weighted, { loss: 'importance-sampling' })
    const b = await own.forwardBackward(weighted, { loss, check: true })
    expect(b.loss).toBeCloseTo(a.loss, 5)
    expect(b.metrics).toEqual({ seen: 4 })
    const norms = [await named.step({ learningRate: 0 }), await own.step({ learningRate: 0 })]
    expect(norms[1].gradientNorm / norms[0].gradientNorm).toBeCloseTo(1, 4)
    await Promise.all([named.dispose(), own.dispose()])
  })

  it('raise the entropy, if they ask for it', async () => {
    const trainer = await moved({ entropy: true })
    const examples = (await trainer.sample(['And the'], { n: 3, maxNewTokens: 8, seed: 1 })).flat()
    const loss: LossFunction = (rows) => ({
      loss: -rows.flatMap(({ entropies }) => [...entropies!]).reduce((a, b) => a + b, 0),
      gradients: rows.map(({ logprobs }) => logprobs.map(() => 0)),
      entropyGradients: rows.map(({ logprobs }) => logprobs.map(() => -1)),
    })
    const losses: number[] = []
    for (let i = 0; i < 4; i++) {
      losses.push((await trainer.forwardBackward(examples, { loss, check: i === 0 })).loss)
      await trainer.step({ learningRate: 5e-3 })
    }
    expect(losses[0]).toBeLessThan(0)
    expect(losses[3]).toBeLessThan(losses[0] - 0.1)
    await trainer.dispose()
  })

  it('dpo learns from records, against the model as it was', async () => {
    const trainer = await open()
    const pair = { prompt: 'The sea', chosen: ' was calm.', rejected: ' was not there.' }
    const { loss, metrics } = await trainer.forwardBackward([pair], { loss: 'dpo' })
    expect(loss).toBeCloseTo(Math.log(2), 5)
    expect(metrics['rewards/margins']).toBeCloseTo(0, 5)
    await trainer.step({ learningRate: 0.02 })
    const later = await trainer.forwardBackward([pair], { loss: 'dpo' })
    expect(later.metrics['rewards/margins']).toBeGreaterThan(0.01)
    const kto = trainer.forwardBackward([pair], { loss: 'kto' as 'dpo' })
    await expect(kto).rejects.toThrow(/loss: .*got "kto"\. train\(\{ task: 'kto' \}\) learns from ratings/)
    await trainer.dispose()
  })
})

describe('refuses', () => {
  const ids = [1, 2, 3]
  it.each([
    ['ids out of range', { ids: [1, 1e6] }, {}, DataError],
    ['lists of other lengths', { ids, weights: [1] }, {}, DataError],
    ['examples without a target', { ids: [1] }, {}, ConfigError],
    ['a loss that lacks what it needs', { ids }, { loss: 'ppo' }, ConfigError],
    ['unknown losses', { ids }, { loss: 'grpoo' as 'ppo' }, ConfigError],
    ['a pair of one', { ids }, { loss: 'dpo' }, ConfigError],
    ['gradients of another shape', { ids }, { loss: () => ({ loss: 0, gradients: [] }) }, ShapeError],
    ['wrong derivatives', { ids }, { check: true, loss: wrong }, NumericError],
  ] as const)('%s', async (_, example, options, error) => {
    const trainer = await open()
    await expect(trainer.forwardBackward([example], options)).rejects.toThrow(error)
    await trainer.dispose()
    await expect(trainer.forwardBackward([{ ids }])).rejects.toThrow(StateError)
  })
})

function wrong(rows: readonly LossRow[]) {
  const loss = rows.flatMap(({ logprobs }) => [...logprobs]).reduce((a, b) => a + b * b, 0)
  return { loss, gradients: rows.map(({ logprobs }) => logprobs.slice()) }
}

it('reads short prompts together, each once for all its texts', async () => {
  const { module, fed } = recordingRuntime()
  const read = await loadModel(folder, { runtime: { module } })
  const session = await ModelSession.open(read, { threads: 1, maxBatch: 32 })
  const write = (prompts: readonly { ids: readonly number[] }[]) =>
    sampleTexts(session as unknown as TextSession, prompts, { maxNewTokens: 3, temperature: 1, seed: 5, batchSize: 32 })
  const [a, b] = [{ ids: [5, 6, 7] }, { ids: [8, 9] }]
  const texts = await write([a, a, b, a, b])
  expect(fed.map(({ input_ids }) => input_ids.dims)).toEqual([
    [2, 3],
    [5, 1],
    [5, 1],
  ])
  fed.length = 0
  // Equal prompts in lists of their own are not known to be equal.
  const apart = await write([a, a, b, a, b].map(({ ids }) => ({ ids: [...ids] })))
  expect(fed[0].input_ids.dims).toEqual([5, 3])
  expect(texts.map(({ sampledIds }) => sampledIds)).toEqual(apart.map(({ sampledIds }) => sampledIds))
  for (const [i, { sampledLogprobs }] of texts.entries()) {
    expect(gap(Float32Array.from(sampledLogprobs), Float32Array.from(apart[i].sampledLogprobs))).toBeLessThan(1e-5)
  }
  await session.dispose()
  await read.close()
})

it('with little memory, sampling and training close their sessions for each other, and learn the same', async () => {
  const open = new Set<unknown>()
  const create: OrtModule['InferenceSession']['create'] = async (...given) => {
    const session = await module.InferenceSession.create(...given)
    open.add(session)
    const release = async () => {
      open.delete(session)
      await session.release()
    }
    const { inputNames, outputNames } = session
    return { inputNames, outputNames, run: (...feeds) => session.run(...feeds), release }
  }
  const counted = await loadModel(folder, { runtime: { module: { ...module, InferenceSession: { create } } } })
  const learn = async (memory: 'low' | 'fast') => {
    const trainer = await openTrainer(counted, { config: { rank: 4 }, threads: 1, maxLength: 128, memory })
    const [counts, left]: number[][] = [[], []]
    const values: number[] = []
    for (let step = 0; step < 3; step++) {
      const texts = (await trainer.sample(['The', 'And'], { n: 2, maxNewTokens: 5, seed: step })).flat()
      counts.push(open.size)
      const examples = texts.map((text, i) => ({ ...text, advantages: i - 1.5 }))
      const { loss, logprobs } = await trainer.forwardBackward(examples, { loss: 'ppo' })
      await trainer.step({ learningRate: 0.02 })
      left.push(open.size)
      values.push(loss, ...logprobs.flatMap((row) => [...row]))
    }
    await trainer.dispose()
    return { counts, left, values: Float32Array.from(values) }
  }
  const [low, fast] = [await learn('low'), await learn('fast')]
  expect(low.counts).toEqual([1, 1, 1])
  expect(fast.counts).toEqual([1, 3, 3])
  // The pass for log-probabilities has a session of its own.
  expect([low.left, fast.left]).toEqual([
    [2, 2, 2],
    [3, 3, 3],
  ])
  expect(gap(low.values, fast.values)).toBeLessThan(1e-4)
  await counted.close()
})

it('reads a long prompt once for all its texts', async () => {
  const session = await ModelSession.open(model, { threads: 1 })
  const ids = Array.from({ length: 90 }, (_, i) => 5 + (i % 40))
  const prompt = { ids }
  const texts = await sampleTexts(session as unknown as TextSession, [prompt, prompt, prompt], {
    maxNewTokens: 3,
    temperature: 1,
  })
  expect(texts.map(({ cachedTokens }) => cachedTokens)).toEqual([0, 89, 89])
  await session.dispose()
})

it('copies only caches that there is room for together', () => {
  const store = new PrefixStore(100)
  expect(store.fitting([40, 50, 30, 20], (bytes) => bytes)).toEqual([50, 30, 20])
  expect(store.fitting([101], (bytes) => bytes)).toEqual([])
})
