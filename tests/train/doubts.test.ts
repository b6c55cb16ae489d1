import { expect, it } from 'vitest'
import { LoraAdapter, loadModel, type StepMetrics, train } from '../../src/api/node.js'
import { doubtsOf } from '../../src/train/saved/doubts.js'
import { folder, module } from './tiny.js'

const adapter = new LoraAdapter({ rank: 1, targetModules: ['q'] })
adapter.addFactors('q', [[1, 2]], [[3], [4]])

const steps = (losses: readonly number[], rewards?: (loss: number) => object) =>
  losses.map((loss, i) => ({
    step: i + 1,
    loss,
    learningRate: 1,
    ...(rewards && { rewards: rewards(loss) }),
  })) as StepMetrics[]

const doubts = (metrics: StepMetrics[], keepsBest = false, withoutGain: string[] = []) =>
  doubtsOf({ metrics, keepsBest, withoutGain }, adapter)

const ramp = (from: number, to: number) => Array.from({ length: 30 }, (_, i) => from + ((to - from) * i) / 29)

it('doubts a loss that ends above three times its start', () => {
  expect(doubts(steps(ramp(1, 3)))).toEqual([])
  const [doubt] = doubts(steps(ramp(1, 4)))
  expect(doubt).toMatch(/^the loss rose from 1\.10 to 3\.90: lower `learningRate`.*`keep: 'best'`/)
  expect(doubts(steps(ramp(1, 4)), true)).toEqual([])
  // A single batch is no trend, and a loss around 0 has no multiple.
  expect(doubts(steps([...ramp(1, 1), 9]))).toEqual([])
  expect(doubts(steps(ramp(-1, 4)))).toEqual([])
})

it('judges runs from rewards by the reward and by the distance from the start', () => {
  const rewards = (reward: number) => ({ reward, deviation: 0.5, withoutSignal: 0, kl: 0.1 })
  expect(doubts(steps(ramp(1, 4), rewards))).toEqual([])
  expect(doubts(steps(ramp(1, 0.8), rewards))).toEqual([])
  expect(doubts(steps(ramp(4, 1), rewards))).toEqual([expect.stringMatching(/^the reward fell from 3.9/)])
  const far = (kl: number) => ({ ...rewards(1), kl })
  expect(doubts(steps(ramp(0, 4), far))).toEqual([expect.stringMatching(/^the texts are 3.86 nats/)])
})

it.each([
  ['one step', { maxSteps: 1 }, []],
  ['a rate of 0', { maxSteps: 1, warmupSteps: 1 }, ['no step had a learning rate above 0: nothing was learned']],
])('tells of a run with %s', async (_, options, warnings) => {
  const model = await loadModel(folder, { runtime: { module } })
  const { adapter, report } = await train({ model, data: [{ text: 'In the beginning' }], threads: 1, ...options })
  expect(report.warnings).toEqual(warnings)
  const isZero = adapter.parts('linear').every(({ weightB }) => weightB.data.every((value) => value === 0))
  expect(isZero).toBe(warnings.length > 0)
  await model.close()
})
