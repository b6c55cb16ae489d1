// Encodes prompts: a text as it is, or a chat. The code for chats is loaded with the first chat.

import { contextError, DataError } from '../../core/base/errors.js'
import { isObject, type Kind, kind } from '../../core/base/options.js'
import type { ImageSource } from '../../model/images/image.js'
import { type Model, requireTokenizer } from '../../model/model-folder.js'
import type { ChatMessage } from '../../model/text/chat.js'
import { checkVocabulary, type Tokenizer } from '../../model/text/tokenizer.js'
import type { ChatOptions, Prompt, PromptImages, TokenPrompt } from '../session.js'
import type { EncodedPrompt, PromptContext } from './messages.js'

const isMessages = (value: unknown): value is readonly ChatMessage[] =>
  Array.isArray(value) && value.length > 0 && value.every((message) => isObject(message) && !isTokens(message))

const isTokens = (value: unknown): value is TokenPrompt =>
  isObject(value) && Array.isArray(value.ids) && value.ids.every((id) => Number.isSafeInteger(id) && id >= 0)

export const isPrompt = (value: unknown): value is Prompt =>
  typeof value === 'string' || isMessages(value) || isTokens(value)

export const PROMPT: Kind = kind('text, a list of messages with role and content, or { ids } with token ids', isPrompt)

export const PROMPTS: Kind = kind(
  `${PROMPT.expected}, or a list of these`,
  (value) => isPrompt(value) || (Array.isArray(value) && value.length > 0 && value.every(isPrompt)),
)

export async function encodePrompt(
  model: Model,
  prompt: Prompt,
  options: ChatOptions,
  context: PromptContext,
): Promise<EncodedPrompt> {
  const { pictures, where, isSource } = context
  const { contextLength = Number.POSITIVE_INFINITY, vocabularySize } = model
  const tokenizer = requireTokenizer(model)
  const isChat = typeof prompt !== 'string' && !isTokens(prompt)
  if (isChat && isSource) {
    throw new DataError({ where, what: 'an encoder-decoder takes no chat', expected: 'text', got: 'messages' })
  }
  const idsOf = async (text: string) => {
    return isSource ? tokenizer.encode(text) : textIds(model, tokenizer, (await pictures?.fill(text)) ?? text)
  }
  const encoded = isChat
    ? await (await import('./messages.js')).encodeMessages(model, prompt, options, context)
    : { ids: typeof prompt === 'string' ? await idsOf(prompt) : prompt.ids, endIds: [], stops: [] }
  const { length } = encoded.ids
  if (length === 0) {
    throw new DataError({
      where,
      what: 'it is empty, and the tokenizer of this model puts no token before a text',
      hint: 'Write at least one character',
    })
  }
  // Nothing is written after a text that an encoder reads, so it may fill the context.
  const most = isSource ? contextLength : contextLength - 1
  if (length > most) throw contextError(contextLength, `${length} in the ${where}`, most)
  const { vectors } = pictures ?? {}
  pictures?.check(encoded.ids)
  const tokenIds = encoded.ids.filter((id) => id !== vectors?.token)
  const unknown = isTokens(prompt)
    ? tokenIds.find((id) => id >= (vocabularySize ?? Number.POSITIVE_INFINITY))
    : undefined
  if (unknown !== undefined) {
    throw new DataError({
      where,
      what: 'no token has this id',
      expected: `ids below ${vocabularySize}`,
      got: `${unknown}`,
    })
  }
  checkVocabulary(tokenIds, { tokenizer, vocabularySize })
  return { ...encoded, pictures: vectors }
}

function textIds({ eosTokenIds }: Model, tokenizer: Tokenizer, text: string): number[] {
  const ids = tokenizer.encode(text)
  const last = ids.at(-1)
  const endsText = last !== undefined && eosTokenIds.includes(last)
  // Some tokenizers end every text with an end token. A prompt goes on, so it is removed.
  if (endsText && tokenizer.encode(text, { specialTokens: false }).at(-1) !== last) ids.pop()
  return ids
}

export function imagesOf(images: PromptImages | undefined, prompts: number | undefined): readonly ImageSource[][] {
  if (images === undefined) return Array.from({ length: prompts ?? 1 }, () => [])
  const lists = [images].flat() as readonly (ImageSource | readonly ImageSource[])[]
  const expected =
    prompts === undefined ? 'a picture, or a list of pictures' : `a list of ${prompts}, one for each prompt`
  const refuse = (got: string) => new DataError({ where: 'images', what: 'not as many as prompts', expected, got })
  if (prompts === undefined) {
    if (lists.some(Array.isArray)) throw refuse('a list of lists')
    return [lists as ImageSource[]]
  }
  if (!Array.isArray(images)) throw refuse('one picture')
  if (images.length !== prompts) throw refuse(`a list of ${images.length}`)
  return lists.map((list) => [list].flat() as ImageSource[])
}
