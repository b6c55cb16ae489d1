import { MessageChannel, type MessagePort } from 'node:worker_threads'
import { afterEach, describe, expect, it } from 'vitest'
import { MismatchError } from '../../src/base/errors.js'
import { connect, expose, type Port, transfer } from '../../src/runtime/rpc.js'

class Target {
  sum(values: Float32Array): number {
    return values.reduce((a, b) => a + b, 0)
  }

  async countdown(from: number, tell: (n: number) => void): Promise<string> {
    for (let n = from; n > 0; n--) tell(n)
    return 'done'
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

  it('turns functions into callbacks that run in order before the result', async () => {
    const heard: number[] = []
    expect(await pair().remote.countdown(3, (n) => heard.push(n))).toBe('done')
    expect(heard).toEqual([3, 2, 1])
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
    const call = connection.remote.countdown(1, () => {})
    await connection.close()
    await expect(call).rejects.toThrow('it was closed')
    await expect(connection.remote.fill(1)).rejects.toThrow('it was closed')
  })
})
