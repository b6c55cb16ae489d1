// Engines whose worker is slow or does not answer. The test moves the clock.

import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { openEngine, stopMs } from '../../../src/onnx/runtime/host.js'
import type { Port } from '../../../src/onnx/runtime/rpc.js'

beforeEach(() => void vi.useFakeTimers())
afterEach(() => void vi.useRealTimers())

interface Steps {
  step(ms: number): Promise<number>
  dispose(): Promise<void>
}

/** Opens an engine whose worker takes the time in the call for a step, and `disposeMs` to end. */
async function slowEngine(disposeMs = 0) {
  const events: string[] = []
  let receive: (message: unknown) => void = () => {}
  const port: Port = {
    post(message) {
      const { id, method, args } = message as { id: number; method: string; args: number[] }
      setTimeout(() => receive({ kind: 'result', id, value: 1 }), { step: args[0], dispose: disposeMs }[method])
    },
    listen: (own) => {
      receive = own
    },
    close: async () => void events.push('close'),
    abandon: () => void events.push('abandon'),
  }
  const unused = () => Promise.reject(new Error('a worker has the engine'))
  return { engine: await openEngine<Steps>({ specifier: 'none', spawn: () => port }, 'train', unused), events }
}

const hung = expect.objectContaining({ what: expect.stringContaining('did not end within 5 seconds') })

test('closing waits for 5 seconds, or for as long as is said', async () => {
  for (const [limits, isClosed] of [
    [[], true],
    [[undefined, 1000], false],
  ] as const) {
    const { engine, events } = await slowEngine(3000)
    const outcome = engine.close(...limits).then(
      () => 'closed',
      (error: unknown) => error,
    )
    await vi.advanceTimersByTimeAsync(4600)
    expect(await outcome).toEqual(isClosed ? 'closed' : hung)
    expect(events[0]).toBe(isClosed ? 'close' : 'abandon')
  }
})

test('closing waits longer for large weights, whose runs take longer', async () => {
  expect(stopMs(12e6)).toBeLessThan(5000)
  // 2.4 GB: 600 million parameters
  const limit = stopMs(2.4e9)
  const { engine, events } = await slowEngine(40_000)
  const outcome = engine.close(limit)
  await vi.advanceTimersByTimeAsync(40_100)
  await outcome
  expect(events).toEqual(['close'])
  const hanging = await slowEngine(100_000)
  const given = hanging.engine.close(limit).catch((error: Error) => error.message)
  await vi.advanceTimersByTimeAsync(limit + 100)
  expect(await given).toMatch(/a run did not end within 53 seconds/)
  expect(hanging.events).toEqual(['abandon'])
})
