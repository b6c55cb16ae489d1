// What the forms of texts share: a request for texts, the options of `generate` in it, and how an answer is written.

import type {
  AdapterChoice,
  AdapterSession,
  GenerateOptions,
  GenerateResult,
  Prompt,
  TokenScore,
} from '../../api/index.js'
import type { AnswerPart, AnswerReader } from '../../api/parts/entry.js'
import type { Fields } from '../fields.js'
import { HttpError } from '../http.js'

export interface TextRequest {
  readonly prompts: readonly Prompt[]
  readonly options: GenerateOptions
  readonly n: number
  readonly tools: ToolRequest
  /** What texts must fit. */
  readonly format: AnswerFormat | undefined
  readonly isStream: boolean
  readonly includesUsage: boolean
}

export interface AnswerFormat {
  readonly schema: object
  /** True if a keyword that texts cannot be kept to is an error. Otherwise finished texts are checked. */
  readonly isStrict: boolean
}

export interface ToolRequest {
  readonly choice: 'auto' | 'none' | 'required' | { readonly name: string }
  readonly isParallel: boolean
}

/** The form in which an API asks for texts and gets them. */
export interface TextForm {
  /** @throws HttpError for fields that do not go together */
  read(fields: Fields, maxTokens: number): TextRequest
  write(request: TextRequest, asked: Asked): AnswerWriter
}

export interface Asked {
  readonly session: AdapterSession
  readonly fields: Fields
  readonly adapter: AdapterChoice
  /** The name that the caller gave. */
  readonly model: string
  /** What was read of each text. */
  readonly readers: readonly AnswerReader[]
  /** Sends an event of a stream. */
  readonly send: ((event: object) => void) | undefined
}

export interface AnswerWriter {
  /** Takes what is new in a text, with the scores of its tokens. */
  add(index: number, parts: readonly AnswerPart[], scores: readonly TokenScore[]): void
  end(index: number, result: GenerateResult): void
  /** Returns the whole answer, after the last text has ended. */
  body(results: readonly GenerateResult[], usage: Usage): object | Promise<object>
}

export interface Usage {
  readonly promptTokens: number
  readonly cachedTokens: number
  readonly newTokens: number
}

/** @param tokens the field with the most new tokens; `fallback` counts if it is left out */
export function sharedOptions(fields: Fields, maxTokens: number, tokens: unknown, fallback: number): GenerateOptions {
  const number = (name: string) => fields[name] as number | undefined
  // Clients ask for thousands of tokens, whatever the context is. An answer that is cut says so.
  const most = Math.min((tokens as number | undefined) ?? fallback, maxTokens)
  return {
    maxNewTokens: Math.max(1, most),
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

/** New tokens of JSON if the caller names no limit: a small model may go on with it for ever. */
export const TOKENS_OF_JSON = 512

export function formatOf({ response_format: format }: Fields): AnswerFormat | undefined {
  const { type, json_schema: named } = (format ?? {}) as { type?: string; json_schema?: Fields }
  if (type === 'json_object') return { schema: { type: 'object' }, isStrict: true }
  if (type !== 'json_schema') return undefined
  return { schema: named!.schema as object, isStrict: named!.strict === true }
}

export function streaming(fields: Fields): Pick<TextRequest, 'isStream' | 'includesUsage' | 'n'> {
  const isStream = fields.stream === true
  if (!isStream && fields.stream_options !== undefined) {
    throw new HttpError(400, 'stream_options needs "stream": true', { param: 'stream_options' })
  }
  const { include_usage: includesUsage = false } = (fields.stream_options ?? {}) as { include_usage?: boolean }
  return { isStream, includesUsage, n: (fields.n as number | undefined) ?? 1 }
}

export function finishReason({ finish }: GenerateResult): 'stop' | 'length' {
  return finish === 'max-new-tokens' || finish === 'context' ? 'length' : 'stop'
}
