// Ctrl-C, SIGTERM of schedulers, SIGHUP of a closed terminal: the first asks the work to save, the second ends it.

import { say } from './terminal.js'

export const EXIT_INTERRUPTED = 130

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

let first: NodeJS.Signals | undefined

export function interruptedBy(): NodeJS.Signals | undefined {
  return first
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === 'AbortError'
}

/** The first signal aborts `work`, and undefined comes back; a second ends the process with nothing more written. */
export async function interruptible<T>(
  promise: string | (() => string),
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T | undefined> {
  const controller = new AbortController()
  const onInterrupt = (name: NodeJS.Signals): void => {
    if (controller.signal.aborted) {
      // Not process.exit: that waits for workers, and one that is inside ONNX Runtime then aborts the process.
      process.removeAllListeners(name)
      process.kill(process.pid, name)
      return
    }
    say(
      `\n${typeof promise === 'string' ? promise : promise()}${name === 'SIGINT' ? ' Press Ctrl-C again to stop at once.' : ''}`,
    )
    first = name
    controller.abort()
  }
  for (const name of SIGNALS) process.on(name, onInterrupt)
  try {
    return await work(controller.signal)
  } catch (error) {
    if (isAbort(error)) return undefined
    throw error
  } finally {
    // Once asked to stop, the process ends soon: until then a second signal means the same as before.
    if (!controller.signal.aborted) for (const name of SIGNALS) process.off(name, onInterrupt)
  }
}
