// Regular expressions of a tokenizer.json that could keep a program busy for hours.

import { FormatError } from '../base/errors.js'
import { costOfRegExp } from './expression-cost.js'

/**
 * The library gives expressions of tokenizer.json to JavaScript's own engine, which for some takes longer than anyone waits.
 *
 * @throws FormatError
 */
export function refuseSlowExpressions(tokenizer: object, where: string): void {
  const { normalizer, pre_tokenizer, decoder, post_processor } = tokenizer as Record<string, unknown>
  const todo: unknown[] = [normalizer, pre_tokenizer, decoder, post_processor]
  const seen = new Set<unknown>()
  for (let part = todo.pop(); part !== undefined || todo.length > 0; part = todo.pop()) {
    if (!isReference(part) || seen.has(part)) continue
    seen.add(part)
    if (!(part instanceof RegExp)) {
      todo.push(...Object.values(part))
      continue
    }
    const reason = costOfRegExp(part)
    if (reason === undefined) continue
    throw new FormatError({
      where,
      what: `it has a regular expression that can take too long: ${reason}`,
      got: part.source.length > 200 ? `${part.source.slice(0, 200)}…` : part.source,
    })
  }
}

function isReference(value: unknown): value is object {
  return (typeof value === 'object' && value !== null) || typeof value === 'function'
}
