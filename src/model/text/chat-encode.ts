// Encodes chats as token ids. A chat is encoded as a single text, so that the model sees the same ids at inference.

import { attempt, MismatchError } from '../../core/base/errors.js'
import { commonLength, firstOf } from '../../core/base/group.js'
import type { Span } from './added-tokens.js'
import { type Chat, type MessageOfParts, REASONING_FIELDS } from './chat.js'
import { type Example, IGNORED } from './records.js'
import type { PlainTemplate, RenderOptions } from './template.js'
import type { Tokenizer } from './tokenizer.js'

export interface ChatEncoding {
  readonly template: PlainTemplate
  readonly tokenizer: Tokenizer
  readonly args?: Readonly<Record<string, unknown>> | undefined
  readonly maxLength: number
}

export interface MarkedText {
  readonly text: string
  readonly spans: readonly Span[]
}

export interface EncodedChat {
  readonly examples: readonly Example[]
  /** For each example, the part of the chat that it was made from. */
  readonly chats: readonly Chat[]
  /** True if early turns were left out because the chat is too long. */
  readonly isShortened: boolean
  /** The number of answers that exceed `maxLength` even with only their question. */
  readonly lostAnswers: number
  /** What the model does not learn from the chat. Each note ends a sentence such as "3 of 10 records …". */
  readonly notes: readonly string[]
}

/**
 * Encodes a chat. It becomes a single example if the template marks what the model writes, or if it shows earlier turns
 * in the same way as when they were answered. Otherwise each answer becomes an example, rendered as at inference. If a
 * chat is too long, whole early turns are left out, but never the system message or the last answer. Empty answers and
 * answers with weight 0 are not learned.
 *
 * @throws DataError if the template refuses the chat, MismatchError if it writes an answer in another form than it asks
 *   for
 */
export function encodeChat(chat: Chat, encoding: ChatEncoding, where: string): EncodedChat {
  const result = { examples: [] as Example[], chats: [] as Chat[], isShortened: false, lostAnswers: 0 }
  const exampleOf = (marked: MarkedText | undefined): Example | undefined => {
    const example = marked && encode(marked, encoding)
    return example !== undefined && example.inputIds.length <= encoding.maxLength ? example : undefined
  }
  const { texts, notes } = answerTexts(chat, encoding, where, (text) => exampleOf({ text, spans: [] }) === undefined)
  let kept = 1
  for (const { upTo, mark } of texts) {
    const chats = [upTo, ...shorterChats(upTo)]
    const textOf = (i: number) => (i === 0 ? mark() : answerTexts(chats[i], encoding, where).texts.at(-1)?.mark())
    let example = undefined as Example | undefined
    const fits = (i: number) => {
      const found = exampleOf(textOf(i))
      example = found ?? example
      return found !== undefined
    }
    let index = 0
    // If an earlier text was too long, this one, which is longer, most probably is too: do not try it first.
    if (result.isShortened || !fits(0)) {
      // The rendering of long chats is slow. So begin with as many turns as the earlier text has, and add some.
      let [count, step, fitting] = [kept, 1, chats.length]
      while (count <= chats.length && fits(chats.length - count)) {
        fitting = chats.length - count
        count += step
        step *= 2
      }
      const from = Math.max(0, chats.length - count + 1)
      index = from + firstOf(fitting - from, (i) => fits(from + i))
      kept = Math.max(1, chats.length - index)
    }
    if (example === undefined) result.lostAnswers++
    else {
      result.examples.push(example)
      result.chats.push(chats[index])
      result.isShortened ||= index > 0
    }
  }
  return { ...result, notes }
}

/**
 * Returns shorter forms of the chat, longest first: each begins at a later message of the user, after the system
 * messages.
 */
function shorterChats(chat: Chat): Chat[] {
  const { messages, learnFrom } = chat
  const system = messages.findIndex(({ role }) => role !== 'system' && role !== 'developer')
  return messages.flatMap(({ role }, first) => {
    if (first <= system || role !== 'user') return []
    const kept = [...messages.slice(0, system), ...messages.slice(first)]
    return { ...chat, messages: kept, learnFrom: Math.max(0, learnFrom - (first - system)) }
  })
}

/** How many answers are rendered to find the form of a long chat: rendering up to each answer takes quadratic time. */
const SHOWN_ANSWERS = 32

interface AnswerTexts {
  readonly texts: readonly { readonly upTo: Chat; mark(): MarkedText }[]
  readonly notes: readonly string[]
}

/** Renders the texts of a chat before any text is cut. There are none if the chat has no answer to learn. */
export function answerTexts(
  chat: Chat,
  { template, args }: Pick<ChatEncoding, 'template' | 'args'>,
  where: string,
  isTooLong: (text: string) => boolean = () => false,
): AnswerTexts {
  const { messages } = chat
  const options = { tools: chat.tools, args: { ...args, ...chat.args } }
  const { answers, notes } = answersToLearn(chat, template, options, where)
  const lastAnswer = answers.at(-1)
  if (lastAnswer === undefined) return { texts: [], notes }
  const upTo = (end: number): Chat => ({ ...chat, messages: messages.slice(0, end) })
  const singleText = (marked: MarkedText): AnswerTexts => ({
    texts: [{ upTo: upTo(lastAnswer + 1), mark: () => marked }],
    notes,
  })
  const render = (end: number, addGenerationPrompt = false) =>
    template.render(messages.slice(0, end), { ...options, addGenerationPrompt }, where)
  const promptOf = (index: number, text: string) =>
    index > 0 ? render(index, true).text : text.slice(0, firstAnswerStart(template, options, text, where))

  const all = render(lastAnswer + 1)
  if (template.marksGeneration) {
    const { text, generated } = all
    const skipped = [...messages.keys()].filter((index) => {
      return index < lastAnswer && messages[index].role === 'assistant' && !answers.includes(index)
    })
    const endIn = (rendered: string) => commonLength(text, rendered)
    const ranges = skipped
      .filter((index) => index >= chat.learnFrom)
      .map((index) => [endIn(promptOf(index, text)), endIn(render(index + 1).text)])
    if (skipped.length > ranges.length) ranges.push([0, endIn(promptOf(chat.learnFrom, text))])
    const isSkipped = ({ end }: Span) => ranges.some(([from, to]) => end > from && end <= to)
    return singleText({ text, spans: generated.filter((span) => !isSkipped(span)) })
  }

  const spans: Span[] = []
  // If the text will be cut anyway, only its form matters here, and some of its answers are enough to find that out.
  const stride = answers.length > SHOWN_ANSWERS && isTooLong(all.text) ? Math.ceil(answers.length / SHOWN_ANSWERS) : 1
  const shown = answers.filter((index, i) => i % stride === 0 || index === lastAnswer)
  for (const index of shown) {
    const { text: answered } = index === lastAnswer ? all : render(index + 1)
    const prompt = promptOf(index, answered)
    if (!all.text.startsWith(prompt) || !all.text.startsWith(answered)) break
    spans.push({ start: prompt.length, end: answered.length })
  }
  if (spans.length === shown.length) return singleText({ text: all.text, spans })

  const texts = answers.map((index) => ({
    upTo: upTo(index + 1),
    mark(): MarkedText {
      const { text } = index === lastAnswer ? all : render(index + 1)
      const prompt = promptOf(index, text)
      const probe = [...messages.slice(0, index), { role: 'assistant', content: 'x' }]
      const start = text.startsWith(prompt)
        ? prompt.length
        : answerStart(text, prompt, render(index).text, template.render(probe, options, where).text)
      if (start === undefined) throw notAsAsked(template, text, prompt, where)
      const asked = prompt + text.slice(start)
      return { text: asked, spans: [{ start: prompt.length, end: asked.length }] }
    },
  }))
  return { texts, notes }
}

/** Returns the indices of the answers to learn: they are not in the prompt, not empty, and do not have weight 0. */
function answersToLearn(
  { messages, learnFrom, tools }: Chat,
  template: PlainTemplate,
  options: RenderOptions,
  where: string,
): { answers: number[]; notes: string[] } {
  const isLearned = ({ role, weight }: MessageOfParts, i: number) =>
    role === 'assistant' && i >= learnFrom && weight !== 0
  const end = messages.findLastIndex(isLearned) + 1
  const isLost = (
    without: (all: readonly MessageOfParts[]) => readonly MessageOfParts[],
    tools = options.tools,
    to = end,
  ): boolean => {
    // Templates may refuse a message that has only calls and no content.
    const all = messages.slice(0, to).map((message) => ({ ...message, content: message.content ?? '' }))
    const textOf = (some: readonly MessageOfParts[], renderOptions: RenderOptions) =>
      template.render(some, renderOptions, where).text
    return attempt(() => textOf(all, options) === textOf(without(all), { ...options, tools })).value === true
  }
  const hasCalls = ({ tool_calls = [] }: MessageOfParts) => tool_calls.length > 0
  const losesTools = end > 0 && tools !== undefined && isLost((all) => all, [])
  const losesCalls =
    messages.slice(0, end).some(hasCalls) && isLost((all) => all.map(({ tool_calls: _, ...message }) => message))
  const candidates = [...messages.keys()].filter((i) => isLearned(messages[i], i))
  const lastThought = candidates.findLast((i) => thoughtOf(messages[i]).trim() !== '')
  // Templates may leave out the reasoning of earlier turns on purpose, so the chat of this test ends with the last
  // answer among those that have reasoning.
  const losesThoughts =
    lastThought !== undefined && isLost((all) => all.map(withoutThought), options.tools, lastThought + 1)
  const isEmpty = (message: MessageOfParts) => {
    const { content = '' } = message
    const text = losesThoughts ? content : `${content}${thoughtOf(message)}`
    return `${text}`.trim() === '' && (losesCalls || !hasCalls(message))
  }
  const answers = candidates.filter((i) => !isEmpty(messages[i]))
  const notes = [
    ...(losesTools ? ['have tools, for which the chat template has no place'] : []),
    ...(losesCalls ? ['have tool calls, for which the chat template has no place'] : []),
    ...(losesThoughts
      ? [
          'have reasoning, for which the chat template has no place: write it into the content, or give a `chatTemplate`',
        ]
      : []),
    ...(answers.length < candidates.length ? ['have empty answers, which are not learned'] : []),
  ]
  return { answers, notes }
}

function thoughtOf({ reasoning_content: thought }: MessageOfParts & { readonly reasoning_content?: unknown }): string {
  return typeof thought === 'string' ? thought : ''
}

function withoutThought(message: MessageOfParts): MessageOfParts {
  const fields = Object.entries(message).filter(([name]) => !REASONING_FIELDS.includes(name))
  return Object.fromEntries(fields) as unknown as MessageOfParts
}

/** Returns where the first answer begins. Many templates refuse an empty chat, so another chat shows the prompt. */
function firstAnswerStart(template: PlainTemplate, options: RenderOptions, text: string, where: string): number {
  const question = [{ role: 'user', content: 'x' }]
  const bare = template.render(question, options, where).text
  const asking = template.render(question, { ...options, addGenerationPrompt: true }, where).text
  const prompt = asking.slice(commonLength(bare, asking))
  return Math.max(0, text.indexOf(prompt)) + prompt.length
}

/** Matches a tag that is opened and not closed, such as a thought that the model has to continue. */
const OPEN_TAG = /<([\w:]+)>(?![\s\S]*<\/\1>)/

/**
 * Finds where an answer begins if the template's prompt ends with text that is not shown before a finished answer (in
 * Gemma 4, an empty thought). Then the answer begins where the prompt and the finished text start to differ.
 *
 * @param given the text of the earlier messages, without the prompt
 * @param probe the text of the earlier messages and an answer of one letter
 * @returns undefined if the answer cannot follow the prompt, because it does not close a thought that the prompt opens,
 *   or because earlier turns differ
 */
function answerStart(text: string, prompt: string, given: string, probe: string): number | undefined {
  const start = commonLength(prompt, probe)
  if (start < given.length || !text.startsWith(prompt.slice(0, start))) return undefined
  const open = OPEN_TAG.exec(prompt.slice(given.length))?.[1]
  return open === undefined || text.includes(`</${open}>`, start) ? start : undefined
}

function notAsAsked({ name }: PlainTemplate, text: string, prompt: string, where: string): MismatchError {
  const at = commonLength(text, prompt)
  return new MismatchError({
    where,
    what: `the chat template (${name}) writes an answer in another form than it asks for one`,
    expected: JSON.stringify(prompt.slice(Math.max(0, at - 20), at + 40)),
    got: JSON.stringify(text.slice(Math.max(0, at - 20), at + 40)),
    hint: 'Set its variables with `chatTemplateArgs`, or give a template that marks answers with {% generation %}',
  })
}

function encode({ text, spans }: MarkedText, { tokenizer }: Pick<ChatEncoding, 'tokenizer'>): Example {
  const { ids, ranges } = tokenizer.encodeSpans(text, spans)
  const inputIds = Int32Array.from(ids)
  const labels = new Int32Array(ids.length).fill(IGNORED)
  // The first token is never a target because nothing predicts it.
  for (const [first, end] of ranges)
    if (end > 1) labels.set(inputIds.subarray(Math.max(1, first), end), Math.max(1, first))
  return { inputIds, labels }
}
