// Records of texts → token ids and labels. A record is {"text"}, every token of which is a
// target, or {"prompt", "completion"}, where the completion's tokens are. One eos ends each record and is a target too.

import { DataError, MismatchError } from '../base/errors.js'
import type { Tokenizer } from './tokenizer.js'

/** One line of a JSONL file. */
export type TextRecord = { text: string } | { prompt: string; completion: string }

/** Labels of positions that are no target. */
export const IGNORED = -100

/** One tokenised record. */
export interface Example {
  readonly inputIds: Int32Array
  /** labels[i] is the token at i, or IGNORED: not shifted. Nothing predicts the first token, so it is never a target. */
  readonly labels: Int32Array
}

/** Returns `value` as a record. Throws DataError when it has not the fields of one, or those of both kinds. */
export function checkRecord(value: unknown, where: string): TextRecord {
  const record = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>
  const { text, prompt, completion } = record
  const isPair = typeof prompt === 'string' && typeof completion === 'string'
  if (typeof text === 'string' && prompt === undefined && completion === undefined) return { text }
  if (isPair && text === undefined) return { prompt, completion }
  throw new DataError({
    where,
    what: 'not a record',
    expected: '"text", or "prompt" and "completion", as strings',
    got: fieldsOf(value),
    hint: Array.isArray(value) ? 'Each line is one JSON object' : hintFor(record),
  })
}

/** What to do with the shapes that data sets on the Hub often have. */
function hintFor(record: Record<string, unknown>): string | undefined {
  if (Array.isArray(record.messages) || Array.isArray(record.conversations))
    return 'Write a conversation as the model’s chat template does: all before the last answer is the prompt, the answer the completion'
  const names = ['instruction', 'input', 'question', 'output', 'response', 'answer']
  return names.some((name) => name in record)
    ? 'Name what is given "prompt", and what is to be learnt "completion"'
    : undefined
}

function fieldsOf(value: unknown): string {
  if (value === null || Array.isArray(value)) return value === null ? 'null' : 'a list'
  if (typeof value !== 'object') return `a ${typeof value}`
  const fields = Object.entries(value as object).map(
    ([key, field]) => `"${key}" (${field === null ? 'null' : typeof field})`,
  )
  return fields.length === 0 ? 'no fields' : fields.slice(0, 8).join(', ')
}

/** Throws MismatchError when the tokenizer gave tokens that the model has not. */
export function checkVocabulary(
  ids: Iterable<number>,
  {
    vocabularySize = Number.POSITIVE_INFINITY,
    tokenizer,
  }: { vocabularySize: number | undefined; tokenizer: Tokenizer },
): void {
  for (const id of ids) {
    if (id < vocabularySize) continue
    throw new MismatchError({
      where: tokenizer.name,
      what: 'the tokenizer is not that of the model',
      expected: `token ids below ${vocabularySize}`,
      got: `${id} (${JSON.stringify(tokenizer.decode([id], { specialTokens: true }))})`,
    })
  }
}

/** One record with exactly one eos at its end, not yet cut. */
export function encodeRecord(record: TextRecord, tokenizer: Tokenizer, eosTokenId: number): Example {
  const pair = 'text' in record ? { prompt: '', completion: record.text } : record
  const { ids, completionStart } = tokenizer.encodePair(pair.prompt, pair.completion)
  let length = ids.length
  // The template, or the text itself, may end in it already.
  while (length > 0 && ids[length - 1] === eosTokenId) length--
  const inputIds = Int32Array.from([...ids.slice(0, length), eosTokenId])
  const labels = inputIds.slice().fill(IGNORED, 0, Math.max(1, Math.min(completionStart, length)))
  return { inputIds, labels }
}

/** Number of targets of a record: labels that are not ignored, the first position aside. */
export function countTargets(labels: Int32Array): number {
  let count = 0
  for (let i = 1; i < labels.length; i++) if (labels[i] !== IGNORED) count++
  return count
}
