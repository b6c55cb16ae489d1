// Chats → token ids, and labels on what the assistant writes. A chat is encoded as one text, and the characters that count are
// mapped to tokens, so that ids are those of the text the model sees at inference.

import { MismatchError } from '../base/errors.js'
import type { Span } from './added-tokens.js'
import type { Chat, ChatMessage } from './chat.js'
import { type Example, IGNORED } from './records.js'
import type { ChatTemplate, RenderedTurns } from './template.js'
import { commonLength, type Tokenizer } from './tokenizer.js'

/** How chats of one model are encoded. */
export interface ChatEncoding {
  readonly template: ChatTemplate
  readonly tokenizer: Tokenizer
  /** Variables of the template, for every chat. */
  readonly args?: Readonly<Record<string, unknown>> | undefined
  /** Most tokens of an example. */
  readonly maxLength: number
}

/** A text to learn from, and the characters in it that count. */
export interface MarkedText {
  readonly text: string
  readonly spans: readonly Span[]
}

/** The examples of one chat. */
export interface EncodedChat {
  readonly examples: Example[]
  /** Early turns were left out because the chat is too long. */
  readonly isShortened: boolean
  /** Answers that are too long even alone with what they answer. */
  readonly lostAnswers: number
}

/**
 * Encodes a chat. Where the template marks what the model writes, or shows earlier turns as they were shown when they were
 * answered, it is one example; else one for each answer, rendered as at inference. Too long, it loses whole early turns, never the
 * system message or the last answer.
 *
 * @throws DataError when the template refuses the chat, MismatchError when it writes an answer in another form than it asks for one
 */
export function encodeChat(chat: Chat, encoding: ChatEncoding, where: string): EncodedChat {
  const result = { examples: [] as Example[], isShortened: false, lostAnswers: 0 }
  const isTooLong = ({ inputIds }: Example) => inputIds.length > encoding.maxLength
  const whole = markChat(chat, encoding, where).map((marked) => ({ ...marked, example: encode(marked, encoding) }))
  for (const { upTo, example } of whole) {
    if (!isTooLong(example)) {
      result.examples.push(example)
      continue
    }
    const shorter = shorten(upTo, encoding, where)
    if (shorter === undefined) result.lostAnswers++
    else {
      result.examples.push(shorter)
      result.isShortened = true
    }
  }
  return result
}

/** The last part of a chat that fits; undefined when not even the last answer does. */
function shorten(chat: Chat, encoding: ChatEncoding, where: string): Example | undefined {
  const { messages, learnFrom } = chat
  const system = messages.findIndex(({ role }) => role !== 'system' && role !== 'developer')
  const last = messages.findLastIndex(({ role }) => role === 'assistant')
  for (let first = system + 1; first <= last; first++) {
    if (messages[first].role !== 'user') continue
    const kept = [...messages.slice(0, system), ...messages.slice(first)]
    const shorter = { ...chat, messages: kept, learnFrom: Math.max(0, learnFrom - (first - system)) }
    // Only the last answer is sure to be in each part: where every answer is a text of its own, that is this one.
    const marked = markChat(shorter, encoding, where).at(-1)
    const example = marked && encode(marked, encoding)
    if (example !== undefined && example.inputIds.length <= encoding.maxLength) return example
  }
  return undefined
}

/**
 * The texts of a chat with the characters that the model writes, before any is cut. Without an answer to learn from there is none.
 *
 * @throws as {@link encodeChat}
 */
export function markChat(
  chat: Chat,
  { template, args }: Pick<ChatEncoding, 'template' | 'args'>,
  where: string,
): (MarkedText & { readonly upTo: Chat })[] {
  const { messages, learnFrom } = chat
  const answers = messages.flatMap(({ role }, i) => (role === 'assistant' && i >= learnFrom ? [i] : []))
  const lastAnswer = answers.at(-1)
  if (lastAnswer === undefined) return []
  const options = { tools: chat.tools, args: { ...args, ...chat.args } }
  const upTo = (end: number): Chat => ({ ...chat, messages: messages.slice(0, end) })
  const render = (end: number, addGenerationPrompt = false) =>
    template.render(messages.slice(0, end), { ...options, addGenerationPrompt }, where)
  const turns = template.marksGeneration
    ? undefined
    : template.renderTurns(messages.slice(0, lastAnswer + 1), options, where)
  const quick = turns && answerSpans(turns, answers)
  if (turns !== undefined && quick !== undefined)
    return [{ text: turns.text, spans: quick, upTo: upTo(lastAnswer + 1) }]
  const all = render(lastAnswer + 1)
  if (template.marksGeneration) {
    const { text, generated } = all
    const given = answersBefore(messages, learnFrom)
    const spans =
      given === 0 ? generated : generated.filter(({ end }) => end > commonLength(text, render(learnFrom, true).text))
    return [{ text, spans, upTo: upTo(lastAnswer + 1) }]
  }

  const spans: Span[] = []
  for (const index of answers) {
    const { text: prompt } = render(index, true)
    const { text: answered } = index === lastAnswer ? all : render(index + 1)
    if (!all.text.startsWith(prompt) || !all.text.startsWith(answered)) break
    spans.push({ start: prompt.length, end: answered.length })
  }
  if (spans.length === answers.length) return [{ text: all.text, spans, upTo: upTo(lastAnswer + 1) }]

  return answers.map((index) => {
    const { text: prompt } = render(index, true)
    const { text } = index === lastAnswer ? all : render(index + 1)
    const probe = [...messages.slice(0, index), { role: 'assistant', content: 'x' }]
    const start = text.startsWith(prompt)
      ? prompt.length
      : answerStart(text, prompt, render(index).text, template.render(probe, options, where).text)
    if (start === undefined) throw notAsAsked(template, text, prompt, where)
    const asked = prompt + text.slice(start)
    return { text: asked, spans: [{ start: prompt.length, end: asked.length }], upTo: upTo(index + 1) }
  })
}

/** The answers of turns that are sure to be shown as they were asked for; undefined when one does not begin as its prompt. */
function answerSpans({ text, ends, prompt }: RenderedTurns, answers: readonly number[]): Span[] | undefined {
  const spans = answers.map((index) => ({ start: (ends[index - 1] ?? 0) + prompt.length, end: ends[index] }))
  const isAsked = spans.every(({ start, end }) => start <= end && text.startsWith(prompt, start - prompt.length))
  return isAsked ? spans : undefined
}

/** A tag that is opened and not closed: thinking that the model has to go on with. */
const OPEN_TAG = /<([\w:]+)>(?![\s\S]*<\/\1>)/

/**
 * Where an answer begins in its text, in a template whose prompt says more before an answer than it shows once there is one
 * (Gemma 4: an empty thought). Behind such a prompt the answer is what follows their common part.
 *
 * @param given the messages before, without the prompt
 * @param probe those, and an answer of one letter
 * @returns undefined when the answer cannot follow the prompt: a thought is open that it does not close, or earlier turns differ
 */
function answerStart(text: string, prompt: string, given: string, probe: string): number | undefined {
  const start = commonLength(prompt, probe)
  if (start < given.length || !text.startsWith(prompt.slice(0, start))) return undefined
  const open = OPEN_TAG.exec(prompt.slice(given.length))?.[1]
  return open === undefined || text.includes(`</${open}>`, start) ? start : undefined
}

function answersBefore(messages: readonly ChatMessage[], end: number): number {
  return messages.slice(0, end).filter(({ role }) => role === 'assistant').length
}

function notAsAsked({ name }: ChatTemplate, text: string, prompt: string, where: string): MismatchError {
  const at = commonLength(text, prompt)
  return new MismatchError({
    where,
    what: `the chat template (${name}) writes an answer in another form than it asks for one`,
    expected: JSON.stringify(prompt.slice(Math.max(0, at - 20), at + 40)),
    got: JSON.stringify(text.slice(Math.max(0, at - 20), at + 40)),
    hint: 'Set its variables with chatTemplateArgs (--chat-template-args), or give a template that marks answers with {% generation %}',
  })
}

function encode({ text, spans }: MarkedText, { tokenizer }: Pick<ChatEncoding, 'tokenizer'>): Example {
  const { ids, ranges } = tokenizer.encodeSpans(text, spans)
  const inputIds = Int32Array.from(ids)
  const labels = new Int32Array(ids.length).fill(IGNORED)
  // Nothing predicts the first token.
  for (const [first, end] of ranges) labels.set(inputIds.subarray(Math.max(1, first), end), Math.max(1, first))
  return { inputIds, labels }
}
