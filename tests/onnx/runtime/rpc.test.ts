import { MessageChannel, type MessagePort } from 'node:worker_threads'
import { afterEach, describe, expect, it } from 'vitest'
import { MismatchError } from '../../../src/api/node.js'
import { connect, expose, type Port, transfer } from '../../../src/onnx/runtime/rpc.js'
import { webWorkerPort } from '../../../src/onnx/runtime/web-worker.js'

class Target {
  sum(values: Float32Array): number {
    return values.reduce((a, b) => a + b, 0)
  }

  async count(steps: number, report: (step: number) => void): Promise<void> {
    for (let step = 0; step < steps; step++) {
      await Promise.resolve()
      report(step)
    }
  }

  never(): Promise<void> {
    return new Promise(() => {})
  }

  fill(length: number): Float32Array {
    const values = new Float32Array(length).fill(7)
    return transfer(values, [values.buffer])
  }

  refuse(): void {
    throw new MismatchError({ where: 'layer q', what: 'wrong size', expected: '4', got: '5', hint: 'Use 4' })
  }

  crash(): void {
    throw new TypeError('a bug')
  }
}

const opened: MessagePort[] = []

function portOf(port: MessagePort): Port {
  opened.push(port)
  return {
    post: (message, buffers) => port.postMessage(message, buffers as ArrayBuffer[]),
    listen: (receive) => void port.on('message', receive),
    close: async () => port.close(),
  }
}

function pair() {
  const { port1, port2 } = new MessageChannel()
  expose(portOf(port1), new Target())
  return connect<Target>(portOf(port2))
}

afterEach(() => {
  for (const port of opened.splice(0)) port.close()
})

describe('calls across threads', () => {
  it('carries arguments and results', async () => {
    expect(await pair().remote.sum(Float32Array.of(1, 2, 3.5))).toBe(6.5)
  })

  it('rejects what cannot be cloned', async () => {
    await expect(pair().remote.sum([() => {}] as never)).rejects.toThrow('could not be cloned')
  })

  it('reports to a function, the last argument, before the result', async () => {
    const heard: unknown[] = []
    const { remote } = pair()
    const [all, none] = await Promise.all([
      remote.count(3, (step) => heard.push(step)).then(() => [...heard]),
      remote.count(0, () => heard.push('other')).then(() => heard.length),
    ])
    expect(all).toEqual([0, 1, 2])
    expect(none).toBeLessThanOrEqual(3)
  })

  it('moves the buffers of marked arguments', async () => {
    const values = Float32Array.of(1, 2)
    expect(await pair().remote.sum(transfer(values, [values.buffer]))).toBe(3)
    expect(values.length).toBe(0)
  })

  it('unwraps marked results', async () => {
    expect(await pair().remote.fill(3)).toEqual(Float32Array.of(7, 7, 7))
  })

  it('keeps the class, code and fields of known errors', async () => {
    const error = await pair()
      .remote.refuse()
      .catch((caught: unknown) => caught)
    expect(error).toBeInstanceOf(MismatchError)
    expect(error).toMatchObject({ code: 'MISMATCH', where: 'layer q', expected: '4', got: '5', hint: 'Use 4' })
  })

  it('keeps name, message and stack of bugs', async () => {
    const error = await pair()
      .remote.crash()
      .catch((caught: unknown) => caught as Error)
    expect(error).toMatchObject({ name: 'TypeError', message: 'a bug' })
    expect((error as Error).stack).toContain('Target.crash')
  })

  it('rejects calls under way when it is closed, and later ones', async () => {
    const connection = pair()
    const call = connection.remote.never()
    await connection.close()
    await expect(call).rejects.toThrow('it was closed')
    await expect(connection.remote.fill(1)).rejects.toThrow('it was closed')
  })
})

it('holds the thread until it has ended, whatever late answers come while it ends', async () => {
  let receive: (message: unknown) => void = () => {}
  const events: string[] = []
  const port: Port = {
    post: () => {},
    listen: (own) => {
      receive = own
    },
    hold: (isHeld) => void events.push(isHeld ? 'held' : 'free'),
    async close() {
      events.push('ending')
      receive({ kind: 'result', id: 0, value: 1 })
      receive({ kind: 'error', id: 1, error: { name: 'Error', message: 'late' } })
    },
  }
  const { remote, close } = connect<Target>(port)
  const calls = [remote.never(), remote.never()].map((call) => call.catch(() => 'rejected'))
  await close()
  expect(await Promise.all(calls)).toEqual(['rejected', 'rejected'])
  expect(events.slice(events.indexOf('ending'))).toEqual(['ending'])
})

describe('a thread that is given up', () => {
  function held() {
    const events: string[] = []
    let answer: (message: unknown) => void = () => {}
    const ids: number[] = []
    const connection = connect<Target>({
      post: (message) => void ids.push((message as { id: number }).id),
      listen: (receive) => {
        answer = receive
      },
      close: async () => void events.push('close'),
      abandon: () => void events.push('abandon'),
    })
    return { ...connection, events, answer: (at: number) => answer({ kind: 'result', id: ids[at], value: 1 }) }
  }
  const hung = new Error('hung')

  it('rejects all calls, and is not ended before it has answered', async () => {
    const { remote, abandon, events, answer } = held()
    const calls = [remote.never(), remote.refuse()]
    abandon(hung)
    for (const call of calls) await expect(call).rejects.toBe(hung)
    await expect(remote.crash()).rejects.toBe(hung)
    expect(events).toEqual(['abandon'])
    answer(0)
    expect(events).toEqual(['abandon'])
    answer(1)
    expect(events).toEqual(['abandon', 'close'])
  })

  it('is not closed by close either', async () => {
    const { remote, abandon, close, events } = held()
    remote.never().catch(() => {})
    abandon(hung)
    abandon(hung)
    await close()
    expect(events).toEqual(['abandon'])
  })

  it('is ended at once where nothing is under way', () => {
    const { abandon, events } = held()
    abandon(hung)
    expect(events).toEqual(['abandon', 'close'])
  })

  it('that is a Web Worker is ended at once', async () => {
    let isEnded = false
    const worker = { postMessage() {}, terminate: () => (isEnded = true) }
    const { remote, abandon } = connect<Target>(webWorkerPort(worker as never, 'worker.js'))
    const call = remote.never()
    abandon(hung)
    await expect(call).rejects.toBe(hung)
    expect(isEnded).toBe(true)
  })
})
