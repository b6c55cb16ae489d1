// Runs a command line, sets the exit code, and handles errors of stdout and stderr.

import { hasStuckWorker } from '../../api/node/command-line.js'
import { commandIn, EXIT_KNOWN_ERROR, isWriteError, report, run } from './program.js'
import { interruptedBy } from './show/interrupt.js'

const args = process.argv.slice(2)
let outputError: NodeJS.ErrnoException | undefined
/** Returns the exit code after a failed write to an output: 0 if the reader only closed it early, as `head` does. */
const outputExit = (): number | undefined =>
  outputError && (outputError.code === 'EPIPE' ? 0 : report(outputError, commandIn(args)))

// Let commands stop by themselves: process.exit would wait for a worker that is inside ONNX Runtime, and then abort.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  const isFirst = outputError === undefined
  outputError ??= error
  if (isFirst && process.exitCode !== undefined) process.exitCode = outputExit()
})

process.stderr.on('error', () => {})
// If a thread never leaves ONNX Runtime, Node would wait for it and then abort.
process.on('exit', () => {
  if (!hasStuckWorker()) return
  const signal = interruptedBy() ?? 'SIGKILL'
  process.removeAllListeners(signal)
  process.kill(process.pid, signal)
})
process.on('uncaughtException', (error) => process.exit(report(error, commandIn(args))))
const exitCode = await run(args).catch((error: unknown) => {
  if (!isWriteError(error)) return report(error, commandIn(args))
  outputError ??= error
  return EXIT_KNOWN_ERROR
})
process.exitCode = outputExit() ?? exitCode
