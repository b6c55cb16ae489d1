// Reads a text that a model writes as an answer: words, and calls of functions in Hermes' and Qwen's form,
// <tool_call>{"name", "arguments"}</tool_call>, or in Llama 3's, one JSON object with name and parameters. What is in
// another form is words.

import { jsonIn, objectOf } from '../base/options.js'

/** A call, as OpenAI's answers hold it. `arguments` is JSON. */
export interface ToolCall {
  readonly id: string
  readonly type: 'function'
  readonly function: { readonly name: string; readonly arguments: string }
}

/** The new part of a growing answer. A call comes first with its name, and then with parts of its arguments. */
export type AnswerPart =
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'call'; readonly index: number; readonly id: string; readonly name: string }
  | { readonly type: 'arguments'; readonly index: number; readonly text: string }

interface FoundCall {
  readonly name: string
  readonly arguments: string
}

const OPEN = '<tool_call>'
const CLOSE = '</tool_call>'
const PYTHON_TAG = '<|python_tag|>'
const NAME = /"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*/.source
const HERMES_HEAD = new RegExp(`${OPEN}\\s*\\{\\s*${NAME}"arguments"\\s*:\\s*(?=\\{)`, 'y')
const LLAMA_HEAD = new RegExp(`\\s*(?:<\\|python_tag\\|>)?\\s*\\{\\s*${NAME}"parameters"\\s*:\\s*(?=\\{)`, 'y')

export class AnswerReader {
  readonly #ids: string[] = []
  #sentText = 0
  /** Characters of the arguments of each call that were sent. */
  readonly #sentArguments: number[] = []
  #text = ''
  #calls: readonly FoundCall[] = []

  /** @param most calls; those after it are left out */
  constructor(
    private readonly usesTools: boolean,
    private readonly most = Number.POSITIVE_INFINITY,
  ) {}

  /** The words of the answer. */
  get content(): string {
    return this.#text
  }

  get calls(): ToolCall[] {
    return this.#calls.map((call, i) => ({ id: this.#ids[i], type: 'function', function: { ...call } }))
  }

  /**
   * Returns what is new and certain.
   *
   * @param text the whole text so far
   */
  read(text: string, hasEnded: boolean): AnswerPart[] {
    const found = this.usesTools ? scan(text, hasEnded) : { content: text, calls: [] }
    this.#text = found.content
    this.#calls = found.calls.slice(0, this.most)
    const parts: AnswerPart[] = []
    if (this.#text.length > this.#sentText) parts.push({ type: 'text', text: this.#text.slice(this.#sentText) })
    this.#sentText = Math.max(this.#sentText, this.#text.length)
    for (const [index, { name, arguments: written }] of this.#calls.entries()) {
      if (index === this.#ids.length) {
        this.#ids.push(`call_${crypto.randomUUID()}`)
        this.#sentArguments.push(0)
        parts.push({ type: 'call', index, id: this.#ids[index], name })
      }
      const rest = written.slice(this.#sentArguments[index])
      if (rest !== '') parts.push({ type: 'arguments', index, text: rest })
      this.#sentArguments[index] += rest.length
    }
    return parts
  }
}

/** Finds the words and the calls of a text. Until it has ended, what may become a call is in neither. */
function scan(text: string, hasEnded: boolean): { content: string; calls: FoundCall[] } {
  const llama =
    callAt(text, 0, LLAMA_HEAD) ?? (hasEnded ? wholeCall(text.replace(PYTHON_TAG, ''), 'parameters') : undefined)
  if (llama !== undefined) return { content: '', calls: [llama] }
  const start = text.trimStart()
  const mayBeLlama = start.startsWith('{') || PYTHON_TAG.startsWith(start.slice(0, PYTHON_TAG.length))
  if (!hasEnded && mayBeLlama) return { content: '', calls: [] }
  const calls: FoundCall[] = []
  let content = ''
  for (let at = 0; ; ) {
    const opened = text.indexOf(OPEN, at)
    content += text.slice(at, opened < 0 ? undefined : opened)
    if (opened < 0) break
    const closed = text.indexOf(CLOSE, opened)
    const call = callAt(text, opened, HERMES_HEAD)
    const whole = closed < 0 ? undefined : wholeCall(text.slice(opened + OPEN.length, closed), 'arguments')
    if (call === undefined && closed < 0) {
      if (hasEnded) content += text.slice(opened)
      break
    }
    const found = call ?? whole
    if (found !== undefined) calls.push(found)
    const closing = call?.end === undefined ? closed : text.indexOf(CLOSE, call.end)
    if (found === undefined) content += text.slice(opened, closed + CLOSE.length)
    if (closing < 0) break
    at = closing + CLOSE.length
  }
  if (!hasEnded) return { content: certain(content), calls }
  return { content: calls.length > 0 ? content.trimEnd() : text, calls }
}

/** A call whose name is there, and whose arguments may still grow. */
function callAt(
  text: string,
  at: number,
  head: RegExp,
): (FoundCall & { readonly end: number | undefined }) | undefined {
  head.lastIndex = at
  const name = jsonIn(head.exec(text)?.[1])
  if (typeof name !== 'string') return undefined
  const start = head.lastIndex
  const end = endOfObject(text, start)
  const closed = text.indexOf(CLOSE, start)
  return { name, arguments: text.slice(start, end ?? (closed < 0 ? undefined : closed)), end }
}

/** A call that is one JSON object, in any order. */
function wholeCall(json: string, key: 'arguments' | 'parameters'): FoundCall | undefined {
  const { name, [key]: args = {} } = objectOf(jsonIn(json.trim()))
  if (typeof name !== 'string' || typeof args !== 'object' || args === null) return undefined
  return { name, arguments: JSON.stringify(args) }
}

/** The place after the JSON object that begins at `start`, or undefined if it is not closed. */
function endOfObject(text: string, start: number): number | undefined {
  let depth = 0
  let isString = false
  for (let i = start; i < text.length; i++) {
    const letter = text[i]
    if (isString && letter === '\\') i++
    else if (letter === '"') isString = !isString
    else if (!isString && letter === '{') depth++
    else if (!isString && letter === '}' && --depth === 0) return i + 1
  }
  return undefined
}

/** The part of words that cannot become a call. Spaces at its end wait, because none stand before a call. */
function certain(text: string): string {
  for (let length = Math.min(OPEN.length - 1, text.length); length > 0; length--) {
    if (text.endsWith(OPEN.slice(0, length))) return text.slice(0, -length).trimEnd()
  }
  return text.trimEnd()
}
