// Ollama's form of chats and texts: fields → those of OpenAI's chat, and results → lines of JSON.
// https://github.com/ollama/ollama/blob/main/docs/api.md

import type { GenerateResult, MessageOfParts, TokenScore } from '../../api/index.js'
import type { ToolCall } from '../../api/parts/entry.js'
import { isObject, jsonIn } from '../../core/base/options.js'
import { checkFields, type Fields, OLLAMA_OPTIONS } from '../fields.js'
import { invalid, type WireForm } from '../http.js'
import { chatRequest, chatScore, continued } from './chat.js'
import { type AnswerWriter, type Asked, finishReason, formatOf, type TextForm, type TextRequest } from './form.js'

export const OLLAMA: WireForm = { error: ({ message }) => ({ error: message }), isLines: true }

/** Texts, tools and the rest of a request, in OpenAI's fields. */
function sharedFields(fields: Fields): Fields {
  const { format, options = {}, think, stream = true, max_output_tokens: limit, ...others } = fields
  const { temperature, top_p, logprobs, top_logprobs } = others
  const checked = checkFields(options as Fields, OLLAMA_OPTIONS, 'options.')
  const { num_predict: most = limit, repeat_penalty, ...sampling } = checked as Record<string, number | undefined>
  const schema = typeof format === 'object' && { type: 'json_schema', json_schema: { schema: format } }
  return {
    ...{ temperature, top_p },
    ...sampling,
    ...{ stream, logprobs, top_logprobs, repetition_penalty: repeat_penalty },
    // 0, -1 and -2 are no limit.
    ...(Number(most) > 0 && { max_tokens: most }),
    ...(!!format && { response_format: schema || { type: 'json_object' } }),
    ...(think !== undefined && { chat_template_kwargs: { enable_thinking: think !== false } }),
    ...(typeof think === 'string' && { reasoning_effort: think }),
  }
}

/** A message with pictures beside its text, and arguments as objects. */
function messageOf({ content = '', images, tool_calls: calls, tool_name: name, thinking, ...rest }: Fields, i: number) {
  const param = `messages[${i}].tool_calls`
  if (calls != null && !(Array.isArray(calls) && calls.every((call) => isObject(call) && isObject(call.function))))
    throw invalid(param, 'expected a list of { function: { name, arguments } }')
  const called = (calls as readonly { id?: string; function: Fields }[] | null | undefined)?.map(
    ({ id = `call_${i}`, function: { name: asked, arguments: given = {} } }) => {
      return { id, type: 'function', function: { name: asked, arguments: JSON.stringify(given) } }
    },
  )
  return {
    ...rest,
    content: contentOf(content, images),
    ...(called && called.length > 0 && { tool_calls: called }),
    ...(name !== undefined && { name }),
    ...(thinking !== undefined && thinking !== '' && { reasoning_content: thinking }),
  }
}

function contentOf(content: unknown, images: unknown): unknown {
  if (!Array.isArray(images) || images.length === 0) return content
  const pictures = images.map((data) => {
    return { type: 'image_url', image_url: { url: /^data:/.test(data) ? data : `data:image/png;base64,${data}` } }
  })
  return [...pictures, { type: 'text', text: content }]
}

export const OLLAMA_CHAT: TextForm = {
  read({ messages, tools, tool_choice, ...fields }, maxTokens) {
    const chat = (messages as readonly Fields[]).map(messageOf)
    return continued(chatRequest({ ...sharedFields(fields), messages: chat, tools, tool_choice }, maxTokens))
  },
  write: (request, asked) => {
    return lineWriter(request, asked, (content, calls, first = 0) => {
      const called = calls.length > 0 && { tool_calls: calls.map((call, i) => callOf(call, first + i)) }
      return { message: { role: 'assistant', content, ...called } }
    })
  },
}

export const OLLAMA_TEXT: TextForm = {
  read({ prompt, system, images, raw, ...fields }, maxTokens) {
    const first = system === undefined || system === '' ? [] : [{ role: 'system', content: system }]
    const messages = [...first, { role: 'user', content: contentOf(prompt, images) }]
    const shared = sharedFields(fields)
    const request = chatRequest({ ...shared, messages }, maxTokens)
    return raw === true ? { ...request, prompts: [prompt as string], format: formatOf(shared) } : request
  },
  write: (request, asked) => lineWriter(request, asked, (response) => ({ response })),
}

function callOf({ id, function: { name, arguments: json } }: ToolCall, index: number): object {
  return { id, function: { index, name, arguments: jsonIn(json) ?? {} } }
}

/** @param written gives what a line says of a text and of calls that are whole, the first of which has this number */
function lineWriter(
  _: TextRequest,
  { fields, model, readers: [reader], send }: Asked,
  written: (text: string, calls: readonly ToolCall[], first?: number) => object,
): AnswerWriter {
  const startedAt = performance.now()
  let firstAt: number | undefined
  let sentCalls = 0
  const line = (more: object) => ({ model, created_at: new Date().toISOString(), ...more })
  const scored = (scores: readonly TokenScore[] = []) =>
    fields.logprobs === true && scores.length > 0 && { logprobs: scores.map(chatScore) }
  /** A call is sent as a whole: after it comes something else, or the end. */
  const sendCalls = (count: number) => {
    const calls = reader.calls.slice(sentCalls, count)
    if (calls.length > 0) send?.(line({ ...written('', calls, sentCalls), done: false }))
    sentCalls = Math.max(count, sentCalls)
  }
  return {
    add(_, parts, scores) {
      firstAt ??= performance.now()
      const text = parts.map((part) => (part.type === 'text' ? part.text : '')).join('')
      if (text !== '' || scored(scores)) send?.(line({ ...written(text, []), done: false, ...scored(scores) }))
      sendCalls(reader.calls.length - 1)
    },
    end: () => sendCalls(reader.calls.length),
    body([result]: readonly GenerateResult[], { promptTokens, newTokens }) {
      const endedAt = performance.now()
      const nanoseconds = (from: number, to: number) => Math.round(1e6 * (to - from))
      const ending = {
        done: true,
        done_reason: finishReason(result),
        total_duration: nanoseconds(startedAt, endedAt),
        load_duration: 0,
        prompt_eval_count: promptTokens,
        prompt_eval_duration: nanoseconds(startedAt, firstAt ?? endedAt),
        eval_count: newTokens,
        eval_duration: nanoseconds(firstAt ?? endedAt, endedAt),
      }
      send?.(line({ ...written('', []), ...ending }))
      return line({ ...written(reader.content, reader.calls), ...ending, ...scored(result.logprobs) })
    },
  }
}

/** What answers a request that only loads a model, which is loaded as long as the server runs. */
export function loadedLine(model: string, isChat: boolean): object {
  const said = isChat ? { message: { role: 'assistant', content: '' } satisfies MessageOfParts } : { response: '' }
  return { model, created_at: new Date().toISOString(), ...said, done: true, done_reason: 'load' }
}
