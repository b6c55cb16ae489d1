// Calls as Python writes them, in a list: of Llama 3.2 and 4, whose answer is the list, and of LFM2, which has marks
// around it.

import { isObject, jsonIn } from '../../../core/base/options.js'
import type { CallForm, FunctionCall } from './call.js'
import { WORDS } from './gemma.js'
import { grammarOf, READ } from './grammar.js'
import type { CallSink, GrowingText, Reading } from './growing-text.js'

function write(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value)
  if (Array.isArray(value)) return `[${value.map(write).join(', ')}]`
  if (isObject(value)) {
    return `{${Object.entries(value)
      .map(([key, item]) => `${JSON.stringify(key)}: ${write(item)}`)
      .join(', ')}}`
  }
  return value === null ? 'None' : value === true ? 'True' : value === false ? 'False' : JSON.stringify(value)
}

const callText = ({ name, arguments: args }: FunctionCall) =>
  `${name}(${Object.entries(args)
    .map(([key, value]) => `${key}=${write(value)}`)
    .join(', ')})`

const listText = (calls: readonly FunctionCall[]) => `[${calls.map(callText).join(', ')}]`

const tagOf =
  (form: CallForm['name']): CallForm['tag'] =>
  (name, schema) => ({
    begin: `${name}(`,
    content: {
      type: 'grammar',
      grammar: grammarOf(schema, {
        ...{ form, write },
        text: '"\\"" textchar* "\\""',
        more: ['textchar ::= [^"\\\\\\n] | "\\\\" ["\\\\nt]'],
        key: (key, depth) => (depth === 0 ? `${key}=` : `${JSON.stringify(key)}: `),
        separator: ', ',
        anyKey: (depth) => (depth === 0 ? '[a-zA-Z_] [a-zA-Z0-9_]* "="' : 'text ": "'),
        isBare: true,
      }),
    },
    end: ')',
  })

export const PYTHONIC: CallForm = {
  name: 'pythonic',
  keywords: READ,
  marks: /\[func_name\d?\(/,
  opens: [],
  tokens: ['<|python_start|>', '<|python_end|>'],
  list: { begin: '[', separator: ', ', end: ']' },
  write: listText,
  *read(text, sink) {
    yield* text.spaces()
    yield* text.take('<|python_start|>')
    yield* text.spaces()
    if ((yield* text.take('[')) === undefined) return false
    const calls = yield* readCalls(text)
    if (calls === undefined || calls.length === 0) return false
    yield* text.spaces()
    yield* text.take('<|python_end|>')
    yield* text.spaces()
    // A list with words after it is no list of calls.
    if ((yield* text.peek()) !== '') return false
    tell(calls, sink)
    return true
  },
  tag: tagOf('pythonic'),
}

const [OPEN, CLOSE] = ['<|tool_call_start|>', '<|tool_call_end|>']

export const LFM2: CallForm = {
  name: 'lfm2',
  keywords: READ,
  marks: /<\|tool_(call|list)_start\|>|List of tools: \[/,
  opens: [OPEN],
  tokens: [OPEN, CLOSE],
  list: { begin: `${OPEN}[`, separator: ', ', end: `]${CLOSE}` },
  write: (calls) => `${OPEN}${listText(calls)}${CLOSE}`,
  *read(text, sink) {
    yield* text.spaces()
    if ((yield* text.take('[')) === undefined) return false
    yield* text.spaces()
    // Its models write JSON there too.
    const isJson = (yield* text.peek()) === '{'
    const calls = isJson ? undefined : yield* readCalls(text)
    if (!isJson && calls === undefined) return false
    if (isJson && !(yield* text.calls(sink))) return false
    tell(calls ?? [], sink)
    yield* text.spaces()
    yield* text.take(CLOSE)
    return true
  },
  tag: tagOf('lfm2'),
}

function tell(calls: readonly FunctionCall[], sink: CallSink): void {
  for (const { name, arguments: args } of calls) {
    sink.start(name)
    sink.argue(JSON.stringify(args))
  }
}

/** Reads calls up to the `]` that ends their list. */
function* readCalls(text: GrowingText): Reading<FunctionCall[] | undefined> {
  const calls: FunctionCall[] = []
  for (;;) {
    yield* text.spaces()
    if ((yield* text.take(']')) !== undefined) return calls
    const name = (yield* text.while(/[^()[\]{},='"<>\n]/)).trim()
    if (name === '' || (yield* text.take('(')) === undefined) return undefined
    const args: [string, unknown][] = []
    for (;;) {
      yield* text.spaces()
      if ((yield* text.take(')')) !== undefined) break
      const key = yield* text.while(/[\p{L}\p{N}_]/u)
      yield* text.spaces()
      if (key === '' || (yield* text.take('=')) === undefined) return undefined
      const value = yield* readValue(text)
      if (value === undefined) return undefined
      args.push([key, value])
      yield* text.spaces()
      if ((yield* text.take(',')) === undefined && (yield* text.peek()) !== ')') return undefined
    }
    calls.push({ name, arguments: Object.fromEntries(args) })
    yield* text.spaces()
    if ((yield* text.take(',')) === undefined && (yield* text.peek()) !== ']') return undefined
  }
}

const ENDS: Readonly<Record<string, string>> = { '[': ']', '(': ')', '{': '}' }

function* readValue(text: GrowingText): Reading<unknown> {
  yield* text.spaces()
  const first = yield* text.peek()
  if (first === '"' || first === "'") return yield* readString(text, first)
  const end = ENDS[first]
  if (end === undefined) {
    const word = yield* text.while(/[\w.+-]/)
    return WORDS.has(word) ? WORDS.get(word) : jsonIn(word)
  }
  text.at++
  const items: unknown[] = []
  for (;;) {
    yield* text.spaces()
    if ((yield* text.take(end)) !== undefined) {
      return end === '}' ? Object.fromEntries(items as [string, unknown][]) : items
    }
    let item = yield* readValue(text)
    if (end === '}') {
      yield* text.spaces()
      if (typeof item !== 'string' || (yield* text.take(':')) === undefined) return undefined
      const value = yield* readValue(text)
      item = value === undefined ? undefined : [item, value]
    }
    if (item === undefined) return undefined
    items.push(item)
    yield* text.spaces()
    if ((yield* text.take(',')) === undefined && (yield* text.peek()) !== end) return undefined
  }
}

const ESCAPES: Readonly<Record<string, string>> = {
  ...{ n: '\n', t: '\t', r: '\r', b: '\b', f: '\f', '\\': '\\', '"': '"', "'": "'", '/': '/', '\n': '' },
}

/** Quotes that a template did not escape belong to the text: its end has a comma, a colon or a bracket after it. */
function* readString(text: GrowingText, quote: string): Reading<string | undefined> {
  text.at++
  for (let value = ''; ; ) {
    const letter = yield* text.peek()
    if (letter === '') return undefined
    text.at++
    if (letter === quote) {
      const after = text.at
      yield* text.spaces()
      const next = yield* text.peek()
      text.at = after
      if (/^[,)\]}:]?$/.test(next)) return value
      value += letter
    } else if (letter === '\\') {
      const code = yield* text.peek()
      text.at++
      const length = code === 'u' ? 4 : code === 'x' ? 2 : 0
      if (length === 0) value += ESCAPES[code] ?? `\\${code}`
      else {
        while (text.text.length < text.at + length && !text.hasEnded) yield
        const digits = text.text.slice(text.at, text.at + length)
        text.at += length
        value += String.fromCharCode(Number.parseInt(digits, 16))
      }
    } else value += letter
  }
}
