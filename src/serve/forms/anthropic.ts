// /v1/messages, Anthropic's form of a chat: fields → those of OpenAI's chat, and results → messages and events.

import type { AnswerPart } from '../../api/parts/entry.js'
import { isObject, jsonIn, objectOf } from '../../core/base/options.js'
import type { Fields } from '../fields.js'
import { invalid, type WireForm } from '../http.js'
import { chatRequest, continued } from './chat.js'
import { type AnswerWriter, type Asked, finishReason, type TextForm, type TextRequest } from './form.js'

const ERROR_TYPES: Readonly<Record<number, string>> = {
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  413: 'request_too_large',
  429: 'rate_limit_error',
  503: 'overloaded_error',
}

export const ANTHROPIC: WireForm = {
  error({ status, message }) {
    const type = ERROR_TYPES[status] ?? (status >= 500 ? 'api_error' : 'invalid_request_error')
    return { type: 'error', error: { type, message } }
  },
}

interface Card {
  readonly id: string
  readonly created: number
}

/** OpenAI's list of models, or one of them, in Anthropic's form. */
export function anthropicModels(listed: Card | { readonly data: readonly Card[] }): object {
  const card = ({ id, created }: Card) => {
    return { type: 'model', id, display_name: id, created_at: new Date(1000 * created).toISOString() }
  }
  if (!('data' in listed)) return card(listed)
  const { data } = listed
  return { data: data.map(card), has_more: false, first_id: data[0].id, last_id: data.at(-1)!.id }
}

function messageRequest(fields: Fields, maxTokens: number): TextRequest {
  const { system, messages, max_tokens, stop_sequences: stop, tools, tool_choice: choice, ...others } = fields
  const { thinking, output_config: output } = fields as { thinking?: Fields; output_config?: Fields }
  const { schema } = (output?.format ?? {}) as { readonly schema?: object }
  const { type, name, disable_parallel_tool_use: isSingle } = (choice ?? { type: 'auto' }) as Fields
  const described = (tools as readonly Fields[] | undefined)?.map((tool) => {
    const { name: called, description, input_schema: parameters, strict } = tool
    return { type: 'function', function: { name: called, description, parameters, strict } }
  })
  const first = system === undefined ? [] : [{ role: 'system', content: textOf(system, 'system') }]
  const chat = {
    ...others,
    messages: [...first, ...(messages as readonly Fields[]).flatMap(messagesOf)],
    max_completion_tokens: max_tokens,
    stop,
    tools: described,
    tool_choice: type === 'any' ? 'required' : type === 'tool' ? { type: 'function', function: { name } } : type,
    parallel_tool_calls: isSingle !== true,
    ...(schema && { response_format: { type: 'json_schema', json_schema: { schema } } }),
    ...(thinking && { chat_template_kwargs: { enable_thinking: thinking.type !== 'disabled' } }),
    reasoning_effort: output?.effort ?? undefined,
  }
  const request = continued(chatRequest(chat, maxTokens))
  if (/\s$/.test(request.options.answerStart ?? ''))
    throw invalid('messages', 'the beginning of the answer cannot end with white space')
  return request
}

/** Returns one OpenAI message for each tool result, and one for everything else. */
function messagesOf({ role, content }: Fields, i: number): Fields[] {
  if (typeof content === 'string') return [{ role, content }]
  const param = `messages[${i}].content`
  if (!Array.isArray(content)) throw invalid(param, 'a text, or a list of blocks')
  const results: Fields[] = []
  const parts: object[] = []
  const calls: object[] = []
  let thoughts = ''
  for (const [k, block] of content.entries()) {
    const at = `${param}[${k}]`
    const {
      type,
      text,
      source,
      id,
      name,
      input,
      tool_use_id: callId,
      content: result,
      thinking: thought,
    } = objectOf(block)
    if (type === 'text') parts.push({ type: 'text', text })
    else if (type === 'image' && isObject(source) && source.type === 'base64') {
      parts.push({ type: 'image_url', image_url: { url: `data:${source.media_type};base64,${source.data}` } })
    } else if (type === 'tool_use') {
      calls.push({ id, type: 'function', function: { name, arguments: JSON.stringify(input ?? {}) } })
    } else if (type === 'tool_result') {
      results.push({ role: 'tool', tool_call_id: callId, content: result === undefined ? '' : textOf(result, at) })
    } else if (type === 'thinking') thoughts += thought
    else if (type !== 'redacted_thinking') throw invalid(at, `blocks of type ${type} are not read here`)
  }
  const hasParts = parts.length > 0 || calls.length > 0
  const rest = {
    ...{ role, content: parts.length > 0 ? parts : null },
    ...(calls.length > 0 && { tool_calls: calls }),
    ...(thoughts !== '' && { reasoning_content: thoughts }),
  }
  return [...results, ...(hasParts ? [rest] : [])]
}

function textOf(content: unknown, param: string): string {
  if (typeof content === 'string') return content
  const isText = (block: unknown): block is { text: string } => isObject(block) && typeof block.text === 'string'
  if (Array.isArray(content) && content.every(isText)) return content.map(({ text }) => text).join('\n')
  throw invalid(param, 'a text, or a list of blocks of text')
}

export const MESSAGES: TextForm = { read: messageRequest, write: messageWriter }

function messageWriter(_: TextRequest, { fields, model, readers: [reader], send }: Asked): AnswerWriter {
  const message = (content: readonly object[], usage: object, ending: object) => {
    const id = `msg_${crypto.randomUUID().replaceAll('-', '')}`
    return { id, type: 'message', role: 'assistant', model, content, ...ending, usage }
  }
  const event = (type: string, more: object = {}) => send?.({ type, ...more })
  let hasBegun = false
  let index = -1
  let open: AnswerPart['type'] | undefined
  const close = () => {
    if (open !== undefined) event('content_block_stop', { index })
    open = undefined
  }
  const begin = (type: AnswerPart['type'], block: object) => {
    close()
    open = type
    event('content_block_start', { index: ++index, content_block: block })
  }
  return {
    add(_, parts) {
      const none = { stop_reason: null, stop_sequence: null }
      if (!hasBegun) event('message_start', { message: message([], { input_tokens: 0, output_tokens: 0 }, none) })
      hasBegun = true
      for (const part of parts) {
        if (part.type === 'text') {
          if (open !== 'text') begin('text', { type: 'text', text: '' })
          event('content_block_delta', { index, delta: { type: 'text_delta', text: part.text } })
        } else if (part.type === 'call') begin('call', { type: 'tool_use', id: part.id, name: part.name, input: {} })
        else event('content_block_delta', { index, delta: { type: 'input_json_delta', partial_json: part.text } })
      }
    },
    end: close,
    body([result], { promptTokens, cachedTokens, newTokens }) {
      const usage = {
        input_tokens: promptTokens - cachedTokens,
        cache_read_input_tokens: cachedTokens,
        cache_creation_input_tokens: 0,
        output_tokens: newTokens,
      }
      // A chat may also end at the text that ends a turn.
      const stop = [fields.stop_sequences ?? []].flat().find((sequence) => sequence === result.stop) ?? null
      const reason = stop !== null ? 'stop_sequence' : reader.calls.length > 0 ? 'tool_use' : 'end_turn'
      const isCut = finishReason(result) === 'length'
      const ending = { stop_reason: isCut ? 'max_tokens' : reason, stop_sequence: stop }
      event('message_delta', { delta: ending, usage })
      event('message_stop')
      const content = [
        ...(reader.content === '' ? [] : [{ type: 'text', text: reader.content }]),
        ...reader.calls.map(({ id, function: { name, arguments: json } }) => {
          return { type: 'tool_use', id, name, input: jsonIn(json) ?? {} }
        }),
      ]
      return message(content, usage, ending)
    },
  }
}
