// Held-out prompts of runs in which the model writes the texts: what their likeliest texts are worth, with intervals.

import { loadAdapter, loadModel, type Model, openSession, train } from 'lowrank'
import { createHandler, listen } from 'lowrank/server'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { enginesHere } from '../../engines-here.js'

let model: Model
beforeAll(enginesHere)
beforeAll(async () => {
  model = await loadModel('models/union-3m')
})
afterAll(() => model.close())

const prompts = (...texts: string[]) => texts.map((prompt) => ({ prompt }))
const data = prompts('And the', 'The sea', 'He was')
const evalData = prompts('The whale', 'She said', 'In the beginning', 'The captain', 'It was')
const shared = { model: 'models/union-3m', data, evalData, batchSize: 3, threads: 1, config: { rank: 4 }, on: {} }
const brief = ({ text }: { text: string }) => -text.length / 10
const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length

it('measures the reward of the texts that a session writes, and keeps the best', async () => {
  const { adapter, report } = await train({
    ...{ ...shared, task: 'grpo', rewards: [brief], maxSteps: 4, learningRate: 1e-2 },
    taskOptions: { numGenerations: 4, maxCompletionLength: 8 },
    ...{ evalEvery: 2, keep: 'best', bestMetric: 'reward' },
  })
  expect(report.evaluations.map(({ step }) => step)).toEqual([0, 2, 4])
  const texts = async (given?: typeof adapter) => {
    const session = await openSession(model, { threads: 1, ...(given && { adapters: { ours: given } }) })
    const options = { maxNewTokens: 8, temperature: 0, ...(given && { adapter: 'ours' }) }
    const found = await Promise.all(evalData.map(async ({ prompt }) => (await session.generate(prompt, options)).text))
    await session.dispose()
    return found
  }
  const kept = report.evaluations.find(({ step }) => step === report.keptStep)!
  for (const [{ loss, metrics }, found] of [
    [report.evaluations[0], await texts()],
    [kept, await texts(adapter)],
  ] as const) {
    expect(metrics.reward).toBeCloseTo(mean(found.map((text) => brief({ text }))), 6)
    expect(loss).toBe(-metrics.reward)
    expect(metrics.rewardLow).toBeLessThan(metrics.reward)
    expect(metrics.rewardHigh).toBeGreaterThan(metrics.reward)
  }
  expect(kept.metrics.reward).toBe(Math.max(...report.evaluations.map(({ metrics }) => metrics.reward)))
}, 60_000)

it('takes a share of the prompts, and names prompts whose texts nothing can measure', async () => {
  const some = { ...shared, evalData: undefined, evalSplit: 0.4, task: 'grpo', maxSteps: 1 } as const
  const taskOptions = { numGenerations: 2, maxCompletionLength: 4 }
  const seen: (string | undefined)[] = []
  const { report } = await train({ ...some, taskOptions, rewards: [({ prompt }) => seen.push(String(prompt))] })
  expect(report.evaluations).toHaveLength(2)
  // One prompt is held out: two texts of it beside two of each of the others.
  expect(seen.length).toBe(2 + 2 * 2)
  await expect(train({ ...some, taskOptions, rewards: [() => null] })).rejects.toThrow(/evalData.*could be measured/)
  const other = train({ ...some, taskOptions, rewards: [brief], keep: 'best', bestMetric: 'accuracy' })
  await expect(other).rejects.toMatchObject({ name: 'ConfigError', where: 'bestMetric' })
}, 60_000)

it('measures how often a teacher, here or behind a server, would have written the same', async () => {
  const handler = await createHandler({ model, servedModelName: 'teacher', on: {} })
  const { url, close } = await listen(handler, { port: 0 })
  const start = await loadAdapter('tests/golden/distill/adapter-init')
  const run = async (given: object, adapter?: typeof start) => {
    const { report } = await train({
      ...{ ...shared, task: 'distill', maxSteps: 1 },
      ...(adapter && { config: undefined, adapter }),
      ...given,
    } as never)
    return report.evaluations[0]
  }
  const here = { teacher: model, taskOptions: { maxCompletionLength: 6 } }
  const there = { teacher: `${url}/v1`, taskOptions: { maxCompletionLength: 6, teacherModel: 'teacher' } }
  try {
    // The student is its own teacher.
    const same = await run(here)
    expect(same.metrics.agreement).toBe(1)
    const [local, server] = [
      await run(here, start),
      await run(there, await loadAdapter(`tests/golden/distill/adapter-init`)),
    ]
    expect(local.metrics.agreement).toBeLessThan(1)
    expect(local.metrics.agreement).toBeGreaterThan(0)
    expect(local.metrics.agreementLow).toBeLessThanOrEqual(local.metrics.agreement)
    expect(local.loss).toBeCloseTo(1 - local.metrics.agreement, 12)
    expect(server).toEqual(local)
  } finally {
    await close()
  }
}, 60_000)
