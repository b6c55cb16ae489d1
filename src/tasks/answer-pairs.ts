// Rows with two answers to one prompt, one better than the other, in the forms that TRL's data sets have: the prompt is
// a field of its own, or both answers begin with it; and all of them are texts, or messages of a chat.

import { DataError } from '../base/errors.js'
import { commonLength } from '../base/group.js'
import { isObject } from '../base/options.js'
import { type Chat, type ChatMessage, parseChat } from '../text/chat.js'
import { fieldsOf, type ParsedRecord } from '../text/records.js'

/** A row of data: each answer with its prompt. */
export interface AnswerPair {
  readonly chosen: ParsedRecord
  readonly rejected: ParsedRecord
  readonly where: string
}

const NAMES = ['chosen', 'rejected'] as const

type Fields = Readonly<Record<string, unknown>>

export function parseAnswerPair(row: unknown, where: string): AnswerPair {
  const record: Fields = isObject(row) ? row : {}
  const isList = NAMES.map((name) => Array.isArray(record[name]))
  const isAnswer = NAMES.map((name, i) => isList[i] || typeof record[name] === 'string')
  const { prompt = null } = record
  const isPrompt = prompt === null || typeof prompt === 'string' || Array.isArray(prompt)
  if (isAnswer.includes(false) || isList[0] !== isList[1] || !isPrompt) {
    throw new DataError({
      where,
      what: 'not a pair of answers',
      expected: '"prompt", "chosen" and "rejected" as texts, or as lists of messages',
      got: fieldsOf(record),
      hint: "If your fields have other names, use `columns: { prompt: 'question', chosen: 'better', rejected: 'worse' }`",
    })
  }
  const empty = NAMES.find((name) => isEmpty(record[name]))
  if (empty !== undefined) throw emptyAnswer(empty, where)
  const [chosen, rejected] = isList[0] || Array.isArray(prompt) ? chatsOf(record, where) : textsOf(record, where)
  return { chosen, rejected, where }
}

function isEmpty(answer: unknown): boolean {
  return Array.isArray(answer) ? answer.length === 0 : (answer as string).trim() === ''
}

function emptyAnswer(name: string, where: string): DataError {
  return new DataError({ where, what: `"${name}" has no answer`, hint: 'Leave out this record, or write the answer' })
}

function textsOf({ prompt, chosen, rejected }: Fields, where: string): ParsedRecord[] {
  const answers = [chosen, rejected] as string[]
  const start = typeof prompt === 'string' ? 0 : sharedText(answers)
  if (start === 0 && typeof prompt !== 'string') throw noPrompt('texts', where)
  return answers.map((answer) => {
    const given = typeof prompt === 'string' ? prompt : answer.slice(0, start)
    return { where, kind: 'pair', prompt: given, completion: answer.slice(start) }
  })
}

/** A space before the place belongs to the answers. Of equal texts, the last letter is the answer, as in TRL. */
function sharedText([a, b]: readonly string[]): number {
  const length = Math.min(commonLength(a, b), a.length - 1, b.length - 1)
  if (a[length] !== b[length] && a[length - 1] === ' ') return length - 1
  const isHalf = /[\uDC00-\uDFFF]/.test(a[length]) && /[\uD800-\uDBFF]/.test(a[length - 1] ?? '')
  return isHalf ? length - 1 : length
}

function chatsOf(record: Fields, where: string): ParsedRecord[] {
  const { prompt, tools, chat_template_kwargs } = record
  const read = (name: string) => {
    const turns = Array.isArray(prompt) ? { prompt, completion: record[name] } : { messages: record[name] }
    return parseChat({ ...turns, tools, chat_template_kwargs }, `${where}, ${name}`)
  }
  const chats = NAMES.map(read)
  const learnFrom = Array.isArray(prompt) ? prompt.length : sharedMessages(chats.map(({ messages }) => messages))
  if (learnFrom === 0) throw noPrompt('messages', where)
  return chats.map((chat, i) => {
    if (!chat.messages.slice(learnFrom).some(isSaid)) throw emptyAnswer(NAMES[i], where)
    return { where, kind: 'chat', chat: { ...chat, learnFrom } satisfies Chat }
  })
}

function sharedMessages(chats: readonly (readonly ChatMessage[])[]): number {
  const [a, b] = chats.map((messages) => messages.map((message) => JSON.stringify(message)))
  return Math.min(commonLength(a, b), a.length - 1, b.length - 1)
}

function isSaid({ role, content = '', tool_calls = [] }: ChatMessage): boolean {
  return role === 'assistant' && (content.trim() !== '' || tool_calls.length > 0)
}

function noPrompt(kind: 'texts' | 'messages', where: string): DataError {
  return new DataError({
    where,
    what: '"chosen" and "rejected" do not begin with the same prompt',
    expected:
      kind === 'texts' ? 'the same beginning, or a field "prompt"' : 'the same first messages, or a field "prompt"',
  })
}
