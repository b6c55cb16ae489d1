// /v1/chat/completions: fields → a request, which other forms of chats take too, and texts → OpenAI's choices.

import type { GenerateResult, TokenScore } from '../../api/index.js'
import type { AnswerReader } from '../../api/parts/entry.js'
import type { Fields } from '../fields.js'
import { HttpError } from '../http.js'
import { type ChoiceForm, choicesWriter } from './choices.js'
import { finishReason, sharedOptions, streaming, type TextForm, type TextRequest } from './form.js'
import { readMessages } from './messages.js'

/** @param name the field that holds the messages, for error messages */
export function chatRequest(fields: Fields, maxTokens: number, name = 'messages'): TextRequest {
  const { messages, images } = readMessages(fields.messages as readonly Fields[], name)
  if (fields.top_logprobs !== undefined && fields.logprobs !== true) {
    throw new HttpError(400, 'top_logprobs needs "logprobs": true', { param: 'top_logprobs' })
  }
  const choice = (fields.tool_choice ?? 'auto') as 'auto' | 'none' | 'required' | { function: { name: string } }
  const offered = (fields.tools ?? []) as readonly object[]
  const tools = choice === 'none' || offered.length === 0 ? undefined : offered
  if (offered.length === 0 && choice !== 'auto' && choice !== 'none') {
    throw new HttpError(400, 'tool_choice needs tools', { param: 'tool_choice' })
  }
  const effort = fields.reasoning_effort ?? (fields.reasoning as Fields | undefined)?.effort
  const asked = fields.max_completion_tokens ?? fields.max_tokens
  return {
    prompts: [messages],
    ...streaming(fields),
    tools: {
      choice: typeof choice === 'object' ? choice.function : choice,
      isParallel: fields.parallel_tool_calls !== false,
    },
    options: {
      ...sharedOptions(fields, maxTokens, asked, maxTokens),
      ...(tools !== undefined && { tools }),
      ...(images.length > 0 && { images }),
      logprobs: fields.logprobs === true ? ((fields.top_logprobs as number | undefined) ?? 0) : undefined,
      chatTemplateArgs: {
        ...(fields.chat_template_kwargs as Record<string, unknown> | undefined),
        ...(effort !== undefined && { reasoning_effort: effort }),
      },
    },
  }
}

export const CHAT: TextForm = {
  read: chatRequest,
  write: (request, asked) => choicesWriter(chatForm(asked.fields.logprobs === true), request, asked),
}

function chatForm(hasScores: boolean): ChoiceForm {
  const reason = (result: GenerateResult, { calls }: AnswerReader) =>
    calls.length > 0 && finishReason(result) === 'stop' ? 'tool_calls' : finishReason(result)
  const logprobs = (scores: readonly TokenScore[]) =>
    hasScores ? { content: scores.map(chatScore), refusal: null } : null
  return {
    object: 'chat.completion',
    chunkObject: 'chat.completion.chunk',
    idPrefix: 'chatcmpl-',
    choice(index, result, reader) {
      const { content, calls } = reader
      const message = {
        role: 'assistant',
        content: calls.length > 0 && content === '' ? null : content,
        refusal: null,
        ...(calls.length > 0 && { tool_calls: calls }),
      }
      return { index, message, logprobs: logprobs(result.logprobs ?? []), finish_reason: reason(result, reader) }
    },
    start: (index) => ({ index, delta: { role: 'assistant', content: '' }, logprobs: null, finish_reason: null }),
    pieces(index, parts, scores) {
      const deltas = parts.map((part) => {
        if (part.type === 'text') return { content: part.text }
        const called = part.type === 'call' ? { name: part.name, arguments: '' } : { arguments: part.text }
        const head = part.type === 'call' && { id: part.id, type: 'function' }
        return { tool_calls: [{ index: part.index, ...head, function: called }] }
      })
      if (deltas.length === 0 && hasScores && scores.length > 0) deltas.push({ content: '' })
      return deltas.map((delta, i) => {
        return { index, delta, logprobs: i === 0 ? logprobs(scores) : null, finish_reason: null }
      })
    },
    end: (index, result, reader) => ({ index, delta: {}, logprobs: null, finish_reason: reason(result, reader) }),
  }
}

function chatScore({ text, logprob, top }: TokenScore): object {
  const named = (token: string, score: number) => ({
    token,
    logprob: score,
    bytes: [...new TextEncoder().encode(token)],
  })
  return { ...named(text, logprob), top_logprobs: top.map((likely) => named(likely.text, likely.logprob)) }
}
