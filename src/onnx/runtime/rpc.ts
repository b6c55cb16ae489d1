// Calls the methods of an object in another thread. Buffers marked by `transfer` are moved, not copied. The last
// argument may be a function: what the other thread calls it with comes back in messages, until the call has its
// result.

import {
  deserializeError,
  openFilesHint,
  RuntimeError,
  type SerializedError,
  serializeError,
} from '../../core/base/errors.js'

/** An end of a channel between two threads: a worker as its owner sees it, or the owner as the worker sees it. */
export interface Port {
  post(message: unknown, transfer: readonly ArrayBufferLike[]): void
  listen(receive: (message: unknown) => void): void
  /** Sets the function that is called if the other end fails or goes away. */
  onClose?(closed: (error: Error) => void): void
  /** Sets whether the channel keeps the process alive. */
  hold?(isHeld: boolean): void
  close(): Promise<void>
  /** Gives up a thread that does not answer. It may be in native code, which cannot be interrupted. */
  abandon?(): void
}

export type Remote<T> = {
  [K in keyof T as T[K] extends (...args: never[]) => unknown ? K : never]: T[K] extends (...args: infer A) => infer R
    ? (...args: A) => Promise<Awaited<R>>
    : never
}

class Transfer {
  constructor(
    readonly value: unknown,
    readonly buffers: readonly ArrayBufferLike[],
  ) {}
}

/** Marks a result or an argument whose buffers are moved to the other thread. They cannot be used here afterwards. */
export function transfer<T>(value: T, buffers: readonly ArrayBufferLike[]): T {
  return new Transfer(value, buffers) as T
}

export function untransferred<T>(value: T): T {
  return value instanceof Transfer ? (value.value as T) : value
}

interface Call {
  kind: 'call'
  id: number
  method: string
  args: unknown[]
  /** True if the last argument was a function, which receives reports. */
  reports: boolean
}

type Message =
  | Call
  | { kind: 'report'; id: number; value: unknown }
  | { kind: 'result'; id: number; value: unknown }
  | { kind: 'error'; id: number; error: SerializedError }

export function expose(port: Port, target: object): void {
  port.listen((received) => {
    const message = received as Message
    if (message.kind === 'call') void serve(port, target, message)
  })
}

async function serve(port: Port, target: object, { id, method: name, args, reports }: Call): Promise<void> {
  try {
    const method = (target as Record<string, unknown>)[name]
    if (typeof method !== 'function') throw new RuntimeError({ where: 'worker', what: `no method ${name}` })
    const report = (value: unknown) => port.post({ kind: 'report', id, value } satisfies Message, [])
    const result: unknown = await method.apply(target, reports ? [...args, report] : args)
    const marked = result instanceof Transfer ? result : new Transfer(result, [])
    port.post({ kind: 'result', id, value: marked.value } satisfies Message, marked.buffers)
  } catch (error) {
    port.post({ kind: 'error', id, error: serializeError(error) } satisfies Message, [])
  }
}

/** Returns a proxy for the object that the other end exposes. The port is held only while calls are pending. */
export function connect<T>(port: Port) {
  type Report = (value: unknown) => void
  const calls = new Map<number, { resolve(value: unknown): void; reject(error: Error): void; report?: Report }>()
  let nextId = 0
  let failure: Error | undefined
  /** The number of answers that are still to come from a thread that was given up. */
  let unanswered: number | undefined

  const settle = (id: number) => {
    const call = calls.get(id)
    // A late answer to a call that has failed already must not release the port: if the thread is being closed, the
    // process has to wait for its end.
    if (calls.delete(id) && calls.size === 0) port.hold?.(false)
    return call
  }
  const fail = (error: Error) => {
    failure ??= error
    for (const id of [...calls.keys()]) settle(id)?.reject(failure)
  }
  port.listen((received) => {
    const message = received as Message
    if (message.kind === 'report') calls.get(message.id)?.report?.(message.value)
    else if (unanswered !== undefined) {
      if (--unanswered === 0) void port.close()
    } else if (message.kind === 'result') settle(message.id)?.resolve(message.value)
    else if (message.kind === 'error') settle(message.id)?.reject(deserializeError(message.error))
  })
  port.onClose?.((cause) => {
    fail(
      cause instanceof RuntimeError
        ? cause
        : new RuntimeError({
            where: 'worker',
            what: `it ended: ${cause.message}`,
            hint: openFilesHint(cause.message),
            cause,
          }),
    )
  })
  port.hold?.(false)

  const invoke = (method: string, given: unknown[]): Promise<unknown> =>
    new Promise((resolve, reject) => {
      if (failure !== undefined) return reject(failure)
      const id = nextId++
      const last = given.at(-1)
      const reports = typeof last === 'function'
      const args = reports ? given.slice(0, -1) : given
      const buffers = args.flatMap((arg) => (arg instanceof Transfer ? arg.buffers : []))
      calls.set(id, { resolve, reject, ...(reports && { report: last as Report }) })
      port.hold?.(true)
      try {
        port.post({ kind: 'call', id, method, args: args.map(untransferred), reports } satisfies Message, buffers)
      } catch (error) {
        settle(id)?.reject(error as Error)
      }
    })

  const remote = new Proxy({} as Remote<T>, {
    // The proxy must not have `then`, or awaiting it would call a method in the other thread.
    get: (_, method) => (method === 'then' ? undefined : (...args: unknown[]) => invoke(String(method), args)),
  })
  return {
    remote,
    async close(): Promise<void> {
      fail(new RuntimeError({ where: 'worker', what: 'it was closed' }))
      if (unanswered === undefined) await port.close()
    },
    /** Gives up the thread. It is closed after it has answered, because closing it inside ONNX Runtime would crash. */
    abandon(error: Error): void {
      if (unanswered !== undefined) return
      unanswered = calls.size
      fail(error)
      port.abandon?.()
      if (unanswered === 0) void port.close()
    },
    isAbandoned: () => unanswered !== undefined,
  }
}

export function callMethod(target: object, method: string | symbol, args: unknown[]): unknown {
  return (target as Record<string | symbol, (...args: unknown[]) => unknown>)[method](...args)
}
