// Turns chats into prompts: the template renders the messages up to where the answer begins. It also shows which text
// ends an answer.

import { attempt, DataError, FormatError } from '../../core/base/errors.js'
import { type Model, requireTokenizer } from '../../model/model-folder.js'
import { messageForm, withPlaces } from '../../model/pictures/chat-places.js'
import type { PictureVectors, PromptPictures } from '../../model/pictures/pictures.js'
import type { ToolForm } from '../../model/text/calls/call.js'
import { type MessageOfParts, messageOfParts, parseChat } from '../../model/text/chat.js'
import { loadChatTemplate } from '../../model/text/chat-template.js'
import type { ChatTemplate, PlainTemplate } from '../../model/text/template.js'
import type { Tokenizer } from '../../model/text/tokenizer.js'
import type { ChatOptions } from '../session.js'

export interface EncodedPrompt {
  readonly ids: readonly number[]
  /** Tokens that end the answer to a chat, in addition to the model's end tokens. */
  readonly endIds: readonly number[]
  readonly stops: readonly string[]
  /** Special tokens that belong to the text of the answer: the marks of calls. */
  readonly keptIds?: readonly number[]
  readonly pictures?: PictureVectors | undefined
}

export interface PromptContext {
  readonly recorded: string | undefined
  readonly pictures: PromptPictures | undefined
  readonly where: string
  /** True for what the encoder of a model reads: a text, with the end token that the tokenizer adds. */
  readonly isSource?: boolean
}

export async function encodeMessages(
  model: Model,
  messages: readonly MessageOfParts[],
  { chatTemplate, chatTemplateArgs: args, tools, toolForm, answerStart = '' }: ChatOptions,
  { recorded, pictures, where }: PromptContext,
): Promise<EncodedPrompt> {
  const tokenizer = requireTokenizer(model)
  const { count = 0, place } = pictures ?? {}
  const check = place === undefined ? undefined : messageOfParts
  const chat = parseChat({ messages }, where, check).messages
  if (chat.at(-1)?.role === 'assistant') {
    throw new DataError({
      where: `${where}, message ${messages.length}`,
      what: 'the last message is an answer already',
      expected: 'a message of the user or a tool',
      hint: 'To let the model go on with it, give it as `answerStart`',
    })
  }
  const template = await templateOf(model, chatTemplate ?? recorded, toolForm)
  if (template === undefined) throw noTemplate(model.directory.name)
  const form: MessageForm = place === undefined ? (all) => all : messageForm(template, args, place)
  const written = form(place === undefined ? chat : withPlaces(chat, count, 'last', place))
  const { text } = template.render(written, { args, tools, addGenerationPrompt: true }, where)
  const filled = (await pictures?.fill(text)) ?? text
  const ids = tokenizer.encode(filled + answerStart, { specialTokens: false })
  const ended = endOfTurn(template, args, tokenizer, form)
  return { ids, ...(tools?.length ? withCalls(ended, template, tokenizer) : ended) }
}

/** With the tokens that end an answer with calls, and those that mark calls. */
function withCalls(ended: Ends, { calls }: ChatTemplate, tokenizer: Tokenizer): Ends & { keptIds: number[] } {
  const idsOf = (tokens: readonly string[] = []) =>
    tokens.map((token) => tokenizer.tokenId(token)).filter((id) => id !== undefined)
  const keptIds = idsOf(calls.tokens).filter((id) => tokenizer.decode([id]) === '')
  return { ...ended, endIds: [...ended.endIds, ...idsOf(calls.ends)], keptIds }
}

type Ends = Pick<EncodedPrompt, 'endIds' | 'stops'>

export function noTemplate(model: string): FormatError {
  return new FormatError({
    where: model,
    what: 'this model has no chat template, and the prompt is a chat',
    hint: 'Give one with `chatTemplate`, or give the prompt as text',
  })
}

type MessageForm = (messages: readonly MessageOfParts[]) => readonly MessageOfParts[]

/** Returns the compiled chat template. Compiling takes time, so each template is compiled only once. */
export function templateOf(
  { onnx, directory }: Model,
  text: string | undefined,
  toolForm?: ToolForm,
): Promise<ChatTemplate | undefined> {
  const known = onnx.once(directory, () => new Map<string, Promise<ChatTemplate | undefined>>())
  const key = JSON.stringify([text, toolForm])
  const template = known.get(key) ?? loadChatTemplate(directory, text, { toolForm })
  known.set(key, template)
  template.catch(() => known.delete(key))
  return template
}

/** Message contents that no template changes and that are easy to find in the rendered text. */
const [PROBED_ANSWER, PROBED_QUESTION] = ['qzanswerqz', 'qzquestionqz']

/** The tokens between an answer and the next: what ends its turn, the messages after it, and the start of a turn. */
export async function encodeReply(
  model: Model,
  reply: readonly MessageOfParts[],
  { chatTemplate, chatTemplateArgs: args, tools, toolForm }: ChatOptions,
): Promise<number[]> {
  const template = await templateOf(model, chatTemplate, toolForm)
  if (template === undefined) throw noTemplate(model.directory.name)
  const answered = [
    { role: 'user', content: 'a' },
    { role: 'assistant', content: PROBED_ANSWER },
  ]
  const { text } = template.render([...answered, ...reply], { args, tools, addGenerationPrompt: true }, 'reply')
  const [, after] = text.split(PROBED_ANSWER)
  if (after === undefined) {
    const what = 'the chat template leaves out earlier answers, so a chat cannot go on in one text'
    throw new FormatError({ where: model.directory.name, what })
  }
  return requireTokenizer(model).encode(after, { specialTokens: false })
}

/** Finds what ends a turn: the first special token between an answer and the next question, or else the text there. */
export function endOfTurn(
  template: PlainTemplate,
  args: ChatOptions['chatTemplateArgs'],
  tokenizer: Tokenizer,
  form: MessageForm = (messages) => messages,
): Ends {
  const question = (content: string) => ({ role: 'user', content })
  const probe = [question('a'), { role: 'assistant', content: PROBED_ANSWER }, question(PROBED_QUESTION)]
  const options = { args, addGenerationPrompt: false }
  const { value: text } = attempt(() => template.render(form(probe), options, 'end of turn').text)
  const between = text?.split(PROBED_QUESTION)[0].split(PROBED_ANSWER)[1]
  // The template refuses such chats, or writes their last messages alone.
  if (between === undefined) return { endIds: [], stops: [] }
  const ids = tokenizer.encode(between, { specialTokens: false })
  const isSpecial = (id: number) =>
    tokenizer.decode([id]) === '' && tokenizer.decode([id], { specialTokens: true }).trim() !== ''
  const first = ids.findIndex(isSpecial)
  if (first >= 0 && tokenizer.decode(ids.slice(0, first)).trim() === '') return { endIds: [ids[first]], stops: [] }
  const stop = between.trimEnd()
  return { endIds: [], stops: stop === '' ? [] : [stop] }
}
