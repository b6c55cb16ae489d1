// A text that grows while it is read. Readers are generators: they yield when a decision needs more text.

import { isObject, jsonIn } from '../../../core/base/options.js'

/** A function as a client describes it: in OpenAI's form, or bare. */
export interface FunctionTool {
  readonly name: string
  readonly description?: string | undefined
  /** A JSON schema of an object. */
  readonly parameters?: Readonly<Record<string, unknown>> | undefined
}

/** Gets the calls of an answer while they are read. */
export interface CallSink {
  /** The functions that are offered. Texts without types, as in XML, are read by their schemas. */
  readonly tools: readonly FunctionTool[]
  start(name: string): void
  /** Adds a part of the JSON of the last call's arguments. */
  argue(json: string): void
}

/** Returns a value after it had enough text. */
export type Reading<T> = Generator<void, T, void>

export class GrowingText {
  text = ''
  /** The index of the next character to read. */
  at = 0
  hasEnded = false

  add(piece: string): void {
    this.text += piece
  }

  /** Forgets the characters that were read. */
  drop(): void {
    this.text = this.text.slice(this.at)
    this.at = 0
  }

  get rest(): string {
    return this.text.slice(this.at)
  }

  /** Returns the next character, or '' at the end. */
  *peek(): Reading<string> {
    while (this.at >= this.text.length && !this.hasEnded) yield
    return this.text[this.at] ?? ''
  }

  *spaces(): Reading<void> {
    while (/^\s$/.test(yield* this.peek())) this.at++
  }

  /** Reads the first of `literals` that comes next, or returns undefined. Give longer ones first. */
  *take<L extends string>(...literals: readonly L[]): Reading<L | undefined> {
    for (const literal of literals) {
      for (;;) {
        const given = this.text.slice(this.at, this.at + literal.length)
        if (given === literal) {
          this.at += literal.length
          return literal
        }
        if (this.hasEnded || !literal.startsWith(given)) break
        yield
      }
    }
    return undefined
  }

  /** Reads up to the first of `literals` and past it. Returns undefined, and reads nothing, if none comes. */
  *until(...literals: readonly string[]): Reading<string | undefined> {
    const longest = Math.max(...literals.map(({ length }) => length))
    for (let from = this.at; ; ) {
      const found = literals.map((each) => [this.text.indexOf(each, from), each] as const).filter(([at]) => at >= 0)
      const [at, literal] = found.reduce((a, b) => (b[0] < a[0] ? b : a), found[0] ?? [-1, ''])
      if (at >= 0) {
        const before = this.text.slice(this.at, at)
        this.at = at + literal.length
        return before
      }
      if (this.hasEnded) return undefined
      from = Math.max(this.at, this.text.length - longest + 1)
      yield
    }
  }

  /** Reads what matches `pattern`, one character after the other. */
  *while(pattern: RegExp): Reading<string> {
    const from = this.at
    for (;;) {
      const next = yield* this.peek()
      if (next === '' || !pattern.test(next)) return this.text.slice(from, this.at)
      this.at++
    }
  }

  /**
   * Reads a JSON value as text. Returns undefined if the text ends within it.
   *
   * @param close ends a value whose brackets stay open, if it occurs in it
   * @param tell gets the value in parts, while it grows
   */
  *json(close?: string, tell?: (part: string) => void): Reading<string | undefined> {
    const first = yield* this.peek()
    if (!/["{[]/.test(first)) {
      const word = yield* this.while(/[\w.+-]/)
      tell?.(word)
      return word === '' ? undefined : word
    }
    const from = this.at
    let [at, told, depth] = [from, from, 0]
    let isString = false
    let closed: number | undefined
    const say = (end: number) => {
      if (end > told) tell?.(this.text.slice(told, end))
      told = Math.max(told, end)
    }
    for (; ; at++) {
      while (at >= this.text.length && !this.hasEnded) {
        say(closed ?? this.text.length - held(this.text, close))
        yield
      }
      const letter = this.text[at]
      if (letter === undefined) {
        this.at = closed ?? this.text.length
        say(this.at)
        return undefined
      }
      if (close !== undefined && closed === undefined && letter === close[0]) {
        while (this.text.length - at < close.length && !this.hasEnded && close.startsWith(this.text.slice(at))) {
          say(at)
          yield
        }
        if (this.text.startsWith(close, at)) closed = at
      }
      if (isString && letter === '\\') at++
      else if (letter === '"') isString = !isString
      else if (!isString && (letter === '{' || letter === '[')) depth++
      else if (!isString && (letter === '}' || letter === ']')) depth--
      if (depth > 0 || isString) continue
      this.at = at + 1
      say(this.at)
      return this.text.slice(from, this.at)
    }
  }

  /**
   * Reads an object with `name` and `arguments` or `parameters`, in any order, and tells its call. Arguments are told
   * while they grow if the name is known.
   *
   * @returns false if it is not a call
   */
  *call(sink: CallSink, close?: string): Reading<boolean> {
    if ((yield* this.take('{')) === undefined) return false
    let name: unknown
    let args: unknown
    for (let hasBegun = false; ; ) {
      yield* this.spaces()
      if ((yield* this.take('}')) !== undefined) break
      const key = jsonIn(yield* this.json())
      yield* this.spaces()
      if (typeof key !== 'string' || (yield* this.take(':')) === undefined) return hasBegun
      yield* this.spaces()
      const isArguments = key === 'arguments' || key === 'parameters'
      if (isArguments && typeof name === 'string' && (yield* this.peek()) === '{') {
        sink.start(name)
        hasBegun = true
        const whole = yield* this.json(close, (part) => sink.argue(part))
        if (whole === undefined) return true
      } else {
        const value = jsonIn(yield* this.json())
        if (value === undefined) return hasBegun
        if (key === 'name') name = value
        // Some models write the arguments as JSON inside of a string.
        if (isArguments) args = typeof value === 'string' ? jsonIn(value) : (value ?? undefined)
        if (isArguments && !isObject(args)) return hasBegun
      }
      yield* this.spaces()
      const isOver = (yield* this.take(',', '}')) !== ','
      if (isOver && hasBegun) return true
      if (isOver) break
    }
    if (typeof name !== 'string') return false
    sink.start(name)
    sink.argue(JSON.stringify(args ?? {}))
    return true
  }

  /** Reads a list of such objects, after its `[`. */
  *calls(sink: CallSink): Reading<boolean> {
    for (let count = 0; ; count++) {
      yield* this.spaces()
      if (!(yield* this.call(sink))) return count > 0
      yield* this.spaces()
      if ((yield* this.take(',')) !== undefined) continue
      yield* this.take(']')
      return true
    }
  }
}

/** How many characters at the end of a text may begin `literal`. */
export function held(text: string, literal: string | undefined): number {
  for (let length = Math.min((literal?.length ?? 0) - 1, text.length); length > 0; length--) {
    if (text.endsWith(literal!.slice(0, length))) return length
  }
  return 0
}
