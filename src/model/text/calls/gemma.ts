// The forms of FunctionGemma and Gemma 4: bare keys, and texts between two marks, with nothing escaped.
// https://ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices

import { isObject, jsonIn } from '../../../core/base/options.js'
import type { CallForm, FunctionCall } from './call.js'
import { grammarOf, READ } from './grammar.js'
import type { GrowingText, Reading } from './growing-text.js'

function gemma(form: Pick<CallForm, 'name' | 'marks' | 'ends'>, open: string, close: string, quote: string): CallForm {
  const write = (value: unknown): string => {
    if (typeof value === 'string') return quote + value + quote
    if (Array.isArray(value)) return `[${value.map(write).join(',')}]`
    if (!isObject(value)) return JSON.stringify(value)
    const keys = Object.keys(value).sort(byName)
    return `{${keys.map((key) => `${key}:${write(value[key])}`).join(',')}}`
  }
  const callText = ({ name, arguments: args }: FunctionCall) => `${open}call:${name}${write(args)}${close}`
  return {
    ...form,
    opens: [open],
    keywords: READ,
    tokens: [open, close, quote],
    list: { begin: '', separator: '', end: '' },
    write: (calls) => calls.map(callText).join(''),
    *read(text, sink) {
      yield* text.spaces()
      if ((yield* text.take('call:')) === undefined) return false
      const name = yield* text.while(/[^{<\s]/)
      if (name === '' || (yield* text.peek()) !== '{') return false
      const args = yield* readValue(text, quote)
      if (!isObject(args)) return false
      sink.start(name)
      sink.argue(JSON.stringify(args))
      text.drop()
      yield* text.spaces()
      yield* text.take(close)
      return true
    },
    tag: (name, schema) => ({
      begin: `${open}call:${name}`,
      content: {
        type: 'grammar',
        grammar: grammarOf(schema, {
          form: form.name,
          write,
          sorts: byName,
          text: `${JSON.stringify(quote)} textchar* ${JSON.stringify(quote)}`,
          more: [`textchar ::= [^<] | "<" [^${quote[1]}]`],
          key: (name) => `${name}:`,
          separator: ',',
          anyKey: '[a-zA-Z_] [a-zA-Z0-9_]* ":"',
        }),
      },
      end: close,
    }),
  }
}

/** The order of Jinja's `dictsort`. */
const byName = (a: string, b: string) => (a.toLowerCase() < b.toLowerCase() ? -1 : 1)

/** Returns undefined if there is no value. */
function* readValue(text: GrowingText, quote: string): Reading<unknown> {
  yield* text.spaces()
  if ((yield* text.take(quote)) !== undefined) {
    // A text can contain the mark: its end has a comma or a bracket after it.
    for (let value = ''; ; value += quote) {
      const part = yield* text.until(quote)
      if (part === undefined) return undefined
      value += part
      if (/^[,}\]]?$/.test(yield* text.peek())) return value
    }
  }
  if ((yield* text.take('[')) !== undefined) {
    const items: unknown[] = []
    for (;;) {
      yield* text.spaces()
      if ((yield* text.take(']')) !== undefined) return items
      const item = yield* readValue(text, quote)
      if (item === undefined) return undefined
      items.push(item)
      yield* text.spaces()
      if ((yield* text.take(',')) === undefined && (yield* text.peek()) !== ']') return undefined
    }
  }
  if ((yield* text.take('{')) !== undefined) {
    const members: [string, unknown][] = []
    for (;;) {
      yield* text.spaces()
      if ((yield* text.take('}')) !== undefined) return Object.fromEntries(members)
      const isQuoted = (yield* text.take(quote)) !== undefined
      const key = yield* text.until(isQuoted ? `${quote}:` : ':')
      const value = key === undefined ? undefined : yield* readValue(text, quote)
      if (value === undefined) return undefined
      members.push([key!.trim(), value])
      yield* text.spaces()
      if ((yield* text.take(',')) === undefined && (yield* text.peek()) !== '}') return undefined
    }
  }
  const word = (yield* text.while(/[^,\]}<]/)).trim()
  if (word === '') return undefined
  return WORDS.has(word) ? WORDS.get(word) : (jsonIn(word) ?? word)
}

/** How Python writes values. */
export const WORDS: ReadonlyMap<string, unknown> = new Map<string, unknown>([
  ['True', true],
  ['False', false],
  ['None', null],
  ['null', null],
])

export const FUNCTION_GEMMA = gemma(
  { name: 'function-gemma', marks: /<start_function_call>/, ends: ['<start_function_response>'] },
  ...(['<start_function_call>', '<end_function_call>', '<escape>'] as const),
)

export const GEMMA_4 = gemma(
  { name: 'gemma-4', marks: /<\|tool_call>/, ends: ['<|tool_response>'] },
  ...(['<|tool_call>', '<tool_call|>', '<|"|>'] as const),
)
