// GRPO compared with TRL's GRPOTrainer: advantages, losses, gradients and a second iteration. Also runs: resuming, and
// rewards that fail.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  ConfigError,
  DataError,
  type GrpoOptions,
  type LossRow,
  loadAdapter,
  loadModel,
  MemoryDirectory,
  type Model,
  NumericError,
  openTrainer,
  RuntimeError,
  type StepEvent,
  type TokenExample,
} from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../../src/files/safetensors.js'
import { advantagesOf, grpoLoss, REWARD_SCALES } from '../../../src/train/loop/grpo-loss.js'
import { checkDerivatives } from '../../../src/train/loop/losses.js'
import type { Trainer } from '../../../src/train/loop/trainer.js'
import type { TrainInput } from '../../../src/train/options.js'
import { train } from '../../../src/train/train.js'
import '../../equal-bytes.js'
import { relativeError, transposed } from '../../model/golden.js'
import { some } from '../../thorough.js'
import { folder, module, WEIGHTS } from '../tiny.js'

const FOLDER = 'tests/golden/grpo'

interface Golden {
  adamw: { lr: number; weightDecay: number; maxGradNorm: number }
  temperature: number
  maxCompletionLength: number
  rewards: number[][]
  advantages: Record<(typeof REWARD_SCALES)[number], number[]>
  rows: { prompt: number[]; completion: number[]; isTruncated: boolean }[]
  old: number[][]
  reference: number[][]
  cells: {
    lossType: NonNullable<GrpoOptions['lossType']>
    beta: number
    maskTruncated: boolean
    losses: number[]
    gradNorms: number[]
    outside: number
  }[]
}

const golden: Golden = JSON.parse(readFileSync(`${FOLDER}/golden.json`, 'utf8'))
const { adamw, temperature, maxCompletionLength } = golden

describe('as TRL', () => {
  let union: Model
  beforeAll(async () => {
    union = await loadModel('models/union-3m', { runtime: { module } })
  })
  afterAll(() => union.close())

  it.each(REWARD_SCALES)('advantages of rewards scaled by %s', (scale) => {
    const found = advantagesOf(golden.rewards, scale).flat()
    for (const [i, value] of golden.advantages[scale].entries()) expect(found[i]).toBeCloseTo(value, 4)
  })

  it.each(REWARD_SCALES)('a group in which one text alone is judged learns nothing: rewards scaled by %s', (scale) => {
    const unjudged = Number.NaN
    expect(advantagesOf([[unjudged, 3, unjudged]], scale)).toEqual([[0, 0, 0]])
    expect(advantagesOf([[unjudged, unjudged]], scale)).toEqual([[0, 0]])
  })

  it.each(some(golden.cells))('losses and gradients of $lossType with beta $beta', async (cell) => {
    expect(cell.outside).toBeGreaterThan(0.1)
    const adapter = await loadAdapter(`${FOLDER}/adapter-init`)
    const { maxGradNorm, weightDecay, lr } = adamw
    const trainer = await openTrainer(union, { adapter, maxGradNorm, weightDecay, threads: 1, batchSize: 3 })
    const examples = golden.rows.map(({ prompt, completion, isTruncated }, i): TokenExample => {
      const spread = (values: readonly number[]) => [...prompt.map(() => 0), ...values]
      return {
        ids: [...prompt, ...completion],
        weights: spread(completion.map(() => (cell.maskTruncated && isTruncated ? 0 : 1))),
        logprobs: spread(golden.old[i]),
        reference: spread(golden.reference[i]),
        advantages: golden.advantages.group[i],
      }
    })
    const { lossType, beta } = cell
    const loss = grpoLoss({ lossType, beta, epsilon: 0.2, epsilonHigh: 0.3, maxCompletionLength })
    const losses: number[] = []
    const norms: number[] = []
    for (let iteration = 0; iteration < 2; iteration++) {
      losses.push((await trainer.forwardBackward(examples, { loss, temperature })).loss)
      norms.push((await trainer.step({ learningRate: lr })).gradientNorm)
      if (iteration === 0) await compareGradients(trainer, cell, norms[0])
    }
    for (const i of [0, 1]) {
      expect(Math.abs(losses[i] - cell.losses[i])).toBeLessThan(1e-4)
      expect(norms[i] / cell.gradNorms[i]).toBeCloseTo(1, 3)
    }
    await trainer.dispose()
  })

  async function compareGradients(trainer: Trainer, { lossType, beta }: Golden['cells'][number], norm: number) {
    const source = await new NodeDirectory(FOLDER).open('gradients.safetensors')
    const file = await parseSafetensorsHeader(source)
    const prefix = `${lossType}/${beta === 0 ? '0.0' : beta}/`
    const { names } = trainer.inner
    const engine = await trainer.inner.engine.state()
    expect(names).toHaveLength(4)
    for (const [i, name] of names.entries()) {
      const [, module, factor] = /^(.*)\.([AB])$/.exec(name)!
      const { data, shape } = await readTensorF32(file, `${prefix}base_model.model.${module}.lora_${factor}.weight`)
      const expected = factor === 'B' ? transposed(data, shape) : data
      // After AdamW's first step, the first moment is a tenth of the clipped gradient.
      const scale = 10 / Math.min(1, adamw.maxGradNorm / (norm + 1e-6))
      expect(
        relativeError(
          engine.firstMoments[i].map((value) => value * scale),
          expected,
        ),
        name,
      ).toBeLessThan(1e-4)
    }
    await source.close()
  }
})

it('has the derivatives of central differences', async () => {
  const rows = [3, 5].map((count, r): LossRow => {
    const wave = (phase: number) => Float32Array.from({ length: count }, (_, i) => Math.sin(phase + 2.3 * i + r) - 2)
    const advantages = wave(2).map((value) => value + 2)
    return {
      ...{
        tokens: new Int32Array(count),
        logprobs: wave(0),
        oldLogprobs: wave(0.15),
        reference: wave(0.4),
        advantages,
      },
      ...{ entropies: undefined, weights: wave(1) },
    }
  })
  for (const lossType of ['grpo', 'dr_grpo', 'dapo'] as const) {
    const loss = grpoLoss({ lossType, beta: 0.2 })
    await checkDerivatives(loss, rows, await loss(rows))
  }
})

describe('runs', () => {
  let model: Model
  beforeAll(async () => {
    model = await loadModel(folder, { runtime: { module } })
  })
  afterAll(() => model.close())

  const run = (options: Partial<TrainInput> = {}, taskOptions: GrpoOptions = {}) =>
    train({
      model,
      // JSON has no bigint, and records are digested for a resume.
      data: ['And the', 'The sea', 'He was'].map((prompt, i) => ({ prompt, id: BigInt(i) })),
      task: 'grpo',
      rewards: [
        function short({ text }) {
          return -text.length / 10
        },
      ],
      taskOptions: { numGenerations: 4, maxCompletionLength: 6, ...taskOptions },
      ...{ batchSize: 2, maxSteps: 4, threads: 1, config: { rank: 4 } },
      ...options,
    })

  it('learn what the rewards ask for, with two iterations and a reference', async () => {
    const steps: StepEvent[] = []
    const out = new MemoryDirectory()
    const on = { step: (event: StepEvent) => void steps.push(event) }
    const { report, adapter } = await run({ out, on }, { numIterations: 2, beta: 0.04 })
    expect(report).toMatchObject({ task: 'grpo', steps: 4, interrupted: false })
    expect(report.rewards).toHaveLength(4)
    expect(steps.map(({ step }) => step)).toEqual([1, 2, 3, 4])
    const [first, second] = steps.map(({ rewards }) => rewards!)
    expect(second.reward).toBe(first.reward)
    expect(Object.keys(first.byFunction)).toEqual(['short'])
    expect(first).toMatchObject({ clipped: 0, withoutSignal: 0 })
    expect(first.kl).toBeCloseTo(0, 6)
    expect(first.deviation).toBeGreaterThan(0)
    expect(steps[3].rewards!.kl).toBeGreaterThan(1e-5)
    expect(await out.list()).toEqual(expect.arrayContaining(['adapter_config.json', 'metrics.jsonl', WEIGHTS]))
    expect(adapter.size).toBeGreaterThan(0)
  })

  it('go on after a reward that failed, to the bytes of one run', async () => {
    const whole = new MemoryDirectory()
    const expected = await run({ out: whole })
    const out = new MemoryDirectory()
    let calls = 0
    const failing = function short({ text }: { text: string }) {
      if (++calls === 20) throw new Error('no more money')
      return -text.length / 10
    }
    const error = await run({ out, rewards: [failing] }).catch((caught) => caught)
    expect(error).toBeInstanceOf(RuntimeError)
    expect(error.message).toMatch(/reward short.*no more money.*The prompt: "\w+ .*The text: "/s)
    const { report } = await run({ out, resume: true })
    expect(report.trainLoss).toEqual(expected.report.trainLoss)
    expect(out.files.get(WEIGHTS)).toEqual(whole.files.get(WEIGHTS))
  })

  it('change nothing by texts that are cut, and take no step', async () => {
    const parts: unknown[] = []
    for (const maxSteps of [0, 4]) {
      const [out, on] = [new MemoryDirectory(), {}]
      const taskOptions = { beta: 0.5, maskTruncatedCompletions: true, maxCompletionLength: 1 }
      const given = { out, on, learningRate: 0.1, config: { rank: 4, init: 'kaiming-uniform' as const } }
      const stopped = maxSteps === 0 ? AbortSignal.abort() : undefined
      const { adapter, report } = await run({ ...given, signal: stopped, weightDecay: 0.1 }, taskOptions)
      parts.push(adapter.parts('linear').flatMap(({ weightA, weightB }) => [weightA.data, weightB.data]))
      if (maxSteps === 0) continue
      expect(report.trainLoss).toEqual([0, 0, 0, 0])
      expect(report.warnings).toEqual(['every B is still all zeros: the layers learned nothing'])
    }
    expect(parts[1]).toEqual(parts[0])
  })

  it.each([
    ['are equal', () => 1],
    ['are null', () => null],
    ['are all true', () => true],
  ])('warn and say that nothing was learned if rewards %s', async (_, reward) => {
    const warnings: string[] = []
    const on = { warning: (message: string) => void warnings.push(message) }
    const { report, adapter } = await run({ rewards: [reward], on })
    expect(warnings).toEqual([expect.stringMatching(/^in the first 3 steps no text was better/)])
    expect(report.warnings).toEqual(['no text was better than another: nothing was learned'])
    expect(report.stepsWithoutSignal).toBe(4)
    expect(adapter.parts('linear').every(({ weightB }) => weightB.data.every((value) => value === 0))).toBe(true)
  })

  it('end with the last good weights when the model gives NaN', async () => {
    const out = new MemoryDirectory()
    const error = await run({
      out,
      learningRate: 10,
      maxGradNorm: 0,
      config: { rank: 4, alpha: 1e30 },
      warmupSteps: 0,
    }).catch((caught) => caught)
    expect(error).toBeInstanceOf(NumericError)
    expect(error.message).toMatch(/^step 2: the loss is NaN; the last good adapter is in /)
    const { data } = (await loadAdapter(out)).parts('linear')[0].weightB
    expect(data.every(Number.isFinite)).toBe(true)
    expect(await out.list()).not.toContain('training-state.safetensors')
  })

  it.each([
    ['hangs', () => new Promise<number>(() => {}), RuntimeError, /within 0.05 seconds/],
    ['gives NaN', () => Number.NaN, NumericError, /not a finite number.*NaN/s],
    ['gives a text', () => 'good' as unknown as number, NumericError, /good/],
    [
      'throws',
      () => {
        throw new RuntimeError({ what: 'the judge is gone' })
      },
      RuntimeError,
      /it threw: the judge is gone/,
    ],
  ])('end with a reward that %s, and keep the state', async (_, reward, error, message) => {
    const out = new MemoryDirectory()
    const caught = await run({ out, rewards: [reward] }, { rewardSeconds: 0.05 }).catch((found) => found)
    expect(caught).toBeInstanceOf(error)
    expect(caught.message).toMatch(message)
    expect(caught.message).toMatch(/The prompt: ".*The text: "/)
    expect(await out.list()).toEqual(expect.arrayContaining([WEIGHTS, 'training-state.safetensors']))
  })

  it.each([
    [{ rewards: [] }, ConfigError, /rewards/],
    [{ taskOptions: { lossType: 'luspo' } }, ConfigError, /lossType/],
    [{ taskOptions: { numGeneration: 4 } }, ConfigError, /numGenerations/],
    [{ taskOptions: { rewardWeights: { shrt: 2 } } }, ConfigError, /rewardWeights.shrt.*short/s],
    [{ data: [{ text: 'The sea' }] }, DataError, /prompt/],
    [{ data: [] }, DataError, /no records/],
  ] as const)('refuse %j', async (options, error, message) => {
    const caught = await run(options as Partial<TrainInput>).catch((found) => found)
    expect(caught).toBeInstanceOf(error)
    expect(caught.message).toMatch(message)
  })
})
