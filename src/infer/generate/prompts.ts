// Prompts: text as it is, or a chat, which its template renders to where the answer begins; and what ends the answer.

import { attempt, DataError, FormatError } from '../../base/errors.js'
import { isObject, type Kind, kind } from '../../base/options.js'
import { type Model, requireTokenizer } from '../../graph/model-folder.js'
import type { ImageSource } from '../../images/image.js'
import { type ChatMessage, type MessageOfParts, parseChat, parseParts } from '../../text/chat.js'
import { loadChatTemplate } from '../../text/chat-template.js'
import { checkVocabulary } from '../../text/records.js'
import type { ChatTemplate } from '../../text/template.js'
import type { Tokenizer } from '../../text/tokenizer.js'
import { messageForm, withPlaces } from '../pictures/chat-places.js'
import type { PictureVectors, PromptPictures } from '../pictures/pictures.js'
import type { ChatOptions, Prompt, PromptImages, TokenPrompt } from '../session.js'

const isMessages = (value: unknown): value is readonly ChatMessage[] =>
  Array.isArray(value) && value.length > 0 && value.every((message) => isObject(message) && !isTokens(message))

const isTokens = (value: unknown): value is TokenPrompt =>
  isObject(value) && Array.isArray(value.ids) && value.ids.every((id) => Number.isSafeInteger(id) && id >= 0)

const isPrompt = (value: unknown) => typeof value === 'string' || isMessages(value) || isTokens(value)

export const PROMPT: Kind = kind('text, a list of messages with role and content, or { ids } with token ids', isPrompt)

export const PROMPTS: Kind = kind(
  `${PROMPT.expected}, or a list of these`,
  (value) => isPrompt(value) || (Array.isArray(value) && value.length > 0 && value.every(isPrompt)),
)

export function isOnePrompt(prompts: Prompt | readonly Prompt[]): prompts is Prompt {
  return isPrompt(prompts)
}

export interface EncodedPrompt {
  readonly ids: readonly number[]
  /** Tokens that end the answer to a chat, besides the model's own. */
  readonly endIds: readonly number[]
  readonly stops: readonly string[]
  readonly pictures?: PictureVectors | undefined
}

interface PromptContext {
  readonly recorded: string | undefined
  readonly pictures: PromptPictures | undefined
  readonly where: string
}

export async function encodePrompt(
  model: Model,
  prompt: Prompt,
  options: ChatOptions,
  context: PromptContext,
): Promise<EncodedPrompt> {
  const { pictures, where } = context
  const { contextLength, vocabularySize, name } = model
  const tokenizer = requireTokenizer(model)
  const encoded = isTokens(prompt)
    ? { ids: prompt.ids, endIds: [], stops: [] }
    : typeof prompt === 'string'
      ? { ids: textIds(model, tokenizer, await filled(prompt, pictures)), endIds: [], stops: [] }
      : await encodeMessages(model, prompt, options, context)
  const { length } = encoded.ids
  if (length === 0) {
    throw new DataError({
      where,
      what: 'it has no tokens, and the tokenizer adds none',
      hint: 'Give at least one character',
    })
  }
  if (contextLength !== undefined && length >= contextLength) {
    throw new DataError({
      where,
      what: `it leaves no room in the context of ${name}`,
      expected: `fewer than ${contextLength} tokens`,
      got: `${length}`,
    })
  }
  const { vectors } = pictures ?? {}
  pictures?.check(encoded.ids)
  const ownIds = encoded.ids.filter((id) => id !== vectors?.token)
  const unknown = isTokens(prompt) ? ownIds.find((id) => id >= (vocabularySize ?? Number.POSITIVE_INFINITY)) : undefined
  if (unknown !== undefined) {
    throw new DataError({
      where,
      what: 'an id of no token',
      expected: `ids below ${vocabularySize}`,
      got: `${unknown}`,
    })
  }
  checkVocabulary(ownIds, { tokenizer, vocabularySize })
  return { ...encoded, pictures: vectors }
}

async function filled(text: string, pictures: PromptPictures | undefined): Promise<string> {
  return pictures === undefined ? text : pictures.fill(text)
}

function textIds({ eosTokenIds }: Model, tokenizer: Tokenizer, text: string): number[] {
  const ids = tokenizer.encode(text)
  const last = ids.at(-1)
  const endsText = last !== undefined && eosTokenIds.includes(last)
  // Some templates end every text; a prompt goes on.
  if (endsText && tokenizer.encode(text, { specialTokens: false }).at(-1) !== last) ids.pop()
  return ids
}

async function encodeMessages(
  model: Model,
  messages: readonly MessageOfParts[],
  { chatTemplate, chatTemplateArgs: args, tools }: ChatOptions,
  { recorded, pictures, where }: PromptContext,
): Promise<EncodedPrompt> {
  const tokenizer = requireTokenizer(model)
  const { count = 0, place } = pictures ?? {}
  const chat = place === undefined ? parseChat({ messages }, where).messages : parseParts(messages, where)
  if (chat.at(-1)?.role === 'assistant') {
    throw new DataError({
      where: `${where}, message ${messages.length}`,
      what: 'the last message is an answer already',
      expected: 'a message of the user or a tool',
    })
  }
  const template = await templateOf(model, chatTemplate ?? recorded)
  if (template === undefined) throw noTemplate(model.directory.name)
  const form: MessageForm = place === undefined ? (all) => all : messageForm(template, args, place)
  const written = form(place === undefined ? chat : withPlaces(chat, count, place))
  const { text } = template.render(written, { args, tools, addGenerationPrompt: true }, where)
  const ids = tokenizer.encode(await filled(text, pictures), { specialTokens: false })
  return { ids, ...endOfTurn(template, args, tokenizer, form) }
}

export function noTemplate(model: string): FormatError {
  return new FormatError({
    where: model,
    what: 'this model has no chat template, and the prompt is a chat',
    hint: 'Give one with `chatTemplate`, or give the prompt as text',
  })
}

type MessageForm = (messages: readonly MessageOfParts[]) => readonly MessageOfParts[]

/** Templates take time to compile: each is once. */
const templates = new WeakMap<Model, Map<string | undefined, Promise<ChatTemplate | undefined>>>()

function templateOf(model: Model, text: string | undefined): Promise<ChatTemplate | undefined> {
  const known = templates.get(model) ?? new Map<string | undefined, Promise<ChatTemplate | undefined>>()
  templates.set(model, known)
  const template = known.get(text) ?? loadChatTemplate(model.directory, text)
  known.set(text, template)
  return template
}

/** Contents that no template changes, and that are easy to find again. */
const [PROBED_ANSWER, PROBED_QUESTION] = ['qzanswerqz', 'qzquestionqz']

/** Looks for the first special token between an answer and the next question, else takes the text itself. */
export function endOfTurn(
  template: ChatTemplate,
  args: ChatOptions['chatTemplateArgs'],
  tokenizer: Tokenizer,
  form: MessageForm = (messages) => messages,
): Pick<EncodedPrompt, 'endIds' | 'stops'> {
  const question = (content: string) => ({ role: 'user', content })
  const probe = [question('a'), { role: 'assistant', content: PROBED_ANSWER }, question(PROBED_QUESTION)]
  const options = { args, addGenerationPrompt: false }
  const { value: text } = attempt(() => template.render(form(probe), options, 'end of turn').text)
  if (text === undefined) return { endIds: [], stops: [] }
  const start = text.indexOf(PROBED_ANSWER) + PROBED_ANSWER.length
  const between = text.slice(start, text.indexOf(PROBED_QUESTION))
  const ids = tokenizer.encode(between, { specialTokens: false })
  const isSpecial = (id: number) =>
    tokenizer.decode([id]) === '' && tokenizer.decode([id], { specialTokens: true }).trim() !== ''
  const first = ids.findIndex(isSpecial)
  if (first >= 0 && tokenizer.decode(ids.slice(0, first)).trim() === '') return { endIds: [ids[first]], stops: [] }
  const stop = between.trimEnd()
  return { endIds: [], stops: stop === '' ? [] : [stop] }
}

export function imagesOf(images: PromptImages | undefined, prompts: number | undefined): readonly ImageSource[][] {
  if (images === undefined) return Array.from({ length: prompts ?? 1 }, () => [])
  const lists = [images].flat() as readonly (ImageSource | readonly ImageSource[])[]
  const expected =
    prompts === undefined ? 'a picture, or a list of pictures' : `a list of ${prompts}, one for each prompt`
  const refuse = (got: string) => new DataError({ where: 'images', what: 'not as many as prompts', expected, got })
  if (prompts === undefined) {
    if (lists.some((one) => Array.isArray(one))) throw refuse('a list of lists')
    return [lists as ImageSource[]]
  }
  if (!Array.isArray(images)) throw refuse('one picture')
  if (images.length !== prompts) throw refuse(`a list of ${images.length}`)
  return lists.map((one) => [one].flat() as ImageSource[])
}
