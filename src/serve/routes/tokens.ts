// Texts and chats as tokens, and back.

import { requireTokenizer } from '../../api/parts/entry.js'
import { MESSAGES } from '../forms/anthropic.js'
import { CHAT } from '../forms/chat.js'
import { invalid } from '../http.js'
import { checkTexts } from '../lengths.js'
import type { Call } from '../route.js'
import type { Serving } from '../serving.js'
import { encodeChat } from './texts.js'

export async function countTokens(serving: Serving, call: Call): Promise<Response> {
  return Response.json({ input_tokens: (await encodeChat(serving, call, MESSAGES.read)).length })
}

export async function tokenize(serving: Serving, call: Call): Promise<Response> {
  const { prompt, messages, add_special_tokens: specialTokens = true, return_token_strs: hasTexts } = call.fields
  const { model } = serving.session
  const tokenizer = requireTokenizer(model)
  const isOne = (prompt === undefined) !== (messages === undefined)
  if (!isOne) throw invalid('prompt', 'give either prompt or messages')
  if (prompt !== undefined) checkTexts([prompt as string], 'prompt')
  const tokens = messages
    ? await encodeChat(serving, call, CHAT.read)
    : tokenizer.encode(prompt as string, { specialTokens: specialTokens as boolean })
  const texts = hasTexts ? tokens.map((id) => tokenizer.decode([id], { specialTokens: true })) : null
  const max_model_len = model.contextLength ?? null
  return Response.json({ count: tokens.length, max_model_len, tokens, token_strs: texts })
}

export function detokenize({ session: { model } }: Serving, { fields }: Call): Response {
  const prompt = requireTokenizer(model).decode(fields.tokens as number[], { specialTokens: true })
  return Response.json({ prompt })
}
