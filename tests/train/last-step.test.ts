// The state that a worker shares with its owner, and a run whose worker stops to answer.

import { expect, it } from 'vitest'
import { TrainEngine } from '../../src/train/engine.js'
import { keepBestOf, makeLastStep, readLastStep, startLastStep, updateLastStep } from '../../src/train/last-step.js'
import { AdamW, type AdamWState } from '../../src/train/optimizer.js'

const start = () => ({
  parameters: [Float32Array.of(1, 2), Float32Array.of(3)],
  firstMoments: [Float32Array.of(0.1, 0.2), Float32Array.of(0.3)],
  secondMoments: [Float32Array.of(0.01, 0.02), Float32Array.of(0.03)],
  updates: 4,
})

it('has what the optimizer has after each update, and no other', async () => {
  const last = makeLastStep(start().parameters, true)!
  const plain = start()
  const shared = start()
  const optimizers = [new AdamW(plain.parameters), new AdamW(shared.parameters)]
  const states: AdamWState[] = [plain, startLastStep(last, shared)]
  optimizers.forEach((optimizer, i) => {
    optimizer.state = states[i]
  })
  expect(await readLastStep(last, 4)).toEqual(start())
  const gradients = [Float32Array.of(0.5, -0.5), Float32Array.of(2)]
  optimizers[0].step(gradients, 0.1)
  updateLastStep(last, shared.parameters, () => {
    optimizers[1].step(gradients, 0.1)
    return optimizers[1].state.updates
  })
  expect(await readLastStep(last, 5)).toEqual({ ...plain, ...optimizers[0].state })
  expect(await readLastStep(last, 4)).toBeUndefined()
  keepBestOf(last, shared.parameters)
  expect((await readLastStep(last, 5))?.best).toEqual(plain.parameters)
})

it('is not read while it is being written', async () => {
  const last = makeLastStep(start().parameters, false)!
  startLastStep(last, start())
  let read: unknown = 'nothing'
  const update = () => {
    read = readLastStep(last, 5)
    return 5
  }
  updateLastStep(last, start().parameters, update)
  // The update ended before the memory was looked at again.
  expect(await read).toMatchObject({ updates: 5 })
  last.counters[1] = 1
  expect(await readLastStep(last, 5)).toBeUndefined()
})

it('is filled by the engine, which goes on from a best state as well', async () => {
  const engine = new TrainEngine({} as never)
  const last = makeLastStep(start().parameters, true)!
  const parameters = [2, 1].map((d, i) => ({ input: `p${i}`, gradient: `g${i}`, shape: [d] }))
  const optimizer = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 }
  const best = [Float32Array.of(7, 8), Float32Array.of(9)]
  engine.start({ parameters, optimizer, maxGradNorm: 1 }, { ...start(), best }, last)
  expect(await readLastStep(last, 4)).toEqual({ ...start(), best })
  engine.keepBest()
  expect((await readLastStep(last, 4))?.best).toEqual(start().parameters)
})
