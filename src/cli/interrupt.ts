// Ctrl-C: the first asks the work to finish its step and save, the second stops at once.

import { say } from './terminal.js'

/** What shells report for a program that SIGINT ended: 128 + 2. */
export const EXIT_INTERRUPTED = 130

/** Runs `work` with a signal that the first Ctrl-C aborts; a second ends the process with nothing more written. */
export async function interruptible<T>(promise: string, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController()
  const onInterrupt = (): void => {
    if (controller.signal.aborted) {
      // Not process.exit: that waits for workers, and one that is inside ONNX Runtime then aborts the process.
      process.removeAllListeners('SIGINT')
      process.kill(process.pid, 'SIGINT')
      return
    }
    say(`\n${promise} Press Ctrl-C again to stop at once.`)
    controller.abort()
  }
  process.on('SIGINT', onInterrupt)
  try {
    return await work(controller.signal)
  } finally {
    // Once asked to stop, the process ends soon: until then a second Ctrl-C means the same as before.
    if (!controller.signal.aborted) process.off('SIGINT', onInterrupt)
  }
}
