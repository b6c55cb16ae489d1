import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  ConfigError,
  type Model,
  type TrainEvent,
  type TrainOptions,
  train as trainPublic,
} from '../../src/api/node.js'
import { openModel } from '../run/models.js'

let model: Model
beforeAll(async () => {
  model = await openModel('tests/golden/models/llama-optimum')
})
afterAll(() => model.close())

const options: Omit<TrainOptions, 'model'> = {
  data: [{ text: 'The sea was calm and the ship went on.' }],
  evalData: [{ text: 'The king of the sea.' }],
  maxSteps: 4,
  maxLength: 16,
  threads: 1,
  config: { rank: 2 },
}

const train = (own: Omit<TrainOptions, 'model'>) => trainPublic({ model, ...own })

describe('the run that train returns', () => {
  it('gives its events while it goes on, and its result as a promise', async () => {
    const heard: number[] = []
    const run = train({ ...options, on: { step: ({ step }) => void heard.push(step) } })
    const events: TrainEvent[] = []
    for await (const event of run) events.push(event)
    const { report } = await run
    const steps = events.filter((event) => event.type === 'step')
    expect(steps.map(({ loss }) => loss)).toEqual(report.trainLoss)
    expect(heard).toEqual([1, 2, 3, 4])
    expect(events.flatMap((event) => (event.type === 'evaluation' ? [event.step] : []))).toEqual([0, 4])
    expect(events.find((event) => event.type === 'stage')).toEqual({ type: 'stage', stage: 'encode' })
  })

  it('can be paused between two steps, and gives the same as without', async () => {
    const plain = await train(options)
    const seen: number[] = []
    const run = train({
      ...options,
      on: {
        step({ step }) {
          seen.push(step)
          if (step === 2) run.pause()
        },
      },
    })
    for await (const event of run) {
      if (event.type !== 'step' || event.step !== 2) continue
      await new Promise((resolve) => setTimeout(resolve, 300))
      expect(seen).toEqual([1, 2])
      run.resume()
    }
    expect((await run).report.trainLoss).toEqual(plain.report.trainLoss)
  })

  it('ends where it is aborted while it is paused', async () => {
    const controller = new AbortController()
    const run = train({ ...options, signal: controller.signal })
    run.pause()
    for await (const event of run)
      if (event.type === 'stage' && event.stage === 'train') setTimeout(() => controller.abort(), 20)
    expect((await run).report).toMatchObject({ steps: 0, interrupted: true })
  })

  it('goes on where the reader leaves the loop', async () => {
    const run = train(options)
    for await (const event of run) if (event.type === 'step') break
    expect((await run).report.steps).toBe(4)
  })

  it('throws in the loop what the promise rejects with', async () => {
    const read = async () => {
      for await (const event of train({ ...options, maxSteps: 0 })) expect(event).toBeUndefined()
    }
    await expect(read()).rejects.toThrow(ConfigError)
  })
})
