// Handles Ctrl-C, SIGTERM (schedulers) and SIGHUP (a closed terminal): the first signal asks the command to save and
// stop, the second ends the process.

import { Progress, say } from './terminal.js'

export const EXIT_INTERRUPTED = 130

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

let first: NodeJS.Signals | undefined

export function interruptedBy(): NodeJS.Signals | undefined {
  return first
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === 'AbortError'
}

/** Runs `work`. The first signal aborts it, and undefined is returned; a second signal ends the process at once. */
export async function interruptible<T>(
  promise: string | (() => string),
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T | undefined> {
  const controller = new AbortController()
  const onInterrupt = (name: NodeJS.Signals): void => {
    if (controller.signal.aborted) {
      // process.exit would wait for workers, and a worker that is inside ONNX Runtime would then abort the process.
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
    // If a signal came, the process ends soon, and a second signal must still end it at once: keep the listeners.
    if (!controller.signal.aborted) for (const name of SIGNALS) process.off(name, onInterrupt)
  }
}

/** Runs `work` with a progress line. If a signal ends it, says so and returns undefined. */
export async function stoppable<T>(
  promise: string,
  work: (signal: AbortSignal, progress: Progress) => Promise<T>,
): Promise<T | undefined> {
  const progress = new Progress()
  const result = await interruptible(promise, (signal) => work(signal, progress)).finally(() => progress.end())
  if (result === undefined) say('Stopped.')
  return result
}
