// /v1/chat/completions and /v1/completions: fields → options of `generate`, and its results → OpenAI's objects.

import type { AdapterSession } from '../api/session.js'
import { requireTokenizer } from '../model/model-folder.js'
import type { AdapterChoice } from '../run/adapters/choice.js'
import { floatsOf } from '../run/feeds.js'
import { scoreTokens } from '../run/generate/next-token.js'
import type {
  GenerateEvents,
  GenerateOptions,
  GenerateResult,
  Prompt,
  TokenPrompt,
  TokenScore,
} from '../run/session.js'
import { seconds } from './adapters.js'
import type { Fields } from './fields.js'
import { type Events, HttpError, invalid } from './http.js'
import { readMessages } from './messages.js'
import { type AnswerPart, AnswerReader } from './tool-calls.js'

export interface TextRequest {
  readonly prompts: readonly Prompt[]
  readonly options: GenerateOptions
  readonly n: number
  readonly form: AnswerForm
  readonly tools: ToolRequest
  readonly echo: { readonly scores: number | undefined } | undefined
  readonly isStream: boolean
  readonly includesUsage: boolean
}

export interface ToolRequest {
  readonly choice: 'auto' | 'none' | 'required' | { readonly name: string }
  readonly isParallel: boolean
}

export function readerOf({ options: { tools }, tools: { isParallel } }: TextRequest): AnswerReader {
  return new AnswerReader(tools !== undefined, isParallel ? undefined : 1)
}

interface AnswerForm {
  readonly object: string
  readonly chunkObject: string
  readonly idPrefix: string
  choice(index: number, result: GenerateResult, reader: AnswerReader, prompt: PromptScores | undefined): object
  /** The choices of a chunk: what is new in a growing answer, with the scores of its tokens. */
  pieces(index: number, parts: readonly AnswerPart[], scores: readonly TokenScore[]): object[]
  end(index: number, result: GenerateResult, reader: AnswerReader): object
  start?(index: number): object
}

function sharedOptions(fields: Fields, maxTokens: number, tokens: unknown, fallback: number): GenerateOptions {
  const number = (name: string) => fields[name] as number | undefined
  const asked = (tokens as number | undefined) ?? Math.min(fallback, maxTokens)
  if (asked > maxTokens) {
    throw new HttpError(400, `At most ${maxTokens} new tokens can be asked for, not ${asked}`, { param: 'max_tokens' })
  }
  return {
    schema: schemaOf(fields.response_format as Fields | undefined),
    maxNewTokens: Math.max(1, asked),
    stop: fields.stop as string | string[] | undefined,
    seed: number('seed'),
    temperature: number('temperature'),
    // OpenAI accepts 0, which leaves only the likeliest token.
    ...(fields.top_p === 0 ? { topK: 1 } : { topP: number('top_p'), topK: topKOf(number('top_k')) }),
    minP: number('min_p'),
    repetitionPenalty: number('repetition_penalty'),
    presencePenalty: number('presence_penalty'),
    frequencyPenalty: number('frequency_penalty'),
    minNewTokens: number('min_tokens'),
    ignoreEos: fields.ignore_eos as boolean | undefined,
    stopTokenIds: fields.stop_token_ids as number[] | undefined,
    logitBias: fields.logit_bias as Record<number, number> | undefined,
  }
}

/** Clients of vLLM and OpenAI write -1 or 0 if all tokens may be chosen. */
function topKOf(topK: number | undefined): number | undefined {
  return topK === -1 || topK === 0 ? Number.POSITIVE_INFINITY : topK
}

function schemaOf(format: Fields | undefined): object | undefined {
  if (format?.type === 'json_object') return { type: 'object' }
  return format?.type === 'json_schema' ? (format.json_schema as { schema: object }).schema : undefined
}

function streaming(fields: Fields): Pick<TextRequest, 'isStream' | 'includesUsage' | 'n'> {
  const isStream = fields.stream === true
  if (!isStream && fields.stream_options !== undefined) {
    throw new HttpError(400, 'stream_options needs "stream": true', { param: 'stream_options' })
  }
  const { include_usage: includesUsage = false } = (fields.stream_options ?? {}) as { include_usage?: boolean }
  return { isStream, includesUsage, n: (fields.n as number | undefined) ?? 1 }
}

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
    echo: undefined,
    ...streaming(fields),
    form: chatForm(fields.logprobs === true),
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

function chatForm(hasScores: boolean): AnswerForm {
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

const COMPLETION_TOKENS = 16

export function completionRequest(fields: Fields, maxTokens: number): TextRequest {
  const prompt = fields.prompt as string | readonly string[] | readonly number[] | readonly (readonly number[])[]
  const isIds = Array.isArray(prompt) && typeof prompt[0] === 'number'
  const list = (typeof prompt === 'string' || isIds ? [prompt] : prompt) as readonly (string | readonly number[])[]
  if (list.length === 0) throw invalid('prompt', 'an empty list')
  const scores = fields.logprobs as number | undefined
  const isEcho = fields.echo === true
  const shared = streaming(fields)
  if (isEcho && (shared.isStream || shared.n > 1)) {
    throw new HttpError(400, 'echo works with one whole answer, not with stream or n', { param: 'echo' })
  }
  if (fields.max_tokens === 0 && !isEcho) throw invalid('max_tokens', '0 works with echo only')
  return {
    prompts: list.map((text) => (typeof text === 'string' ? text : { ids: text })),
    tools: { choice: 'none', isParallel: true },
    echo: isEcho ? { scores } : undefined,
    ...shared,
    form: completionForm(scores !== undefined, fields.max_tokens === 0),
    options: { ...sharedOptions(fields, maxTokens, fields.max_tokens, COMPLETION_TOKENS), logprobs: scores },
  }
}

function completionForm(hasScores: boolean, isPromptAlone: boolean): AnswerForm {
  return {
    object: 'text_completion',
    chunkObject: 'text_completion',
    idPrefix: 'cmpl-',
    choice(index, result, _, prompt) {
      const written = isPromptAlone ? [] : (result.logprobs ?? [])
      const text = `${prompt?.text ?? ''}${isPromptAlone ? '' : result.text}`
      const scores = [...(prompt?.scores ?? []), ...written]
      return { index, text, logprobs: hasScores ? completionScores(scores) : null, finish_reason: finishReason(result) }
    },
    pieces(index, parts, scores) {
      const text = parts.map((part) => (part.type === 'text' ? part.text : '')).join('')
      if (text === '' && !(hasScores && scores.length > 0)) return []
      return [{ index, text, logprobs: hasScores ? completionScores(scores) : null, finish_reason: null }]
    },
    end: (index, result) => ({ index, text: '', logprobs: null, finish_reason: finishReason(result) }),
  }
}

/** Scores in the form of /v1/completions: lists side by side. The first token of a prompt has no score. */
function completionScores(scores: PromptScores['scores']) {
  let offset = 0
  return {
    tokens: scores.map(({ text }) => text),
    token_logprobs: scores.map(({ logprob }) => logprob),
    top_logprobs: scores.map(({ logprob, top }) => {
      return logprob === null ? null : Object.fromEntries(top.map((likely) => [likely.text, likely.logprob]))
    }),
    text_offset: scores.map(({ text }) => {
      const start = offset
      offset += text.length
      return start
    }),
  }
}

export function finishReason({ finish }: GenerateResult): 'stop' | 'length' {
  return finish === 'max-new-tokens' || finish === 'context' ? 'length' : 'stop'
}

/** A prompt as text, with a score for each token. The first has none. */
interface PromptScores {
  readonly text: string
  readonly scores: readonly { text: string; logprob: number | null; top: readonly Omit<TokenScore, 'id' | 'top'>[] }[]
}

/** The logarithms of the probabilities of a prompt's own tokens, which `echo` with `logprobs` asks for. */
async function scorePrompt(
  session: AdapterSession,
  prompt: string | TokenPrompt,
  adapter: AdapterChoice,
  count: number | undefined,
): Promise<PromptScores> {
  const tokenizer = requireTokenizer(session.model)
  const ids = typeof prompt === 'string' ? tokenizer.encode(prompt) : prompt.ids
  const name = (id: number) => tokenizer.decode([id], { specialTokens: true })
  const text = typeof prompt === 'string' ? prompt : tokenizer.decode([...ids], { specialTokens: true })
  if (count === undefined) return { text, scores: [] }
  const input_ids = { type: 'int64', data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] } as const
  const { logits } = await session.run({ input_ids }, { adapter, outputNames: ['logits'] })
  const [, sequence, vocabulary] = logits.dims
  const values = floatsOf(logits)
  const scores = ids.map((id, i) => {
    if (i === 0) return { text: name(id), logprob: null, top: [] }
    const start = (sequence - ids.length + i - 1) * vocabulary
    const { chosen, top } = scoreTokens(values.subarray(start, start + vocabulary), id, count)
    const named = top.map((likely) => ({ text: name(likely.id), logprob: likely.logprob }))
    return { text: name(id), logprob: chosen.logprob, top: named }
  })
  return { text, scores }
}

export type OnText = NonNullable<GenerateEvents['text']>

export interface AnswerOptions {
  readonly fields: Fields
  readonly adapter: AdapterChoice
  readonly model: string
  readonly events?: Events | undefined
  /** Writes the texts: `n` for each prompt, one prompt after the other. */
  generate(onText: OnText): Promise<GenerateResult[]>
}

/** Runs a request. Its events are sent while it runs; the whole answer is returned too. */
export async function answer(
  session: AdapterSession,
  request: TextRequest,
  { adapter, model, events, generate }: AnswerOptions,
): Promise<{ body: object; promptTokens: number; cachedTokens: number; newTokens: number }> {
  const { prompts, n, form, echo, includesUsage } = request
  const created = seconds()
  const id = `${form.idPrefix}${crypto.randomUUID()}`
  const event = (choices: object[], usage?: object) =>
    events?.send({
      id,
      object: form.chunkObject,
      created,
      model,
      choices,
      ...(includesUsage && { usage: usage ?? null }),
    })
  const rows = Array.from({ length: n * prompts.length }, () => {
    return { reader: readerOf(request), scored: 0, hasBegun: false }
  })
  const send = (index: number, parts: readonly AnswerPart[], scores: readonly TokenScore[]) => {
    const row = rows[index]
    row.scored += scores.length
    if (events === undefined) return
    if (!row.hasBegun && form.start !== undefined) event([form.start(index)])
    row.hasBegun = true
    for (const choice of form.pieces(index, parts, scores)) event([choice])
  }
  const results = await generate((piece, index, scores) => send(index, rows[index].reader.read(piece), scores))
  for (const [i, result] of results.entries()) {
    // The last piece may be large.
    await events?.room()
    send(i, rows[i].reader.end(result.text), result.logprobs?.slice(rows[i].scored) ?? [])
    if (events !== undefined) event([form.end(i, result, rows[i].reader)])
  }
  // Only /v1/completions has `echo`, and its prompts are texts, not chats.
  const texts = prompts as readonly (string | TokenPrompt)[]
  const echoed = echo && (await Promise.all(texts.map((text) => scorePrompt(session, text, adapter, echo.scores))))
  const ofPrompts = results.filter((_, i) => i % n === 0)
  const promptTokens = ofPrompts.reduce((sum, result) => sum + result.promptTokens, 0)
  const cachedTokens = ofPrompts.reduce((sum, result) => sum + result.cachedTokens, 0)
  const newTokens = results.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0)
  const usage = {
    prompt_tokens: promptTokens,
    completion_tokens: newTokens,
    total_tokens: promptTokens + newTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  }
  if (includesUsage) event([], usage)
  const choices = results.map((result, i) => form.choice(i, result, rows[i].reader, echoed?.[i]))
  return { body: { id, object: form.object, created, model, choices, usage }, promptTokens, cachedTokens, newTokens }
}
