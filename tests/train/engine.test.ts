import { describe, expect, it } from 'vitest'
import { StateError } from '../../src/api/node.js'
import { untransferred } from '../../src/onnx/runtime/rpc.js'
import type { Runtime } from '../../src/onnx/runtime/runtime.js'
import type { EngineSetup, EngineState } from '../../src/train/engine/engine.js'
import { type Pass, TrainEngine } from '../../src/train/engine/engine.js'
import { clipFactor, stepAdamW } from '../../src/train/engine/optimizer.js'
import { takeStep } from './take-step.js'

/** A runtime whose sessions all compute loss = weight·Σ (p − target)² for two parameters. */
const quadratic: Runtime = {
  name: 'test',
  createSession: async () => ({
    inputNames: ['p', 'q', 'target', 'weight'],
    outputNames: ['loss', 'dp', 'dq'],
    dispose: async () => {},
    async run(feeds, outputs = []) {
      const [p, q, target, weight] = ['p', 'q', 'target', 'weight'].map((name) => feeds[name].data as Float32Array)
      const difference = (values: Float32Array) => values.map((value) => value - target[0])
      const gradient = (values: Float32Array) => difference(values).map((value) => 2 * weight[0] * value)
      const loss = [...difference(p), ...difference(q)].reduce((sum, value) => sum + weight[0] * value * value, 0)
      const results = { loss: Float32Array.of(loss), dp: gradient(p), dq: gradient(q) }
      return Object.fromEntries(
        outputs.map((name) => [name, { type: 'float32', data: results[name as 'loss'], dims: [] } as const]),
      )
    },
  }),
}

const setup: EngineSetup = {
  parameters: [
    { input: 'p', gradient: 'dp', shape: [2] },
    { input: 'q', gradient: 'dq', shape: [1] },
  ],
  optimizer: { weightDecay: 0 },
  maxGradNorm: 1,
}
const initial = (): EngineState => ({
  parameters: [Float32Array.of(1, -2), Float32Array.of(3)],
  firstMoments: [new Float32Array(2), new Float32Array(1)],
  secondMoments: [new Float32Array(2), new Float32Array(1)],
  updates: 0,
})

async function started(): Promise<{ engine: TrainEngine; run: (target: number, weight?: number) => Pass }> {
  const engine = new TrainEngine(quadratic)
  const { id } = await engine.openSession({ graph: new Uint8Array() })
  await engine.start(setup, initial())
  const scalar = (value: number) => ({ type: 'float32', data: Float32Array.of(value), dims: [] }) as const
  return {
    engine,
    run: (target, weight = 1) => ({
      session: id,
      loss: 'loss',
      feeds: { target: scalar(target), weight: scalar(weight) },
    }),
  }
}
const stateOf = async (engine: TrainEngine) => untransferred(await engine.state())

describe('TrainEngine', () => {
  it('updates with the clipped gradient, and says loss and norm', async () => {
    const { engine, run } = await started()
    const result = await takeStep(engine, [run(0)], 0.1)
    expect(result.loss).toBe(14)
    expect(result.gradientNorm).toBeCloseTo(2 * Math.sqrt(14), 6)
    const expected = initial()
    const factor = clipFactor(result.gradientNorm, setup.maxGradNorm)
    stepAdamW(expected, [Float32Array.of(2, -4), Float32Array.of(6)], 0.1, setup.optimizer, factor)
    expect(await stateOf(engine)).toEqual(expected)
  })

  it('adds up the runs of a step', async () => {
    const whole = await started()
    const parts = await started()
    for (let step = 0; step < 3; step++) {
      const a = await takeStep(whole.engine, [whole.run(0.5, 1)], 0.1)
      const b = await takeStep(parts.engine, [parts.run(0.5, 0.25), parts.run(0.5, 0.5), parts.run(0.5, 0.25)], 0.1)
      expect(b.loss).toBeCloseTo(a.loss, 5)
      expect(b.gradientNorm).toBeCloseTo(a.gradientNorm, 5)
    }
    const [expected, { parameters }] = [await stateOf(whole.engine), await stateOf(parts.engine)]
    expected.parameters.forEach((parameter, p) => {
      parameter.forEach((value, i) => void expect(parameters[p][i]).toBeCloseTo(value, 5))
    })
  })

  it('evaluates without changing anything', async () => {
    const { engine, run } = await started()
    const { loss } = untransferred(await engine.forward(run(0), ['loss']))
    expect(loss.data[0]).toBe(14)
    expect(await stateOf(engine)).toEqual(initial())
  })

  it('goes on from a state as if it had never stopped', async () => {
    const { engine, run } = await started()
    await takeStep(engine, [run(0)], 0.1)
    const saved = await stateOf(engine)
    await takeStep(engine, [run(1)], 0.1)
    const resumed = await started()
    await resumed.engine.start(setup, saved)
    await takeStep(resumed.engine, [resumed.run(1)], 0.1)
    expect(await stateOf(resumed.engine)).toEqual(await stateOf(engine))
  })

  it('does not update on a loss that is not finite, and keeps what belongs to the last one that was', async () => {
    const { engine, run } = await started()
    await takeStep(engine, [run(0)], 0.1)
    const good = (await stateOf(engine)).parameters
    await takeStep(engine, [run(0)], 0.1)
    const after = await stateOf(engine)
    const result = await takeStep(engine, [run(Number.NaN)], 0.1)
    expect(result.loss).toBeNaN()
    expect(await stateOf(engine)).toEqual(after)
    expect(untransferred(await engine.lastGood())).toEqual(good)
  })

  it('refuses a step before the start, and a session that is closed', async () => {
    const engine = new TrainEngine(quadratic)
    await expect(takeStep(engine, [], 0.1)).rejects.toThrow(StateError)
    const { engine: other, run } = await started()
    await other.dispose()
    await expect(takeStep(other, [run(0)], 0.1)).rejects.toThrow(StateError)
  })
})
