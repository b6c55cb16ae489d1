// Handles Ctrl-C, SIGTERM (schedulers) and SIGHUP (a closed terminal): the first signal asks the command to save and
// stop, the second ends the process.

import { Progress, say } from './terminal.js'

export const EXIT_INTERRUPTED = 130

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Ends a command whose work was aborted by a signal: its exit code is {@link EXIT_INTERRUPTED}. */
export class Interrupted extends Error {}

let first: NodeJS.Signals | undefined

export function interruptedBy(): NodeJS.Signals | undefined {
  return first
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === 'AbortError'
}

/** Runs `work`. The first signal aborts it, and then Interrupted is thrown; a second ends the process at once. */
export async function interruptible<T>(
  promise: string | (() => string),
  work: (signal: AbortSignal, progress: Progress) => Promise<T>,
): Promise<T> {
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
  const progress = new Progress()
  try {
    return await work(controller.signal, progress)
  } catch (error) {
    throw isAbort(error) ? new Interrupted() : error
  } finally {
    progress.end()
    // If a signal came, the process ends soon, and a second signal must still end it at once: keep the listeners.
    if (!controller.signal.aborted) for (const name of SIGNALS) process.off(name, onInterrupt)
  }
}

/** Does the same, and says `Stopped.` after a signal. */
export function stoppable<T>(...[promise, work]: Parameters<typeof interruptible<T>>): Promise<T> {
  return interruptible(promise, work).catch((error) => {
    if (error instanceof Interrupted) say('Stopped.')
    throw error
  })
}
