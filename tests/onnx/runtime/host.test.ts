// Engines whose worker is slow or does not answer. The test moves the clock.

import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { openEngine } from '../../../src/onnx/runtime/host.js'
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
