// The steps of a run, read from its folder.

import { createReadStream } from 'node:fs'
import path from 'node:path'
import { codeOf } from '../../../api/node/parts.js'
import { isObject, jsonIn } from '../../../core/base/options.js'

/** A step, with the loss on the validation file if it was measured then. */
export interface StepLine {
  readonly step: number
  readonly loss: number
  readonly tokens: number
  readonly evalLoss?: number
  readonly rewards?: { readonly reward: number }
}

/**
 * Returns the objects in a file of JSON lines, without a last line that a crash cut off. Returns [] without a file. A
 * long file is read in pieces, between which the server turns to others.
 */
export async function readLines<Line>(file: string): Promise<Line[]> {
  const lines: Line[] = []
  let rest = ''
  const take = (line: string) => {
    const found = jsonIn(line)
    if (isObject(found)) lines.push(found as Line)
  }
  try {
    for await (const piece of createReadStream(file, 'utf8') as AsyncIterable<string>) {
      const [first, ...others] = piece.split('\n')
      rest += first
      for (const next of others) {
        take(rest)
        rest = next
      }
    }
  } catch (error) {
    if (codeOf(error) !== 'ENOENT') throw error
  }
  take(rest)
  return lines
}

/** @param folder of the job */
export async function stepsOf(folder: string): Promise<StepLine[]> {
  const read = <Line>(file: string) => readLines<Line>(path.join(folder, 'run', file)).catch(() => [])
  const evaluations = await read<{ step: number; loss?: number }>('evaluations.jsonl')
  return (await read<StepLine>('metrics.jsonl')).map((line) => {
    const evalLoss = evaluations.find(({ step, loss }) => step === line.step && loss !== undefined)?.loss
    return evalLoss === undefined ? line : { ...line, evalLoss }
  })
}

/** OpenAI's names. */
export function metricsOf(line: StepLine | undefined): Record<string, number> {
  if (line === undefined) return {}
  const { loss, evalLoss } = line
  return { train_loss: loss, ...(evalLoss !== undefined && { valid_loss: evalLoss, full_valid_loss: evalLoss }) }
}

export function tableOf(lines: readonly StepLine[]): string {
  const rows = lines.map(({ step, loss, evalLoss = '' }) => `${step},${loss},,${evalLoss},`)
  return ['step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy', ...rows, ''].join('\n')
}
