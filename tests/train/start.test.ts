// The weights before the first step compete for those that a run ends with.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type LoraAdapter, loadAdapter, loadModel, MemoryDirectory, type Model } from '../../src/api/node.js'
import type { TrainInput } from '../../src/train/options.js'
import { abortAt, data, folder, module, trainTiny, WEIGHTS } from './tiny.js'

let model: Model
const start = new MemoryDirectory({}, 'start')
const evalData = data.slice(0, 4)
beforeAll(async () => {
  model = await loadModel(folder, { runtime: { module } })
  await trainTiny({ model, data: evalData, learningRate: 2e-2, maxSteps: 30, out: start })
})
afterAll(() => model.close())

/** The adapter knows the texts for evaluation, and each step on other texts makes them less likely. */
const train = async (options: Partial<TrainInput> = {}) =>
  trainTiny({
    ...{ model, adapter: await loadAdapter(start), data: data.slice(8, 12), evalData, learningRate: 0.05 },
    ...{ schedule: 'constant', warmupRatio: 0, maxSteps: 4, evalEvery: 1, keep: 'best' },
    ...options,
  })
const weightsOf = (adapter: LoraAdapter) =>
  adapter.parts('linear').flatMap(({ weightA, weightB }) => [weightA.data, weightB.data])

describe('if no evaluation is better than the first', () => {
  it('the run ends with the adapter that it began with, and says so', async () => {
    const { adapter, report } = await train()
    const [before, ...after] = report.evaluations.map(({ loss }) => loss)
    expect(Math.min(...after)).toBeGreaterThan(before)
    expect(report).toMatchObject({ keptStep: 0, steps: 4, evalLoss: { before, after: before } })
    expect(report.warnings).toEqual([
      expect.stringMatching(/^the run made nothing better \(loss .* before, .* after\), so the adapter is as it was/),
    ])
    expect(weightsOf(adapter)).toEqual(weightsOf(await loadAdapter(start)))
  })

  it('a run that keeps the last weights says it too', async () => {
    const { adapter, report } = await train({ keep: 'last' })
    expect(report.keptStep).toBe(4)
    expect(report.warnings.at(-1)).toMatch(/made nothing better.*`keep: 'best'` would keep the adapter as it was/)
    expect(weightsOf(adapter)).not.toEqual(weightsOf(await loadAdapter(start)))
  })

  it('an equal evaluation does not replace it', async () => {
    const { report } = await train({ maxSteps: 1, warmupRatio: undefined, warmupSteps: 1 })
    expect(report).toMatchObject({ keptStep: 0, evalLoss: { after: report.evalLoss!.before } })
  })

  it('patience does not count it, and a resumed run has the same bytes', async () => {
    const [whole, broken] = [new MemoryDirectory(), new MemoryDirectory()]
    const options = { earlyStopping: 2, maxSteps: 8 }
    const { report } = await train({ out: whole, ...options })
    const losses = report.evaluations.slice(1).map(({ loss }) => loss)
    const lowest = losses.indexOf(Math.min(...losses))
    expect(report).toMatchObject({ keptStep: 0, steps: Math.min(8, lowest + 1 + 2) })
    await train({ out: broken, ...options, ...abortAt(1) })
    const resumed = await train({ out: broken, ...options, resume: true })
    expect(resumed.report).toMatchObject({ keptStep: 0, steps: report.steps, warnings: report.warnings })
    expect(broken.files.get(WEIGHTS)).toEqual(whole.files.get(WEIGHTS))
  })

  it('a gain after the first step is kept', async () => {
    const { report } = await train({ data: evalData, learningRate: 5e-3 })
    expect(report.keptStep).toBeGreaterThan(0)
    expect(report.warnings).toEqual([])
  })
})
