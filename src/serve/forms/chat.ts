// /v1/chat/completions: fields → a request, which other forms of chats take too, and texts → OpenAI's choices.

import type { GenerateResult, MessageOfParts, TokenScore } from '../../api/index.js'
import type { AnswerReader } from '../../api/parts/entry.js'
import type { Fields } from '../fields.js'
import { HttpError, invalid } from '../http.js'
import { type ChoiceForm, choicesWriter } from './choices.js'
import {
  finishReason,
  formatOf,
  sharedOptions,
  streaming,
  type TextForm,
  type TextRequest,
  TOKENS_OF_JSON,
} from './form.js'
import { readMessages } from './messages.js'

/** @param name the field that holds the messages, for error messages */
export function chatRequest(fields: Fields, maxTokens: number, name = 'messages'): TextRequest {
  const { messages, images } = readMessages(fields.messages as readonly Fields[], name)
  if (fields.top_logprobs !== undefined && fields.logprobs !== true) {
    throw new HttpError(400, 'top_logprobs needs "logprobs": true', { param: 'top_logprobs' })
  }
  const { choice, offered } = toolsOf(fields)
  const tools = choice === 'none' || offered.length === 0 ? undefined : offered
  if (offered.length === 0 && choice !== 'auto' && choice !== 'none') {
    throw new HttpError(400, 'tool_choice needs tools', { param: 'tool_choice' })
  }
  const effort = fields.reasoning_effort ?? (fields.reasoning as Fields | undefined)?.effort
  const asked = fields.max_completion_tokens ?? fields.max_tokens
  const format = formatOf(fields)
  const isJson = format !== undefined || choice === 'required' || typeof choice === 'object'
  return {
    prompts: [messages],
    ...streaming(fields),
    format,
    tools: {
      choice: typeof choice === 'object' ? choice.function : choice,
      isParallel: fields.parallel_tool_calls !== false,
    },
    options: {
      ...sharedOptions(fields, maxTokens, asked, isJson ? TOKENS_OF_JSON : maxTokens),
      ...(tools !== undefined && { tools }),
      ...(images.length > 0 && { images }),
      logprobs: fields.logprobs === true ? ((fields.top_logprobs as number | undefined) ?? 0) : undefined,
      chatTemplateArgs: {
        ...(fields.chat_template_kwargs as Record<string, unknown> | undefined),
        ...(effort !== undefined && { reasoning_effort: effort }),
        ...(fields.verbosity !== undefined && { verbosity: fields.verbosity }),
      },
    },
  }
}

type Tool = { readonly function: { readonly name: string } }
type Choice = 'auto' | 'none' | 'required' | Tool
type Allowed = { readonly allowed_tools: { readonly mode: 'auto' | 'required'; readonly tools: readonly Tool[] } }

/** Of the tools, the model sees those that `tool_choice` allows. */
function toolsOf({ tools = [], tool_choice: asked = 'auto' }: Fields): { choice: Choice; offered: readonly Tool[] } {
  const [choice, offered] = [asked as Choice | Allowed, tools as readonly Tool[]]
  if (typeof choice !== 'object' || !('allowed_tools' in choice)) return { choice, offered }
  const { mode, tools: allowed } = choice.allowed_tools
  const names = allowed.map((tool) => tool.function.name)
  const unknown = names.find((name) => !offered.some((tool) => tool.function.name === name))
  if (unknown !== undefined) throw invalid('tool_choice', `${JSON.stringify(unknown)} is not among the tools`)
  return { choice: mode, offered: offered.filter((tool) => names.includes(tool.function.name)) }
}

/**
 * If a chat ends with the beginning of an answer, the model goes on with it. A chat with pictures or calls in its last
 * message stays as it is.
 */
export function continued(request: TextRequest): TextRequest {
  const [messages] = request.prompts as readonly MessageOfParts[][]
  const { role, content, tool_calls: calls } = messages.at(-1) as MessageOfParts & { readonly tool_calls?: unknown }
  if (role !== 'assistant' || messages.length === 1 || calls !== undefined || typeof content !== 'string')
    return request
  const options = { ...request.options, answerStart: content === '' ? undefined : content }
  return { ...request, prompts: [messages.slice(0, -1)], options }
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

export function chatScore({ text, logprob, top }: TokenScore): object {
  const named = (token: string, score: number) => ({
    token,
    logprob: score,
    bytes: [...new TextEncoder().encode(token)],
  })
  return { ...named(text, logprob), top_logprobs: top.map((likely) => named(likely.text, likely.logprob)) }
}
