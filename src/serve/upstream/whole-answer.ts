// Puts the pieces of a streamed chat together.

import { isObject, jsonIn } from '../../core/base/options.js'

interface Chunk {
  readonly choices?: readonly {
    readonly index: number
    readonly delta?: { readonly content?: string; readonly tool_calls?: readonly CallPart[] }
    readonly finish_reason?: string | null
  }[]
  readonly usage?: object | null
}

interface CallPart {
  readonly index: number
  readonly id?: string
  readonly function?: { readonly name?: string; readonly arguments?: string }
}

/** The first choice of an answer: JSON, or a stream of events put together. */
export function wholeAnswer(text: string): Readonly<Record<string, unknown>> | undefined {
  const json = jsonIn(text)
  if (isObject(json)) return json
  const chunks = [...text.matchAll(/^data: (\{.*\})\r?$/gm)].map(([, line]) => jsonIn(line)).filter(isObject) as Chunk[]
  let content = ''
  let finish: string | null | undefined
  const calls: { id?: string | undefined; type: 'function'; function: { name: string; arguments: string } }[] = []
  for (const { delta, finish_reason } of chunks.flatMap(({ choices = [] }) => choices.filter((c) => c.index === 0))) {
    content += delta?.content ?? ''
    finish = finish_reason ?? finish
    for (const { index, id, function: part } of delta?.tool_calls ?? []) {
      calls[index] ??= { id, type: 'function', function: { name: '', arguments: '' } }
      calls[index].function.name += part?.name ?? ''
      calls[index].function.arguments += part?.arguments ?? ''
    }
  }
  // Without an end it broke off.
  if (!finish) return undefined
  const message = { role: 'assistant', content, ...(calls.length > 0 && { tool_calls: calls }) }
  const usage = chunks.findLast((chunk) => isObject(chunk.usage))?.usage
  return { choices: [{ index: 0, message, finish_reason: finish }], usage }
}
