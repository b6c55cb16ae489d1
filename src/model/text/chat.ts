// Reads the chat formats of common data sets into one form. A record that is not a chat is an error with its place.

import { DataError } from '../../core/base/errors.js'
import { isObject, jsonIn, objectOf } from '../../core/base/options.js'

/** A message, as chat templates read it. Other fields are passed on to the template. */
export interface ChatMessage {
  readonly role: string
  /** May be missing only if the message has tool calls. */
  readonly content?: string
  readonly tool_calls?: readonly unknown[]
  /** 0 if the model should not learn this answer, as in OpenAI's data. Default 1. */
  readonly weight?: number
}

/** A part of a message: text, or the position of a picture. */
export type MessagePart = { readonly type: 'text'; readonly text: string } | { readonly type: 'image' }

/** A message whose content can say where its pictures stand. */
export interface MessageOfParts extends Omit<ChatMessage, 'content'> {
  readonly content?: string | readonly MessagePart[]
}

/** A checked conversation. */
export interface Chat {
  readonly messages: readonly MessageOfParts[]
  /** The index of the first message that the model learns from. Earlier messages are the prompt. */
  readonly learnFrom: number
  readonly tools: readonly unknown[] | undefined
  /** Template variables for this chat only. */
  readonly args: Readonly<Record<string, unknown>> | undefined
}

type Fields = Readonly<Record<string, unknown>>

export type Pair = readonly [question: string, answer: string]

/** What records of chats may hold besides their messages. `functions` is OpenAI's older form of `tools`. */
export const CHAT_FIELDS: readonly string[] = ['system', 'tools', 'functions', 'chat_template_kwargs']

export type CheckMessage = (message: unknown, where: string) => MessageOfParts

const ROLES = ['system', 'developer', 'user', 'assistant', 'tool', 'function', 'ipython']

/** The fields in which data sets keep a model's reasoning. Templates read the first or the second. */
export const REASONING_FIELDS: readonly string[] = ['reasoning_content', 'thinking', 'reasoning']

/** Fields with which Axolotl trains on parts of a message. */
const UNREAD_OF_MESSAGE = ['train_detail', 'training_detail', 'training']

const SHAREGPT_ROLES: ReadonlyMap<unknown, string> = new Map([
  ['human', 'user'],
  ['gpt', 'assistant'],
  ['chatgpt', 'assistant'],
  ['bot', 'assistant'],
  ['model', 'assistant'],
  ['function_response', 'tool'],
  ['observation', 'tool'],
])

/**
 * Reads a chat: a list of `messages`, ShareGPT's `conversations`, or TRL's `prompt` and `completion` as lists of
 * messages.
 *
 * @param check checks each message. Pass {@link messageOfParts} to allow pictures; the default allows only text
 */
export function parseChat(record: Fields, where: string, check: CheckMessage = checkMessage): Chat {
  const functions = list(record.functions, 'functions', where)
  const tools = list(record.tools, 'tools', where) ?? functions?.map((each) => ({ type: 'function', function: each }))
  const args = record.chat_template_kwargs ?? undefined
  if (args !== undefined && (typeof args !== 'object' || Array.isArray(args))) {
    throw new DataError({ where, what: '"chat_template_kwargs" is not an object', got: typeof args })
  }
  const { given, answers } = withSystem(turnsOf(record, where), record.system, where)
  const messages = [...given, ...answers].map((message, i) => check(message, `${where}, message ${i + 1}`))
  if (messages.length === 0) throw new DataError({ where, what: 'a chat without messages' })
  return {
    messages,
    learnFrom: given.length,
    tools: tools?.length === 0 ? undefined : tools,
    args: args as Fields | undefined,
  }
}

export function messageOfParts(message: unknown, where: string): MessageOfParts {
  const { content } = objectOf(message)
  if (!isParts(content)) return checkMessage(message, where)
  return { ...checkMessage({ ...(message as object), content: '' }, where), content }
}

interface Turns {
  readonly given: readonly unknown[]
  readonly answers: readonly unknown[]
}

/** Puts the field `system` of a record before its messages. */
export function withSystem({ given, answers }: Turns, system: unknown, where: string): Turns {
  if (system === undefined || system === null || system === '') return { given, answers }
  const first = objectOf(given[0] ?? answers[0])
  if (typeof system !== 'string') {
    throw new DataError({ where, what: '"system" is not text', expected: 'a string', got: typeof system })
  }
  if (first.role === 'system' || first.role === 'developer') {
    if (first.content === system) return { given, answers }
    throw new DataError({
      where,
      what: 'a field "system" beside messages that begin with another one',
      hint: 'Keep one of the two',
    })
  }
  const scene = { role: 'system', content: system }
  return given.length > 0 ? { given: [scene, ...given], answers } : { given, answers: [scene, ...answers] }
}

function turnsOf(record: Fields, where: string): Turns {
  const messages = list(record.messages, 'messages', where)
  if (messages !== undefined) return { given: [], answers: messages }
  const turns = list(record.conversations, 'conversations', where)
  if (turns !== undefined) {
    return { given: [], answers: turns.map((turn, i) => fromShareGpt(turn, `${where}, message ${i + 1}`)) }
  }
  const { prompt, completion } = record
  const answers = typeof completion === 'string' ? [{ role: 'assistant', content: completion }] : [completion].flat()
  const given = [prompt].flat()
  if (
    answers.length > given.length &&
    given.every((message, i) => JSON.stringify(message) === JSON.stringify(answers[i]))
  ) {
    throw new DataError({ where, what: 'the answer begins with the prompt again', hint: 'Leave it out of the answer' })
  }
  return { given, answers }
}

/** Parses a call's arguments if they are JSON text, as OpenAI has them: templates turn objects into JSON themselves. */
export function withArgumentObjects<Message extends MessageOfParts>(message: Message): Message {
  const calls = Array.isArray(message.tool_calls) ? message.tool_calls : []
  const read = calls.map(withObject)
  return read.every((call, i) => call === calls[i]) ? message : { ...message, tool_calls: read }
}

function withObject(call: unknown): unknown {
  if (!isObject(call)) return call
  if (isObject(call.function)) {
    const read = withObject(call.function)
    return read === call.function ? call : { ...call, function: read }
  }
  const args = jsonIn(call.arguments)
  return isObject(args) ? { ...call, arguments: args } : call
}

/** @param history earlier questions with their answers */
export function chatOf(question: string, answer: string, system?: string, history: readonly Pair[] = []): Chat {
  const scene = system === undefined ? [] : [{ role: 'system', content: system }]
  const turns = [...history, [question, answer] as const].flatMap(([asked, answered]) => [
    { role: 'user', content: asked },
    { role: 'assistant', content: answered },
  ])
  const messages = [...scene, ...turns]
  return { messages, learnFrom: 0, tools: undefined, args: undefined }
}

function list(value: unknown, name: string, where: string): readonly unknown[] | undefined {
  if (value === undefined || value === null) return undefined
  if (Array.isArray(value)) return value
  const parsed = jsonIn(value)
  if (Array.isArray(parsed)) return parsed
  throw new DataError({ where, what: `"${name}" is not a list`, expected: 'a list, or one as JSON', got: typeof value })
}

function fromShareGpt(turn: unknown, where: string): unknown {
  const { from, value, ...rest } = objectOf(turn)
  if (from === undefined) return turn
  if (from === 'function_call') return { role: 'assistant', content: '', tool_calls: [toolCall(value, where)] }
  return { ...rest, role: SHAREGPT_ROLES.get(from) ?? from, content: value }
}

/** Reads a call in the form of ShareGPT and of OpenAI's `function_call`: { name, arguments }, or JSON of it. */
function toolCall(value: unknown, where: string): object {
  const call = typeof value === 'string' ? jsonIn(value) : value
  if (isObject(call) && typeof call.name === 'string') return { type: 'function', function: call }
  throw new DataError({ where, what: 'not a function call', expected: '"name" and "arguments"' })
}

/** Checks a message and changes it as transformers does: no nulls, reasoning under both names, text in one piece. */
function checkMessage(message: unknown, where: string): ChatMessage {
  if (!isObject(message)) {
    throw new DataError({ where, what: 'not a message', expected: 'an object with "role" and "content"' })
  }
  const fields = Object.fromEntries(
    Object.entries(message).filter(([, value]) => value !== null && value !== undefined),
  )
  const { function_call: call, ...others } = fields
  if (call !== undefined) {
    if (fields.tool_calls !== undefined) throw new DataError({ where, what: 'both "function_call" and "tool_calls"' })
    return checkMessage({ ...others, tool_calls: [toolCall(call, where)] }, where)
  }
  const { role, tool_calls, weight = 1, train = true } = fields
  const unread = UNREAD_OF_MESSAGE.find((name) => fields[name] !== undefined)
  if (unread !== undefined || typeof train !== 'boolean') {
    const what = unread === undefined ? '"train" is neither true nor false' : `"${unread}" of a message is not read`
    throw new DataError({ where, what, hint: 'A message counts for the loss as a whole, or with "train": false not' })
  }
  if (typeof role !== 'string' || !ROLES.includes(role)) {
    const got = role === undefined ? 'no role' : JSON.stringify(role)
    const meant = SHAREGPT_ROLES.get(role)
    const hint = meant && `Write ${meant}`
    throw new DataError({ where, what: 'an unknown role', expected: ROLES.join(', '), got, hint })
  }
  if (role === 'assistant' && weight !== 0 && weight !== 1) {
    throw new DataError({
      where,
      what: 'a weight that is not read',
      expected: '0 or 1',
      got: JSON.stringify(weight),
      hint: 'An answer counts for the loss or not: 1 or 0',
    })
  }
  const content = textOf(fields.content)
  const hasCalls = role === 'assistant' && Array.isArray(tool_calls) && tool_calls.length > 0
  if (content === undefined && !(hasCalls && fields.content === undefined)) {
    throw new DataError({
      where,
      what: fields.content === undefined ? 'no content' : 'content that is not text',
      expected: '"content" as text',
      ...(Array.isArray(fields.content) && {
        hint: 'Only parts of the form { "type": "text", "text": … } can be read',
      }),
    })
  }
  const reasoning = REASONING_FIELDS.map((name) => fields[name]).find((value) => value !== undefined)
  return {
    ...(reasoning !== undefined && { thinking: reasoning }),
    ...fields,
    ...(reasoning !== undefined && { reasoning_content: reasoning }),
    role,
    ...((weight === 0 || !train) && { weight: 0 }),
    ...(content !== undefined && { content }),
  } as ChatMessage
}

function textOf(content: unknown): string | undefined {
  if (typeof content === 'string') return content
  if (!Array.isArray(content)) return undefined
  const isText = content.every((part) => part?.type === 'text' && typeof part.text === 'string')
  return isText ? content.map((part) => part.text).join('') : undefined
}

function isParts(content: unknown): content is readonly MessagePart[] {
  if (!Array.isArray(content)) return false
  const isKnown = content.every(
    (part) => part?.type === 'image' || (part?.type === 'text' && typeof part.text === 'string'),
  )
  return isKnown && content.some(({ type }) => type === 'image')
}
