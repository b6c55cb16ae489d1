// OpenAI's rows of preferences: `{ input: { messages, tools }, preferred_output, non_preferred_output }`.

import { isObject, jsonIn } from '../../base/options.js'

/** A line with such a row as lowrank reads pairs of answers; any other line as it is. */
export function withPairs(line: string): string {
  const row = jsonIn(line)
  if (!isObject(row) || !isObject(row.input) || row.preferred_output === undefined) return line
  const { messages, tools } = row.input
  const { preferred_output: chosen, non_preferred_output: rejected } = row
  return JSON.stringify({ prompt: messages, chosen, rejected, tools })
}
