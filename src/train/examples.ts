// Rows of data → the examples of a task, with counts of what was cut or left out.

import { ConfigError, DataError } from '../base/errors.js'
import type { Rows } from '../data/row.js'
import type { CausalModel } from '../graph/model-folder.js'
import type { Task } from '../tasks/task.js'

/** Longest time without a pause for the thread's other work. */
const YIELD_MS = 16

export interface EncodedRows {
  readonly examples: unknown[]
  readonly rows: number
  /** Rows that were longer than the limit. */
  readonly truncatedRecords: number
  /** Rows left out because no target was left in them. */
  readonly skippedRecords: number
  /** The limit that held. */
  readonly maxLength: number
}

export interface EncodeOptions {
  readonly task: Task
  readonly model: CausalModel
  /** Most tokens of an example; default: the model's context. */
  readonly maxLength?: number | undefined
  /** Where the rows come from, for messages. */
  readonly name: string
}

/**
 * Encodes rows in order, pausing now and then so that the thread stays responsive.
 *
 * @throws DataError for what is no row of the task, or when no row has a target; ConfigError for a limit that the model cannot have;
 *   what the task throws
 */
export async function encodeRows(rows: Rows, { task, model, maxLength, name }: EncodeOptions): Promise<EncodedRows> {
  const limit = resolveMaxLength(maxLength, model.contextLength)
  const examples: unknown[] = []
  let count = 0
  let truncatedRecords = 0
  let skippedRecords = 0
  let pausedAt = performance.now()
  for await (const { row, where } of rows) {
    count++
    const encoded = task.encode(task.parse(row, where), { model, maxLength: limit })
    if (encoded.isTruncated) truncatedRecords++
    if (encoded.examples.length === 0) skippedRecords++
    for (const example of encoded.examples) examples.push(example)
    if (performance.now() - pausedAt > YIELD_MS) {
      await new Promise((resolve) => setTimeout(resolve))
      pausedAt = performance.now()
    }
  }
  if (examples.length === 0) {
    throw new DataError({
      where: name,
      what: count === 0 ? 'it holds no records' : 'no record has a token to learn from',
      ...(truncatedRecords > 0 ? { hint: `maxLength ${limit} cuts off every completion: raise it` } : {}),
    })
  }
  return { examples, rows: count, truncatedRecords, skippedRecords, maxLength: limit }
}

/**
 * The most tokens of an example: the limit asked for, else the context.
 *
 * @throws ConfigError when the limit is no integer above 1 or exceeds the context
 */
function resolveMaxLength(maxLength: number | undefined, contextLength: number | undefined): number {
  if (maxLength === undefined) return contextLength ?? Number.POSITIVE_INFINITY
  if (!Number.isSafeInteger(maxLength) || maxLength < 2) {
    throw new ConfigError({
      where: 'maxLength',
      what: 'out of range',
      expected: 'an integer above 1',
      got: String(maxLength),
    })
  }
  if (contextLength !== undefined && maxLength > contextLength) {
    throw new ConfigError({
      where: 'maxLength',
      what: "above the model's context",
      expected: `at most ${contextLength}`,
      got: String(maxLength),
    })
  }
  return maxLength
}
