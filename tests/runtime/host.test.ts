// Engines whose worker is slow or does not answer, by the clock of the test.

import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { RuntimeError } from '../../src/base/errors.js'
import { openEngine } from '../../src/runtime/host.js'
import type { Port } from '../../src/runtime/rpc.js'

beforeEach(() => void vi.useFakeTimers())
afterEach(() => void vi.useRealTimers())

interface Steps {
  step(ms: number): Promise<number>
  dispose(): Promise<void>
}

/** An engine whose worker takes as long for a step as the call says, and so long to end. */
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

test('a step that takes longer than 5 seconds is given up 5 seconds after the signal, however slow the steps before', async () => {
  const { engine, events } = await slowEngine()
  const controller = new AbortController()
  engine.endAfter(controller.signal)
  const before = engine.remote.step(60_000)
  await vi.advanceTimersByTimeAsync(60_000)
  expect(await before).toBe(1)
  const outcome = engine.remote.step(60_000).catch((error: unknown) => error)
  await vi.advanceTimersByTimeAsync(30_000)
  controller.abort()
  await vi.advanceTimersByTimeAsync(4400)
  expect(events).toEqual([])
  await vi.advanceTimersByTimeAsync(600)
  expect(events).toEqual(['abandon'])
  expect(await outcome).toBeInstanceOf(RuntimeError)
  expect(await outcome).toEqual(hung)
  // Nothing is asked of it any more, and it may end with its step.
  await expect(engine.remote.step(0)).rejects.toEqual(hung)
  await vi.advanceTimersByTimeAsync(60_000)
  expect(events).toEqual(['abandon', 'close'])
})

test('steps that end in time are waited for, one after the other', async () => {
  const { engine, events } = await slowEngine()
  const controller = new AbortController()
  const endWatch = engine.endAfter(controller.signal)
  const first = engine.remote.step(4000)
  controller.abort()
  await vi.advanceTimersByTimeAsync(4000)
  expect(await first).toBe(1)
  const second = engine.remote.step(4000)
  await vi.advanceTimersByTimeAsync(4000)
  expect(await second).toBe(1)
  endWatch()
  const third = engine.remote.step(20_000)
  await vi.advanceTimersByTimeAsync(20_000)
  expect(await third).toBe(1)
  expect(events).toEqual([])
})

test('closing waits for 5 seconds, or for as long as is said', async () => {
  for (const [limit, isClosed] of [
    [undefined, true],
    [1000, false],
  ] as const) {
    const { engine, events } = await slowEngine(3000)
    const outcome = engine.close(limit).then(
      () => 'closed',
      (error: unknown) => error,
    )
    await vi.advanceTimersByTimeAsync(4600)
    expect(await outcome).toEqual(isClosed ? 'closed' : hung)
    expect(events[0]).toBe(isClosed ? 'close' : 'abandon')
  }
})
