import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  ConfigError,
  type EvaluationEvent,
  loadModel,
  MemoryDirectory,
  type Model,
  type TrainResult,
  train as trainByOptions,
} from '../../src/api/node.js'
import type { TrainInput } from '../../src/train/options.js'
import { BestEvaluation } from '../../src/train/saved/best.js'
import { METRICS_FILE, STATE_FILE } from '../../src/train/saved/run-folder.js'
import { cases } from '../thorough.js'
import { abortAt, data, folder, module, trainTiny, WEIGHTS } from './tiny.js'

let model: Model
beforeAll(async () => {
  model = await loadModel(folder, { runtime: { module } })
})
afterAll(() => model.close())

/** With this learning rate, which is far too high, the loss falls and rises again. */
const TOO_FAST: Partial<TrainInput> = {
  data: data.slice(0, 4),
  evalData: [{ text: 'const q = [0x1f, 0x2e]; // zzz {}' }, { text: '@@@ 12345 %% ~~ 98765 == ||' }],
  learningRate: 0.2,
  schedule: 'constant',
  warmupRatio: 0,
  maxSteps: 12,
  evalEvery: 2,
}

const train = (options: Partial<TrainInput> = {}) => trainTiny({ model, ...TOO_FAST, ...options })

/** Trains, and returns the losses of the evaluations. */
async function evaluations(options: Partial<TrainInput> = {}) {
  const events: EvaluationEvent[] = []
  const result = await train({ ...options, on: { evaluation: (event) => void events.push(event) } })
  return { events: events.filter(({ step }) => step > 0), ...result }
}

describe('keep: best', () => {
  it('ends with the weights of the best evaluation', async () => {
    const [last, best, short] = [new MemoryDirectory(), new MemoryDirectory(), new MemoryDirectory()]
    const { events, report } = await evaluations({ out: best, keep: 'best' })
    const lowest = events.reduce((a, b) => (b.loss < a.loss ? b : a))
    expect(lowest.step).toBeLessThan(12)
    expect(report).toMatchObject({ steps: 12, keptStep: lowest.step, stoppedEarly: false, interrupted: false })
    expect(report.evalLoss?.after).toBe(lowest.loss)
    expect(report.evalMetrics).toEqual(lowest.metrics)
    const plain = await train({ out: last })
    expect(plain.report).toMatchObject({ keptStep: 12, trainLoss: report.trainLoss })
    expect(best.files.get(WEIGHTS)).not.toEqual(last.files.get(WEIGHTS))
    await train({ out: short, maxSteps: lowest.step })
    expect(best.files.get(WEIGHTS)).toEqual(short.files.get(WEIGHTS))
    expect([...best.files.keys()].sort()).toEqual([...last.files.keys()].sort())
  })

  it('is as good as the last where each evaluation is better', async () => {
    const [last, best] = [new MemoryDirectory(), new MemoryDirectory()]
    const slow = { learningRate: 5e-3, evalData: TOO_FAST.data }
    const { report } = await train({ out: best, keep: 'best', ...slow })
    await train({ out: last, ...slow })
    expect(report.keptStep).toBe(12)
    expect(best.files.get(WEIGHTS)).toEqual(last.files.get(WEIGHTS))
  })

  it('evaluates after each pass over the data where nothing else is said', async () => {
    const { events } = await evaluations({ data: data.slice(0, 16), evalEvery: undefined, keep: 'best' })
    expect(events.map(({ step }) => step)).toEqual([4, 8, 12])
  })

  it('is judged by a metric of the task', async () => {
    const { events, report } = await evaluations({ keep: 'best', bestMetric: 'perplexity' })
    expect(report.evalMetrics?.perplexity).toBe(Math.min(...events.map(({ metrics }) => metrics.perplexity)))
    const out = new MemoryDirectory()
    const wrong = train({ out, keep: 'best', bestMetric: 'perplexty' })
    await expect(wrong).rejects.toThrow(
      /^bestMetric: the task has no such metric; expected loss, perplexity, accuracy, got perplexty. Did you mean perplexity/,
    )
    expect(out.files.size).toBe(0)
  })
})

describe('earlyStopping', () => {
  it('ends the run after some evaluations that are no better', async () => {
    const { events: all } = await evaluations()
    const { events, report } = await evaluations({ earlyStopping: 2 })
    const lowest = all.reduce((a, b) => (b.loss < a.loss ? b : a))
    const bad = all.indexOf(lowest) + 2
    expect(bad).toBeLessThan(all.length - 1)
    expect(events).toEqual(all.slice(0, bad + 1))
    expect(report).toMatchObject({
      steps: all[bad].step,
      keptStep: all[bad].step,
      stoppedEarly: true,
      interrupted: false,
    })
    expect(report.evalLoss?.after).toBe(all[bad].loss)
  })
})

describe('a resumed run', () => {
  const options = { keep: 'best', earlyStopping: 3 } as const
  const whole = new MemoryDirectory()
  let unbroken: TrainResult
  beforeAll(async () => {
    unbroken = await train({ out: whole, ...options })
  })

  it.each(cases([4], [1, 7]))('that stopped in step %i has the bytes of an unbroken one', async (step) => {
    const broken = new MemoryDirectory()
    expect(unbroken.report.stoppedEarly).toBe(true)
    expect(unbroken.report.keptStep).toBeLessThan(unbroken.report.steps)
    expect((await train({ out: broken, ...options, ...abortAt(step) })).report.interrupted).toBe(true)
    const { report } = await train({ out: broken, ...options, resume: true })
    const { seconds, stepMillis, peakRssBytes, ...same } = report
    expect(unbroken.report).toMatchObject(same)
    expect(broken.files.get(WEIGHTS)).toEqual(whole.files.get(WEIGHTS))
    expect(losses(broken)).toEqual(losses(whole))
  })

  it('that was killed after the evaluation which ended it makes no more steps', async () => {
    const broken = new MemoryDirectory()
    const stop = new Error('stop')
    const stage = (name: string) => {
      if (name === 'save') throw stop
    }
    await expect(train({ out: broken, ...options, saveEvery: 2, on: { stage } })).rejects.toThrow(stop)
    expect(broken.files.has(STATE_FILE)).toBe(true)
    const steps: number[] = []
    const resumed = await train({
      out: broken,
      ...options,
      resume: true,
      on: { step: ({ step }) => void steps.push(step) },
    })
    expect(steps).toEqual([])
    expect(resumed.report).toMatchObject({ stoppedEarly: true, keptStep: unbroken.report.keptStep })
    expect(resumed.report.evalLoss).toEqual(unbroken.report.evalLoss)
    expect(broken.files.get(WEIGHTS)).toEqual(whole.files.get(WEIGHTS))
  })

  it('has to evaluate as often as before', async () => {
    const out = new MemoryDirectory()
    await train({ out, ...options, ...abortAt(3) })
    await expect(train({ out, ...options, evalEvery: 3, resume: true })).rejects.toThrow(/another evalEvery/)
    await expect(train({ out, ...options, earlyStopping: 4, resume: true })).rejects.toThrow(/another earlyStopping/)
  })
})

describe('bad settings', () => {
  it.each([
    [{ keep: 'best', evalData: undefined, evalEvery: undefined }, /^evalData: .keep: 'best'. needs records/],
    [{ earlyStopping: 2, evalData: undefined, evalEvery: undefined }, /^evalData: .earlyStopping. needs records/],
    [{ bestMetric: 'perplexity' }, /^bestMetric: it has no effect without `keep: 'best'`/],
  ] as [Partial<TrainInput>, RegExp][])('%j', async (options, message) => {
    const error = await (async () => train(options))().catch((error: unknown) => error)
    expect(error).toBeInstanceOf(ConfigError)
    expect((error as Error).message).toMatch(message)
  })
})

it.each([{ keep: 'worst' as never }, { earlyStopping: 0 }])('%j is refused by the entry', async (options) => {
  const [name] = Object.keys(options)
  await expect(trainByOptions({ model, data, ...options })).rejects.toThrow(new RegExp(`^${name}: not valid`))
})

describe('BestEvaluation', () => {
  const add = (best: BestEvaluation, values: readonly number[]) =>
    values.map((accuracy, step) => best.add({ step, loss: accuracy, metrics: { accuracy } }))

  it('takes the lowest loss, and the first of equal ones', () => {
    const best = new BestEvaluation('loss')
    expect(add(best, [3, 2, 2, 4, 1])).toEqual([true, true, false, false, true])
    expect(best.state).toMatchObject({ best: { step: 4 }, stale: 0 })
  })

  it('takes the highest of other metrics; what is not a number is worse than any', () => {
    const best = new BestEvaluation('accuracy')
    expect(add(best, [Number.NaN, 0.5, Number.NaN, 0.4, 0.5])).toEqual([true, true, false, false, false])
    expect(best.state).toMatchObject({ best: { step: 1 }, stale: 3 })
    expect([best.isStale(3), best.isStale(4), best.isStale(undefined)]).toEqual([true, false, false])
  })
})

function losses(directory: MemoryDirectory): unknown[] {
  const lines = new TextDecoder().decode(directory.files.get(METRICS_FILE)).trimEnd().split('\n')
  return lines.map((line) => JSON.parse(line)).map(({ elapsedMs, ...rest }) => rest)
}
