// Reads a text that a model writes as an answer: words, and calls of functions in Hermes' and Qwen's form,
// <tool_call>{"name", "arguments"}</tool_call>, or in Llama 3's, one JSON object with name and parameters. Anything
// else counts as words.

import { jsonIn, objectOf } from '../../core/base/options.js'

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

const OPEN = '<tool_call>'
const CLOSE = '</tool_call>'
const PYTHON_TAG = '<|python_tag|>'
const NAME = /"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*/.source
const HERMES_HEAD = new RegExp(`^${OPEN}\\s*\\{\\s*${NAME}"arguments"\\s*:\\s*(?=\\{)`)
const LLAMA_HEAD = new RegExp(`^\\s*(?:<\\|python_tag\\|>)?\\s*\\{\\s*${NAME}"parameters"\\s*:\\s*(?=\\{)`)

/** Characters of a growing call in which its name is looked for. A later name is read when the call is whole. */
const HEAD_LENGTH = 1024

type State = 'plain' | 'start' | 'words' | 'opened' | 'arguments' | 'closing' | 'over'

/** Reads an answer while it grows, each character once. */
export class AnswerReader {
  content = ''
  /** The calls of the answer. The arguments of the last one may still grow. */
  readonly calls: { id: string; type: 'function'; function: { name: string; arguments: string } }[] = []
  #length = 0
  #state: State
  /** Text that may turn out to be words or part of a call, depending on what follows. */
  #held = ''
  /** How many characters of the held text were searched for what ends the present state. */
  #searched = 0
  /** Spaces after the words. They are left out before a call, and at the end of an answer with calls. */
  #spaces = ''
  /** How many calls were found, even those above `most`. */
  #found = 0
  #isLlama = false
  #depth = 0
  #isString = false
  /** The first </tool_call> in arguments whose braces are not closed yet. It ends them if they never are. */
  #closed: number | undefined
  #parts: AnswerPart[] = []

  /** @param most the largest number of calls. Later ones are left out. */
  constructor(
    usesTools: boolean,
    private readonly most = Number.POSITIVE_INFINITY,
  ) {
    this.#state = usesTools ? 'start' : 'plain'
  }

  /** Returns what is new and certain with the next piece. */
  read(piece: string, hasEnded = false): AnswerPart[] {
    this.#length += piece.length
    this.#held += piece
    this.#parts = []
    while (this.#step(hasEnded)) {}
    if (hasEnded && this.calls.length === 0) this.#say(this.#spaces)
    return this.#parts
  }

  /** Returns the rest of the answer, whose whole text is `text`. */
  end(text: string): AnswerPart[] {
    return this.read(text.slice(this.#length), true)
  }

  /** Returns true if the rest of the held text can be read now. */
  #step(hasEnded: boolean): boolean {
    if (this.#state === 'start') return this.#readStart(hasEnded)
    if (this.#state === 'words') return this.#readWords(hasEnded)
    if (this.#state === 'opened') return this.#readOpened(hasEnded)
    if (this.#state === 'arguments') return this.#readArguments(hasEnded)
    if (this.#state === 'closing') {
      const closed = this.#held.indexOf(CLOSE)
      if (closed >= 0) return this.#go('words', closed + CLOSE.length)
      this.#held = this.#held.slice(1 - CLOSE.length)
      return false
    }
    if (this.#state === 'plain') this.#say(this.#held)
    this.#held = ''
    return false
  }

  /** Drops `length` characters of the held text, and goes into another state. */
  #go(state: State, length: number): true {
    this.#held = this.#held.slice(length)
    this.#searched = 0
    this.#state = state
    return true
  }

  /** A call in Llama's form is the whole answer. */
  #readStart(hasEnded: boolean): boolean {
    if (!hasEnded && this.#searched > HEAD_LENGTH) return false
    this.#isLlama = this.#readHead(LLAMA_HEAD)
    if (this.#isLlama) return true
    const begin = this.#held.trimStart().slice(0, PYTHON_TAG.length)
    if (!hasEnded && (begin.startsWith('{') || PYTHON_TAG.startsWith(begin))) {
      this.#searched = this.#held.length
      return false
    }
    const isCall = hasEnded && this.#readWhole(this.#held.replace(PYTHON_TAG, ''), 'parameters')
    return this.#go(isCall ? 'over' : 'words', 0)
  }

  #readWords(hasEnded: boolean): boolean {
    const opened = this.#held.indexOf(OPEN)
    const all = opened < 0 ? this.#held.length : opened
    let waiting = opened < 0 && !hasEnded ? OPEN.length - 1 : 0
    while (waiting > 0 && !this.#held.endsWith(OPEN.slice(0, waiting))) waiting--
    const text = this.#held.slice(0, all - waiting)
    this.#sayWords(text)
    this.#go(opened < 0 ? 'words' : 'opened', text.length)
    return opened >= 0
  }

  #readOpened(hasEnded: boolean): boolean {
    if (this.#searched < HEAD_LENGTH && this.#readHead(HERMES_HEAD)) return true
    const closed = this.#held.indexOf(CLOSE, this.#searched)
    if (closed < 0 && !hasEnded) {
      this.#searched = Math.max(0, this.#held.length - CLOSE.length)
      return false
    }
    const length = closed < 0 ? this.#held.length : closed + CLOSE.length
    const isCall = closed >= 0 && this.#readWhole(this.#held.slice(OPEN.length, closed), 'arguments')
    if (!isCall) this.#sayWords(this.#held.slice(0, length))
    return this.#go('words', length)
  }

  #readArguments(hasEnded: boolean): boolean {
    let at = this.#searched
    for (; at < this.#held.length; at++) {
      const letter = this.#held[at]
      if (letter === '<' && this.#closed === undefined) {
        const tag = this.#held.slice(at, at + CLOSE.length)
        if (tag === CLOSE) this.#closed = at
        else if (!hasEnded && CLOSE.startsWith(tag)) break
      }
      if (this.#isString && letter === '\\') at++
      else if (letter === '"') this.#isString = !this.#isString
      else if (!this.#isString && letter === '{') this.#depth++
      else if (!this.#isString && letter === '}' && --this.#depth === 0) {
        this.#argue(this.#held.slice(0, at + 1))
        return this.#go(this.#isLlama ? 'over' : 'closing', at + 1)
      }
    }
    const certain = this.#closed ?? Math.min(at, this.#held.length)
    this.#argue(this.#held.slice(0, certain))
    this.#held = this.#held.slice(certain)
    this.#searched = at - certain
    if (this.#closed === undefined) return false
    this.#closed = 0
    return hasEnded && this.#go(this.#isLlama ? 'over' : 'closing', 0)
  }

  /** Reads the name of a call whose arguments may still grow. */
  #readHead(head: RegExp): boolean {
    const [text, quoted] = head.exec(this.#held) ?? []
    const name = jsonIn(quoted)
    if (text === undefined || typeof name !== 'string') return false
    this.#call(name)
    this.#depth = 0
    this.#isString = false
    this.#closed = undefined
    return this.#go('arguments', text.length)
  }

  /** Reads a call that is one JSON object, in any order. */
  #readWhole(json: string, key: 'arguments' | 'parameters'): boolean {
    const { name, [key]: args = {} } = objectOf(jsonIn(json.trim()))
    if (typeof name !== 'string' || typeof args !== 'object' || args === null) return false
    this.#call(name)
    this.#argue(JSON.stringify(args))
    return true
  }

  #sayWords(text: string): void {
    const words = text.trimEnd()
    if (words !== '') {
      this.#say(this.#spaces + words)
      this.#spaces = ''
    }
    this.#spaces += text.slice(words.length)
  }

  #say(text: string): void {
    if (text === '') return
    this.content += text
    this.#parts.push({ type: 'text', text })
  }

  #call(name: string): void {
    this.#found++
    if (this.#found > this.most) return
    const id = `call_${crypto.randomUUID()}`
    this.#parts.push({ type: 'call', index: this.calls.length, id, name })
    this.calls.push({ id, type: 'function', function: { name, arguments: '' } })
  }

  #argue(text: string): void {
    const index = this.#found - 1
    if (text === '' || index >= this.most) return
    this.calls[index].function.arguments += text
    this.#parts.push({ type: 'arguments', index, text })
  }
}
