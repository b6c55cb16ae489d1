// /v1/responses, as Open Responses describes it: a text and calls of functions, whole or as events.

import type { GenerateResult, MessageOfParts } from '../../api/index.js'
import { resolveSampling, type ToolCall } from '../../api/parts/entry.js'
import { isObject } from '../../core/base/options.js'
import { seconds } from '../adapters.js'
import type { Fields } from '../fields.js'
import { invalid } from '../http.js'
import { chatRequest, chatScore } from './chat.js'
import { type AnswerWriter, type Asked, finishReason, type TextForm, type TextRequest } from './form.js'

/** Fields of a response → those of a chat. */
function responseRequest(fields: Fields, maxTokens: number): TextRequest {
  const { input, instructions, tools, text, max_output_tokens: asked, tool_choice: choice, ...others } = fields
  const { format, verbosity } = (text ?? {}) as { format?: Fields; verbosity?: string | null }
  const chat = {
    ...others,
    messages: messagesOf(itemsOf(input)),
    tools: (tools as readonly Fields[] | undefined)?.map(({ type, ...described }) => ({ type, function: described })),
    tool_choice: typeof choice === 'object' ? chosen(choice as Fields) : choice,
    max_completion_tokens: asked,
    verbosity: verbosity ?? undefined,
    ...(hasScores(fields) && { logprobs: true }),
    response_format: format?.type === 'json_schema' ? { type: format.type, json_schema: format } : format,
  }
  const request = chatRequest(chat, maxTokens, 'input')
  if (instructions === undefined) return request
  const [messages] = request.prompts as readonly MessageOfParts[][]
  return { ...request, prompts: [[{ role: 'system', content: instructions as string }, ...messages]] }
}

function chosen({ mode, tools, ...named }: Fields): Fields {
  if (named.type !== 'allowed_tools') return { type: 'function', function: named }
  const allowed = (tools as readonly Fields[]).map((tool) => ({ type: 'function', function: tool }))
  return { ...named, allowed_tools: { mode, tools: allowed } }
}

function hasScores({ top_logprobs: top, include }: Fields): boolean {
  return (
    top !== undefined || (include as readonly unknown[] | undefined)?.includes('message.output_text.logprobs') === true
  )
}

export function itemsOf(input: unknown): readonly Fields[] {
  return typeof input === 'string' ? [{ role: 'user', content: input }] : (input as readonly Fields[])
}

/** Items → messages. Consecutive calls become one message. */
function messagesOf(items: readonly Fields[]): Fields[] {
  const messages: Fields[] = []
  let calls: object[] | undefined
  for (const [i, item] of items.entries()) {
    const { type = 'message', role, content, call_id: id, name, arguments: json, output } = item
    if (type === 'reasoning') continue
    if (type === 'function_call') {
      if (calls === undefined) {
        calls = []
        const last = messages.at(-1)
        if (last?.role === 'assistant') messages[messages.length - 1] = { ...last, tool_calls: calls }
        else messages.push({ role: 'assistant', tool_calls: calls })
      }
      calls.push({ id, type: 'function', function: { name, arguments: json } })
      continue
    }
    calls = undefined
    if (type === 'message') messages.push({ role, content: Array.isArray(content) ? content.map(partOf) : content })
    else if (type === 'function_call_output') messages.push({ role: 'tool', tool_call_id: id, content: output })
    else throw invalid(`input[${i}]`, `items of type ${type} are not read here`)
  }
  return messages
}

function partOf(part: unknown): unknown {
  if (!isObject(part)) return part
  if (part.type === 'input_image') return { type: 'image_url', image_url: { url: part.image_url } }
  return part.type === 'input_text' || part.type === 'output_text' ? { type: 'text', text: part.text } : part
}

export const RESPONSES: TextForm = { read: responseRequest, write: responseWriter }

function responseWriter(
  request: TextRequest,
  { session, fields, model, readers: [reader], send }: Asked,
): AnswerWriter {
  const [id, messageId] = ['resp', 'msg'].map((kind) => `${kind}_${crypto.randomUUID()}`)
  const created = seconds()
  const { temperature, topP } = resolveSampling(request.options, session.model.generationConfig)
  const resource = (status: string, output: readonly object[], usage: object | null = null) => ({
    ...ECHOED,
    temperature,
    top_p: topP,
    ...Object.fromEntries(Object.entries(fields).filter(([name]) => Object.hasOwn(ECHOED, name))),
    ...(fields.tools !== undefined && { tools: (fields.tools as object[]).map((tool) => ({ ...TOOL, ...tool })) }),
    service_tier: 'default',
    id,
    object: 'response',
    created_at: created,
    completed_at: status === 'completed' ? seconds() : null,
    status,
    model,
    output,
    incomplete_details: status === 'incomplete' ? { reason: 'max_output_tokens' } : null,
    usage,
  })
  let sequence = 0
  const event = (type: string, more: object) => send?.({ type, sequence_number: sequence++, ...more })
  const part = (text: string, logprobs: readonly object[] = []) => ({
    type: 'output_text',
    text,
    annotations: [],
    logprobs,
  })
  const message = (status: string, content: readonly object[]) => {
    return { type: 'message', id: messageId, status, role: 'assistant', content }
  }
  const place = { item_id: messageId, output_index: 0, content_index: 0 }
  const output: object[] = []
  const all: object[] = []
  // Scores of tokens whose text is still held back.
  let waiting: object[] = []
  let isWriting = false
  let openCall: { readonly item_id: string; readonly output_index: number } | undefined
  let closedCalls = 0
  const itemOf = (id: string, { id: callId, function: called }: ToolCall, status: string) => {
    return { type: 'function_call', id, call_id: callId, ...called, status }
  }
  const close = (status: string) => {
    if (isWriting) {
      const written = part(reader.content, all)
      const item = message(status, [written])
      event('response.output_text.done', { ...place, text: reader.content, logprobs: all })
      event('response.content_part.done', { ...place, part: written })
      event('response.output_item.done', { output_index: 0, item })
      output.push(item)
      isWriting = false
    } else if (openCall !== undefined) {
      const call = reader.calls[closedCalls++]
      const { name, arguments: written } = call.function
      const item = itemOf(openCall.item_id, call, status)
      event('response.function_call_arguments.done', { ...openCall, name, arguments: written })
      event('response.output_item.done', { output_index: openCall.output_index, item })
      output.push(item)
      openCall = undefined
    }
  }
  const add: AnswerWriter['add'] = (_, parts, scores) => {
    const scored = hasScores(fields) ? scores.map(chatScore) : []
    all.push(...scored)
    waiting.push(...scored)
    if (sequence === 0) {
      event('response.created', { response: resource('in_progress', []) })
      event('response.in_progress', { response: resource('in_progress', []) })
    }
    for (const written of parts) {
      // Text after a call is left out, because no item would hold it.
      if (written.type === 'text' && (isWriting || (output.length === 0 && openCall === undefined))) {
        if (!isWriting) {
          event('response.output_item.added', { output_index: 0, item: message('in_progress', []) })
          event('response.content_part.added', { ...place, part: part('') })
        }
        isWriting = true
        event('response.output_text.delta', { ...place, delta: written.text, logprobs: waiting })
        waiting = []
      } else if (written.type === 'call') {
        close('completed')
        openCall = { item_id: `fc_${crypto.randomUUID()}`, output_index: output.length }
        const { id: callId, name } = written
        const call = { id: callId, type: 'function', function: { name, arguments: '' } } as const
        const item = itemOf(openCall.item_id, call, 'in_progress')
        event('response.output_item.added', { output_index: openCall.output_index, item })
      } else if (written.type === 'arguments') {
        event('response.function_call_arguments.delta', { ...openCall, delta: written.text })
      }
    }
  }
  const statusOf = (result: GenerateResult) => (finishReason(result) === 'length' ? 'incomplete' : 'completed')
  return {
    add,
    end: (_, result) => close(statusOf(result)),
    body([result], { promptTokens, cachedTokens, newTokens }) {
      const status = statusOf(result)
      const body = resource(status, output, {
        input_tokens: promptTokens,
        input_tokens_details: { cached_tokens: cachedTokens, cache_write_tokens: 0 },
        output_tokens: newTokens,
        output_tokens_details: { reasoning_tokens: 0 },
        total_tokens: promptTokens + newTokens,
      })
      event(`response.${status}`, { response: body })
      return body
    },
  }
}

/** Settings that an answer repeats. These are the defaults if the request leaves them out. */
const ECHOED = {
  background: false,
  error: null,
  frequency_penalty: 0,
  instructions: null,
  max_output_tokens: null,
  max_tool_calls: null,
  metadata: {},
  parallel_tool_calls: true,
  presence_penalty: 0,
  previous_response_id: null,
  prompt_cache_key: null,
  reasoning: null,
  safety_identifier: null,
  store: true,
  text: { format: { type: 'text' } },
  tool_choice: 'auto',
  tools: [],
  top_logprobs: 0,
  truncation: 'disabled',
  user: null,
}

const TOOL = { description: null, parameters: null, strict: null }
