// Finds the calls of functions in what a model wrote: Hermes' and Qwen's form, <tool_call>{"name",
// "arguments"}</tool_call>, and Llama 3's, a single JSON object with name and parameters. A text in another form stays
// a text.

import { jsonIn, objectOf } from '../base/options.js'

/** A call, as OpenAI's answers hold it. `arguments` is JSON. */
export interface ToolCall {
  readonly id: string
  readonly type: 'function'
  readonly function: { readonly name: string; readonly arguments: string }
}

const OPEN = '<tool_call>'
const HERMES = /<tool_call>\s*(\{[\s\S]*?\})\s*<\/tool_call>/g
const PYTHON_TAG = '<|python_tag|>'

export function parseToolCalls(text: string): { content: string; calls: ToolCall[] } {
  const hermes = [...text.matchAll(HERMES)].map(([, json]) => callOf(json, 'arguments'))
  if (hermes.length > 0 && hermes.every((call) => call !== undefined)) {
    return { content: text.replace(HERMES, '').trim(), calls: hermes }
  }
  const llama = callOf(text.trim().replace(PYTHON_TAG, ''), 'parameters')
  return llama === undefined ? { content: text, calls: [] } : { content: '', calls: [llama] }
}

function callOf(json: string, key: 'arguments' | 'parameters'): ToolCall | undefined {
  const { name, [key]: args = {} } = objectOf(jsonIn(json))
  if (typeof name !== 'string' || typeof args !== 'object' || args === null) return undefined
  return { id: `call_${crypto.randomUUID()}`, type: 'function', function: { name, arguments: JSON.stringify(args) } }
}

/** The part of a growing text that is certain to be no call, and can be sent. */
export function certainText(text: string): string {
  const start = text.trimStart()
  if (start === '' || start.startsWith('{') || PYTHON_TAG.startsWith(start.slice(0, PYTHON_TAG.length))) return ''
  const opened = text.indexOf(OPEN)
  if (opened >= 0) return text.slice(0, opened)
  for (let length = Math.min(OPEN.length - 1, text.length); length > 0; length--) {
    if (text.endsWith(OPEN.slice(0, length))) return text.slice(0, -length)
  }
  return text
}
