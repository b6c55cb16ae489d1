// Calls to an object in another thread. Buffers named by `transfer` move instead of being copied. The last argument may
// be a function: what the other thread calls it with comes back in messages, until the call has its result.

import { deserializeError, RuntimeError, type SerializedError, serializeError } from '../base/errors.js'

/** One end of a channel between two threads: a worker, or its owner seen from inside. */
export interface Port {
  post(message: unknown, transfer: readonly ArrayBufferLike[]): void
  /** Registers the one receiver of messages. */
  listen(receive: (message: unknown) => void): void
  /** Registers who hears that the other end failed or went away. */
  onClose?(closed: (error: Error) => void): void
  /** Sets whether the channel keeps the process alive. */
  hold?(isHeld: boolean): void
  close(): Promise<void>
  /** Lets go of a thread that does not answer, and may be in native code that cannot be ended. */
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

/** Marks a result (or an argument) whose buffers move to the other thread. They are unusable here afterwards. */
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
  /** A function follows the arguments. */
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

/** A stand-in for the object that the other end exposes. The port is held only while calls are under way. */
export function connect<T>(port: Port) {
  type Report = (value: unknown) => void
  const calls = new Map<number, { resolve(value: unknown): void; reject(error: Error): void; report?: Report }>()
  let nextId = 0
  let failure: Error | undefined
  /** Calls without an answer, for a thread that was given up. */
  let unanswered: number | undefined

  const settle = (id: number) => {
    const call = calls.get(id)
    // A late answer, to a call that has failed, must not let go of a thread that is being ended: its end could not be
    // waited for.
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
        : new RuntimeError({ where: 'worker', what: `it ended: ${cause.message}`, cause }),
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
    // `then` is no method of ours: without this, awaiting the remote itself would call it.
    get: (_, method) => (method === 'then' ? undefined : (...args: unknown[]) => invoke(String(method), args)),
  })
  return {
    remote,
    async close(): Promise<void> {
      fail(new RuntimeError({ where: 'worker', what: 'it was closed' }))
      if (unanswered === undefined) await port.close()
    },
    /** The thread ends once it has answered, because ending one inside of ONNX Runtime ends the process. */
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
