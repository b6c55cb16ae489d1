// Reads records: texts, prompts with answers, and chats. Each text ends with one eos, which is also a target.

import { DataError } from '../../core/base/errors.js'
import { describe } from '../../core/base/options.js'
import { CHAT_FIELDS, type Chat, type CheckMessage, chatOf, type Pair, parseChat } from './chat.js'
import type { Tokenizer } from './tokenizer.js'

/** A message of a chat. Other fields are passed to the chat template. */
export interface MessageRecord {
  readonly role: string
  readonly content?: string | readonly object[] | null | undefined
  readonly tool_calls?: readonly object[] | null | undefined
}

/**
 * A record of training data. A field that changes what a known format means, and that records of this kind do not have,
 * is an error; all others are ignored, and named in a warning.
 */
export type TextRecord =
  | { readonly text: string }
  | { readonly prompt: string | readonly MessageRecord[]; readonly completion: string | readonly MessageRecord[] }
  | {
      readonly messages: readonly MessageRecord[]
      readonly tools?: readonly object[] | null | undefined
      /** For models that read pictures: a picture for each `{ type: 'image' }` in the messages. */
      readonly images?: readonly unknown[] | null | undefined
    }
  | { readonly conversations: readonly { readonly from: string; readonly value: string }[]; readonly system?: string }
  | {
      readonly instruction: string
      readonly input?: string | null | undefined
      readonly output: string
      readonly system?: string
      /** Earlier questions with their answers, which are learned too. */
      readonly history?: readonly (readonly [string, string])[]
    }
  | { readonly question: string; readonly answer: string; readonly context?: string; readonly system?: string }

export type ParsedRecord = { readonly where: string } & (
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'pair'; readonly prompt: string; readonly completion: string }
  | { readonly kind: 'chat'; readonly chat: Chat }
  /** Becomes a chat if the model has a chat template, else a prompt with its completion. */
  | { readonly kind: 'answer'; readonly question: string; readonly answer: string; readonly system: string | undefined }
)

export const IGNORED = -100

export interface Example {
  readonly inputIds: Int32Array
  /**
   * labels[i] is the token at i, not shifted, or IGNORED. Nothing predicts the first token, so it is never a target.
   */
  readonly labels: Int32Array
}

const KINDS = [
  ['messages'],
  ['conversations'],
  ['prompt', 'completion'],
  ['instruction', 'output'],
  ['question', 'answer'],
  ['text'],
] as const

const OF_QUESTIONS = ['system', 'context', 'history']
const OF_IMAGES = ['images', 'image']

/** What records of each kind read besides the fields that make the kind. */
const ALSO: Readonly<Record<(typeof KINDS)[number][0], readonly string[]>> = {
  messages: [...CHAT_FIELDS, ...OF_IMAGES],
  conversations: [...CHAT_FIELDS, ...OF_IMAGES],
  prompt: OF_IMAGES,
  instruction: [...OF_QUESTIONS, ...OF_IMAGES, 'input'],
  question: [...OF_QUESTIONS, ...OF_IMAGES],
  text: OF_IMAGES,
}

/** Fields that known formats have. A record means something else without them, so they are never left out silently. */
export const KNOWN_FIELDS: readonly string[] = [
  ...CHAT_FIELDS,
  'context',
  'history',
  'weight',
  'train',
  'function_call',
]

const isNothing = (value: unknown) =>
  value === undefined || value === null || value === '' || (Array.isArray(value) && value.length === 0)

/** Throws DataError for a field of {@link KNOWN_FIELDS} that is not among those that are read. */
export function checkFields(record: Fields, read: readonly string[], where: string): void {
  const { weight, train } = record
  const unread = KNOWN_FIELDS.find((name) => {
    const isNeutral = (name === 'weight' && weight === 1) || (name === 'train' && train === true)
    return !read.includes(name) && !isNeutral && !isNothing(record[name])
  })
  if (unread === undefined) return
  const isShare = unread === 'weight' || unread === 'train'
  throw new DataError({
    where,
    what: `the field "${unread}" is not read in such a record`,
    got: fieldsOf(record),
    hint: isShare
      ? 'Leave the record out, or say it of a message of the assistant: "weight": 0 keeps its text out of the loss'
      : "Write it into the texts, or name the fields to use, as in `columns: { messages: 'messages' }`",
  })
}

/** The fields of a record that {@link parseRecord} reads. */
export function fieldsRead(record: Fields): readonly string[] {
  const names = KINDS.find((names) => names.every((name) => record[name] !== undefined && record[name] !== null))
  if (names === undefined) return []
  return [...names, ...(names[0] === 'prompt' && Array.isArray(record.prompt) ? CHAT_FIELDS : []), ...ALSO[names[0]]]
}

const RENAME = "If your fields have other names, use `columns: { prompt: 'question', completion: 'answer' }`"

export const LABEL_NAMES = ['label', 'labels', 'sentiment', 'category', 'class', 'intent', 'topic', 'stars']

/** For tables of texts and labels under other names, such as `review,sentiment`. */
function labelHint(record: Fields): string | undefined {
  const label = LABEL_NAMES.find((name) => ['string', 'number', 'boolean'].includes(typeof record[name]))
  const text = Object.keys(record).find((name) => name !== label && typeof record[name] === 'string')
  if (label === undefined || text === undefined) return undefined
  return `To learn labels of texts, use \`columns: { text: '${text}', label: '${label}' }\``
}

/**
 * Checks a record and finds out which kind it is. `check` checks each message; the default allows only text. Throws
 * DataError if the value is not a record, or could be of two kinds.
 */
export function parseRecord(value: unknown, where: string, check?: CheckMessage): ParsedRecord {
  const record = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>
  const has = (name: string) => record[name] !== undefined && record[name] !== null
  const kinds = KINDS.filter((names) => names.every(has))
  const isHalfPair = kinds[0]?.[0] === 'text' && (has('prompt') || has('completion'))
  if (kinds.length > 1 || isHalfPair) {
    throw new DataError({
      where,
      what: 'the record has fields of two kinds of records',
      got: fieldsOf(value),
      hint: "Say which fields to use, as in `columns: { text: 'text' }`",
    })
  }
  if (kinds.length === 1) checkFields(record, fieldsRead(record), where)
  const parsed = kinds.length === 1 ? parseKind(kinds[0][0], record, where, check) : undefined
  if (parsed !== undefined) return { where, ...parsed }
  const wrong = kinds[0]?.find((name) => typeof record[name] !== 'string')
  if (wrong !== undefined) {
    throw new DataError({ where, what: `"${wrong}" is not text`, expected: 'a string', got: describe(record[wrong]) })
  }
  throw new DataError({
    where,
    what: 'not a valid record',
    expected:
      '"text"; "prompt" and "completion"; "messages"; "conversations"; "instruction" and "output"; or "question" and "answer"',
    got: fieldsOf(value),
    hint: Array.isArray(value) ? 'Each record is one JSON object' : (labelHint(record) ?? RENAME),
  })
}

type Fields = Readonly<Record<string, unknown>>

function parseKind(kind: (typeof KINDS)[number][0], record: Fields, where: string, check?: CheckMessage) {
  const { text, prompt, completion, system } = record
  if (kind === 'messages' || kind === 'conversations' || (kind === 'prompt' && Array.isArray(prompt))) {
    return { kind: 'chat', chat: parseChat(record, where, check) } as const
  }
  if (kind === 'text') return typeof text === 'string' ? ({ kind, text } as const) : undefined
  if (kind === 'prompt') {
    const isPair = typeof prompt === 'string' && typeof completion === 'string'
    return isPair ? ({ kind: 'pair', prompt, completion } as const) : undefined
  }
  const isInstruction = kind === 'instruction'
  const { instruction, input, output, question, answer } = record
  const [asked, answered] = isInstruction ? [instruction, output] : [question, answer]
  if (typeof asked !== 'string' || typeof answered !== 'string') return undefined
  const more = [isInstruction ? input : undefined, record.context].filter((value) => !isNothing(value))
  if (more.length > 1 || (more.length === 1 && typeof more[0] !== 'string')) {
    const what =
      more.length > 1 ? 'both "input" and "context"' : `"${isNothing(input) ? 'context' : 'input'}" is not text`
    throw new DataError({ where, what, expected: 'one text besides the question', got: fieldsOf(record) })
  }
  const whole = [asked, ...more].join('\n\n')
  const scene = typeof system === 'string' && system !== '' ? system : undefined
  if (scene === undefined && !isNothing(system)) throw new DataError({ where, what: '"system" is not text' })
  const history = isNothing(record.history) ? [] : record.history
  if (!Array.isArray(history) || !history.every(isPair)) {
    throw new DataError({ where, what: '"history" is not read', expected: 'pairs of a question and its answer' })
  }
  if (history.length > 0) return { kind: 'chat', chat: chatOf(whole, answered, scene, history) } as const
  return { kind: 'answer', question: whole, answer: answered, system: scene } as const
}

function isPair(value: unknown): value is Pair {
  return Array.isArray(value) && value.length === 2 && value.every((text) => typeof text === 'string')
}

export function fieldsOf(value: unknown): string {
  if (value === null || Array.isArray(value)) return value === null ? 'null' : 'a list'
  if (typeof value !== 'object') return value === undefined ? 'nothing' : `a ${typeof value}`
  const fields = Object.entries(value as object).map(
    ([key, field]) => `"${key}" (${field === null ? 'null' : Array.isArray(field) ? 'list' : typeof field})`,
  )
  return fields.length === 0 ? 'no fields' : fields.slice(0, 8).join(', ')
}

/**
 * Encodes a prompt and its answer with exactly one eos at the end. Only tokens of the answer are targets. Tokens after
 * the first `most` may be missing.
 */
export function encodeText(prompt: string, answer: string, tokenizer: Tokenizer, eos: number, most?: number): Example {
  const { ids, completionStart } = tokenizer.encodePair(prompt, answer, most)
  let length = ids.length
  // The tokenizer's template, or the text itself, may have added an eos already.
  while (length > 0 && ids[length - 1] === eos) length--
  if (most !== undefined && length < most && ids.length >= most) return encodeText(prompt, answer, tokenizer, eos)
  const inputIds = Int32Array.from([...ids.slice(0, length), eos])
  const labels = inputIds.slice().fill(IGNORED, 0, Math.max(1, Math.min(completionStart, length)))
  return { inputIds, labels }
}

/** Counts a record's targets: labels that are not ignored, except at the first position. */
export function countTargets(labels: Int32Array): number {
  let count = 0
  for (let i = 1; i < labels.length; i++) if (labels[i] !== IGNORED) count++
  return count
}
