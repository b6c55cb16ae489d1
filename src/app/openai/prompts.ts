// Prompts: what an owner's files and stored chats ask, as requests that any server with OpenAI's API can answer.

import { orderedJson } from '../../core/base/json-schema.js'
import { isObject, jsonIn, objectOf } from '../../core/base/options.js'
import { itemsOf, type Known, placeOf } from './plan.js'
import { type Item, type Job, numberOr, type Provider, textOr } from './provider.js'

export type Message = Readonly<Record<string, unknown>> & { readonly role: string }

/** Where a prompt comes from, the most useful first. */
export const ORIGINS = ['held-out', 'traffic', 'training'] as const
export type Origin = (typeof ORIGINS)[number]

/** The body of a request, without the model and limits. */
export interface Request {
  readonly messages: readonly Message[]
  readonly [field: string]: unknown
}

export interface Prompt {
  readonly origin: Origin
  /** File and line, or the id of a stored chat. */
  readonly where: string
  readonly request: Request
  /** The right answer, if a file of the owner has it. */
  readonly wanted: Message | undefined
  /** The record of the file; graders read its fields. */
  readonly row: Item
  /** When it was asked, in seconds since 1970. */
  readonly askedAt?: number | undefined
}

const REQUEST_FIELDS = ['tools', 'tool_choice', 'parallel_tool_calls', 'response_format', 'functions'] as const

/** The request that a row of a training file teaches to answer; undefined for a row of another kind. */
export function promptOfRow(row: Item, origin: Origin, where: string, job: Job): Prompt | undefined {
  const { messages, input, preferred_output: preferred } = row
  const given = (isObject(input) ? input : row) as Item
  const all = (isObject(input) ? input.messages : messages) as Message[] | undefined
  if (!Array.isArray(all) || !all.every(isObject)) return undefined
  const last = all.at(-1)
  const isAnswered = last?.role === 'assistant'
  const asked = isAnswered ? all.slice(0, -1) : all
  if (asked.length === 0) return undefined
  const fields = REQUEST_FIELDS.flatMap((name) => (given[name] ? [[name, given[name]] as const] : []))
  const request = {
    messages: asked.map(({ weight: _, ...message }) => message as Message),
    ...(job.responseFormat && { response_format: job.responseFormat }),
    ...Object.fromEntries(fields),
  }
  const wanted = isAnswered ? last : Array.isArray(preferred) ? (preferred as Message[])[0] : undefined
  return { origin, where, request, wanted, row }
}

const LEFT_OUT = ['id', 'object', 'created', 'model', 'choices', 'usage', 'metadata', 'request_id']
const NOT_SENT = [...LEFT_OUT, 'input_user', 'service_tier', 'system_fingerprint']

/** The stored chats of a model. `wanted` is what the model answered, which is its answer and not the right one. */
export function trafficOf(
  provider: Provider,
  lists: Known['lists'],
  model?: string,
): (Prompt & { readonly model: string })[] {
  const route = provider.routes.find(({ name }) => name === 'messages')
  return itemsOf(provider, 'completions', lists).flatMap(({ ids, item }) => {
    const messages = route && lists.get(placeOf(route, ids))
    if (messages === undefined || messages.length === 0) return []
    if (model !== undefined && item.model !== model) return []
    const given = Object.entries(item).filter(([name, value]) => value !== null && !NOT_SENT.includes(name))
    const request = {
      messages: messages.map(({ id: _, content_parts, refusal: __, ...message }) => {
        const content = content_parts ?? message.content
        return { ...message, ...(content !== undefined && { content }) } as unknown as Message
      }),
      ...Object.fromEntries(given),
    }
    const [choice] = (item.choices ?? []) as { message?: Message }[]
    const about = { where: ids[0], row: item, askedAt: numberOr(item.created), model: String(item.model) }
    return [{ origin: 'traffic', request, wanted: choice?.message, ...about } as const]
  })
}

/** The text by which two prompts count as the same. */
export function lastUserText({ messages }: Request): string {
  const content = messages.findLast(({ role }) => role === 'user')?.content
  return typeof content === 'string' ? content.trim() : JSON.stringify(content ?? '')
}

/** The kind of a part of a message that is no text, such as image_url. */
export function foreignPart({ messages }: Request): string | undefined {
  const parts = messages.flatMap(({ content }) => (Array.isArray(content) ? (content as unknown[]) : []))
  const foreign = parts.find((part) => !isObject(part) || !['text', 'refusal'].includes(String(part.type)))
  return foreign === undefined ? undefined : isObject(foreign) ? String(foreign.type) : 'a part that is no object'
}

/** The answer of a message as text; calls as JSON. */
export function textOfMessage(message: Message): string {
  const { content } = message
  const calls = callsOf(message).map((call) => objectOf(objectOf(call).function))
  if (calls.length > 0) {
    const read = (args: unknown) => (typeof args === 'string' ? jsonIn(args) : args)
    return orderedJson(calls.map(({ name, arguments: args }) => ({ name, arguments: read(args) })))
  }
  if (typeof content === 'string') return content
  return (Array.isArray(content) ? content : []).map((part) => textOr(objectOf(part).text) ?? '').join('')
}

export const callsOf = ({ tool_calls: calls }: Message): readonly unknown[] => (Array.isArray(calls) ? calls : [])
