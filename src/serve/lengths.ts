// Bounds on texts before they become tokens. Texts are encoded in the thread that answers all requests, so a very long
// text would stop the server.

import type { Model, Prompt } from '../api/index.js'
import { contextError } from '../core/base/errors.js'
import type { TextRequest } from './forms/form.js'
import { type HttpError, invalid } from './http.js'

/** A word becomes tokens as a whole. A word of a million characters would take ten seconds. */
const MAX_WORD = 1 << 16
/** Characters of the texts of a request for vectors or labels, which no context bounds. */
const MAX_CHARACTERS = 1 << 20
/** Characters that become tokens before other requests get a turn. */
const TURN = 1 << 14
/** Long texts are encoded in pieces of {@link TURN} characters. Each cut may add this many tokens. */
const PER_CUT = 16

/** @throws HttpError for words that are too long, and for texts that are too long together */
export function checkTexts(texts: readonly string[], param: string): void {
  const length = texts.reduce((sum, text) => sum + text.length, 0)
  if (length > MAX_CHARACTERS) throw tooLong(`the texts have more than ${MAX_CHARACTERS} characters together`, param)
  for (const text of texts) checkWords(text, param)
}

/** @throws HttpError for prompts with words that are too long, ContextError for more tokens than the context */
export async function checkPrompts(model: Model, { prompts, options }: TextRequest): Promise<void> {
  const tools = options.tools === undefined ? [] : [JSON.stringify(options.tools)]
  for (const prompt of prompts) {
    const texts = [...textsOf(prompt), ...tools]
    let budget = model.contextLength ?? Number.POSITIVE_INFINITY
    for (const text of texts) budget -= await tokensOf(text, budget, model)
    for (const text of texts) checkWords(text, 'prompt')
  }
}

function textsOf(prompt: Prompt): string[] {
  if (typeof prompt === 'string') return [prompt]
  if ('ids' in prompt) return []
  return prompt.map((message) => JSON.stringify(message))
}

/** Returns a lower bound of the text's tokens: 0 for a short text. Throws ContextError once it exceeds `budget`. */
async function tokensOf(text: string, budget: number, { tokenizer, contextLength }: Model): Promise<number> {
  if (tokenizer === undefined || text.length <= TURN) return 0
  let tokens = 0
  for (let at = 0; at < text.length; at += TURN) {
    const { length } = tokenizer.encode(text.slice(at, at + TURN), { specialTokens: false })
    tokens += Math.max(0, length - PER_CUT)
    if (tokens > budget) throw contextError(contextLength!, 'more in the prompt')
    await new Promise((resolve) => setTimeout(resolve))
  }
  return tokens
}

function checkWords(text: string, param: string): void {
  if (text.length <= MAX_WORD) return
  for (const { 0: run } of text.matchAll(/\s+|\p{P}+|[^\s\p{P}]+/gu)) {
    if (run.length > MAX_WORD) throw tooLong(`a word has more than ${MAX_WORD} characters`, param)
  }
}

function tooLong(what: string, param: string): HttpError {
  return invalid(param, what, 'context_length_exceeded')
}
