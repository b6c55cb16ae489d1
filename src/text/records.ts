// Training and evaluation records: JSON lines → token ids and labels. A record is {"text"}, every token of which is a
// target, or {"prompt", "completion"}, where the completion's tokens are. One eos ends each record and is a target too.

import type { ByteSource } from '../base/bytes.js'
import { ConfigError, DataError, FormatError, MismatchError } from '../base/errors.js'
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

export interface EncodedRecords {
  readonly examples: Example[]
  /** Records that were longer than the limit and lost their end. */
  readonly truncatedRecords: number
  /** Records left out because no target was left in them. */
  readonly skippedRecords: number
  /** The limit that held. */
  readonly maxLength: number
}

export interface EncodeOptions {
  tokenizer: Tokenizer
  /** Ends each record. */
  eosTokenId: number | undefined
  /** Number of tokens that the model knows, if known. */
  vocabularySize?: number | undefined
  /** The model's context in tokens, if known. */
  contextLength?: number | undefined
  /** Most tokens of a record; default: the context. */
  maxLength?: number | undefined
  /** Where the records come from, for messages. */
  name: string
}

/** Bytes read at a time: large enough for few reads, small beside a model. */
const CHUNK_BYTES = 1 << 20

/** Longest time without a pause for the thread's other work. */
const YIELD_MS = 16

/**
 * Reads a JSONL file. Empty lines are skipped.
 *
 * @throws DataError naming the file and the line: no JSON, not UTF-8, not a record; or the file holds no record
 */
export async function loadRecords(source: ByteSource): Promise<TextRecord[]> {
  const records: TextRecord[] = []
  let lineNumber = 0
  for await (const line of lines(source)) {
    lineNumber++
    if (line.trim() === '') continue
    const where = `${source.name}, line ${lineNumber}`
    let value: unknown
    try {
      value = JSON.parse(line)
    } catch (cause) {
      throw new DataError({
        where,
        what: `not valid JSON (${(cause as Error).message})`,
        hint: 'Each line is one JSON object',
        cause,
      })
    }
    records.push(checkRecord(value, where))
  }
  if (records.length === 0) throw new DataError({ where: source.name, what: 'it holds no records' })
  return records
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

async function* lines(source: ByteSource): AsyncGenerator<string> {
  const decoder = new TextDecoder('utf-8', { fatal: true })
  let rest = ''
  let number = 1
  for (let offset = 0; offset < source.byteLength; offset += CHUNK_BYTES) {
    const byteLength = Math.min(CHUNK_BYTES, source.byteLength - offset)
    const bytes = await source.read(offset, byteLength)
    try {
      rest += decoder.decode(bytes, { stream: offset + byteLength < source.byteLength })
    } catch (cause) {
      throw new DataError({
        where: `${source.name}, in or after line ${number}`,
        what: 'not valid UTF-8',
        hint: 'Save the file as UTF-8',
        cause,
      })
    }
    const complete = rest.split('\n')
    rest = complete.pop() as string
    number += complete.length
    yield* complete
  }
  if (rest !== '') yield rest
}

/**
 * The most tokens of a record: the limit asked for, else the context.
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

/**
 * Tokenises records in order, pausing now and then so that the thread stays responsive.
 *
 * @throws DataError when no record has a target, FormatError when the model names no token that ends a text, MismatchError
 *   when the tokenizer gives tokens that the model has not
 */
export async function encodeRecords(records: readonly TextRecord[], options: EncodeOptions): Promise<EncodedRecords> {
  const maxLength = resolveMaxLength(options.maxLength, options.contextLength)
  const { eosTokenId } = options
  if (eosTokenId === undefined) {
    throw new FormatError({
      where: options.tokenizer.name,
      what: 'no file names the token that ends a text',
      hint: 'Add eos_token to tokenizer_config.json, or eos_token_id to config.json',
    })
  }
  const examples: Example[] = []
  let truncatedRecords = 0
  let skippedRecords = 0
  let pausedAt = performance.now()
  for (const record of records) {
    const { inputIds, labels } = encodeRecord(record, options.tokenizer, eosTokenId)
    checkVocabulary(inputIds, options)
    if (inputIds.length > maxLength) truncatedRecords++
    const example = { inputIds: inputIds.slice(0, maxLength), labels: labels.slice(0, maxLength) }
    if (countTargets(example.labels) > 0) examples.push(example)
    else skippedRecords++
    if (performance.now() - pausedAt > YIELD_MS) {
      await new Promise((resolve) => setTimeout(resolve))
      pausedAt = performance.now()
    }
  }
  if (examples.length === 0) {
    throw new DataError({
      where: options.name,
      what: records.length === 0 ? 'it holds no records' : 'no record has a token to learn from',
      ...(truncatedRecords > 0 ? { hint: `maxLength ${maxLength} cuts off every completion: raise it` } : {}),
    })
  }
  return { examples, truncatedRecords, skippedRecords, maxLength }
}

/** Throws MismatchError when the tokenizer gave tokens that the model has not. */
export function checkVocabulary(
  ids: Iterable<number>,
  { vocabularySize = Number.POSITIVE_INFINITY, tokenizer }: Pick<EncodeOptions, 'vocabularySize' | 'tokenizer'>,
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
