// Runs a command in this process, which is faster than starting a program.

import * as program from '../../../src/app/cli/program.js'
import { enginesHere } from '../../engines-here.js'
import type { Outcome } from './lowrank.js'

/** Commands run one at a time, because they share stdout and stderr. */
let last: Promise<unknown> = Promise.resolve()

/**
 * Runs `lowrank ...args`, and returns its exit code and outputs. Tests of signals, pipes and memory need a separate
 * process and use `lowrank`.
 */
export function lowrankHere(...args: readonly string[]): Promise<Outcome> {
  const outcome = last.then(() => capture(args))
  last = outcome.catch(() => {})
  return outcome
}

async function capture(args: readonly string[]): Promise<Outcome> {
  const written = { stdout: '', stderr: '' }
  const restore = (['stdout', 'stderr'] as const).map((name) => {
    const stream = process[name]
    const { write } = stream
    const collect = (text: string | Uint8Array): boolean => {
      written[name] += typeof text === 'string' ? text : Buffer.from(text).toString('utf8')
      return true
    }
    stream.write = collect as typeof write
    return () => {
      stream.write = write
    }
  })
  const endEngines = enginesHere()
  try {
    const code = await program.run(args).catch((error: unknown) => program.report(error, args[0]))
    return { code, ...written }
  } finally {
    for (const undo of [endEngines, ...restore]) undo()
  }
}
