// recorded.jsonl: the answers of the old models.

import { createHash } from 'node:crypto'
import { orderedJson } from '../../../core/base/json-schema.js'
import { isObject } from '../../../core/base/options.js'
import type { Message, Origin, Request } from '../prompts.js'
import type { Item } from '../provider.js'

/** An answer of an old model, as recorded.jsonl has it. */
export interface Recorded {
  readonly key: string
  readonly model: string
  readonly origin: Origin | 'served'
  readonly where: string
  /** Who wrote the answer. Training refuses rows with a source until the provider's terms are read. */
  readonly source: { readonly provider: string; readonly model: string }
  readonly answer: Message
  /** `length`: the limit cut the answer, which then counts as unfinished and never as wrong. */
  readonly finish: string
  readonly cost: number
  /** Milliseconds; undefined for batches. */
  readonly ms?: number | undefined
  readonly logprobs?: unknown
  /** The request, if a client sent it to the server and `record` did not. */
  readonly request?: Request | undefined
  /** The answer of our own model to that request. */
  readonly ours?: Message | undefined
}

export const RECORDED = 'recorded.jsonl'

/** Fields of stored requests that are sent again. Others could cost more than their tokens. */
const SENT = ['tools', 'tool_choice', 'parallel_tool_calls', 'response_format', 'functions', 'stop', 'top_p']
/** The same prompt to the same model has the same key. */
export function keyOf(model: string, request: Request): string {
  const text = orderedJson([model, sentOf(request)])
  return createHash('sha256').update(text).digest('hex').slice(0, 32)
}

export function sentOf(request: Request): Request {
  const kept = SENT.flatMap((name) => (request[name] === undefined ? [] : [[name, request[name]] as const]))
  return { messages: request.messages, ...Object.fromEntries(kept) }
}

/** A line of recorded.jsonl; undefined if the answer has no message. */
export function recordedOf(
  { choices }: Item,
  about: Omit<Recorded, 'source' | 'answer' | 'finish' | 'logprobs'>,
  provider: string,
): Recorded | undefined {
  const [choice] = (Array.isArray(choices) ? choices : []) as Item[]
  if (!isObject(choice?.message)) return undefined
  const { message: answer, finish_reason: finish, logprobs } = choice
  const source = { provider, model: about.model }
  return { ...about, source, answer: answer as Message, finish: String(finish), logprobs }
}
