// Ctrl-C: the first asks the work to finish its step and save, the second stops at once.

import { say } from './terminal.js'

/** What shells report for a program that SIGINT ended: 128 + 2. */
export const EXIT_INTERRUPTED = 130

/** Runs `work` with a signal that the first Ctrl-C aborts; a second ends the process with nothing more written. */
export async function interruptible<T>(promise: string, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController()
  const onInterrupt = (): void => {
    if (controller.signal.aborted) process.exit(EXIT_INTERRUPTED)
    say(`\n${promise} Press Ctrl-C again to stop at once.`)
    controller.abort()
  }
  process.on('SIGINT', onInterrupt)
  try {
    return await work(controller.signal)
  } finally {
    process.off('SIGINT', onInterrupt)
  }
}
