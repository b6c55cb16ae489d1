// A strict JSON reader (RFC 8259) for files from strangers. Objects become Maps, and a key that occurs twice is an
// error: JSON.parse would keep only the last one, and would turn `1.0` into an integer.

import { FormatError } from '../base/errors.js'

/** Maps keep the order of the text. */
export type JsonValue = string | number | boolean | null | JsonValue[] | JsonObject
export type JsonObject = Map<string, JsonValue>

/** Our formats nest at most five levels. Anything deeper than this limit is an attack on the stack. */
const MAX_DEPTH = 64

/** A value takes up to 300 bytes of memory, even if its text is short. A header has eight values for each tensor. */
const MAX_VALUES = 1 << 22

const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?/y
const NOT_FINITE = /NaN|-?Infinity/y
const WHOLE_NUMBER = /^[0-9]+$/
const SPACE = /[ \t\n\r]*/y
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are exactly the characters to find
const PLAIN = /[^"\\\u0000-\u001f]*/y
const ESCAPE = /\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})/y
const LONE_SURROGATE = /\p{Surrogate}/u

export interface JsonOptions {
  /** Every number must be spelled as digits alone: no sign, fraction or exponent. */
  wholeNumbers?: boolean
  /** Also accepts NaN, Infinity and −Infinity, which Python's json writes, and a byte order mark, which editors add. */
  isLoose?: boolean
}

/**
 * Throws FormatError when the bytes are not UTF-8 or not JSON, a key occurs twice, a string holds half a surrogate
 * pair, nesting is deeper than 64, or there are more than 4 million values. `where` names the file.
 */
export function parseJson(bytes: Uint8Array, where: string, options: JsonOptions = {}): JsonValue {
  const text = decodeText(bytes, where)
  return new Parser(options.isLoose ? text.replace(/^\uFEFF/, '') : text, where, options).document()
}

/** Reads an object and passes its entries on, so that only what the caller keeps of a long header stays in memory. */
export function parseJsonEntries(
  bytes: Uint8Array,
  where: string,
  onEntry: (key: string, value: JsonValue) => void,
  options: JsonOptions = {},
): void {
  new Parser(decodeText(bytes, where), where, options).entries(onEntry)
}

function decodeText(bytes: Uint8Array, where: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (cause) {
    throw new FormatError({ where, what: 'not valid UTF-8', cause })
  }
}

/** A `__proto__` key becomes an ordinary property. */
export function toPlain(value: JsonValue): unknown {
  if (Array.isArray(value)) return value.map(toPlain)
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, item]) => [key, toPlain(item)]))
  return value
}

interface Entries {
  has(key: string): boolean
  set(key: string, value: JsonValue): void
}

class Parser {
  #at = 0
  #values = 0

  constructor(
    private readonly text: string,
    private readonly where: string,
    private readonly options: JsonOptions,
  ) {}

  document(): JsonValue {
    const value = this.#value(0)
    this.#end()
    return value
  }

  entries(onEntry: (key: string, value: JsonValue) => void): void {
    const keys = new Set<string>()
    this.#match(SPACE)
    if (this.text[this.#at] !== '{') this.#fail('an object')
    this.#object(0, {
      has: (key) => keys.has(key),
      set: (key, value) => {
        keys.add(key)
        onEntry(key, value)
      },
    })
    this.#match(SPACE)
    this.#end()
  }

  #end(): void {
    if (this.#at < this.text.length) this.#fail('end of the document')
  }

  #value(depth: number): JsonValue {
    if (depth > MAX_DEPTH) throw new FormatError({ where: this.where, what: `JSON nested deeper than ${MAX_DEPTH}` })
    if (++this.#values > MAX_VALUES) {
      throw new FormatError({ where: this.where, what: `JSON of more than ${MAX_VALUES} values` })
    }
    this.#match(SPACE)
    const value = this.#bare(depth)
    this.#match(SPACE)
    return value
  }

  #bare(depth: number): JsonValue {
    switch (this.text[this.#at]) {
      case '{':
        return this.#object(depth, new Map<string, JsonValue>())
      case '[':
        return this.#array(depth)
      case '"':
        return this.#string()
      case 't':
        return this.#word('true', true)
      case 'f':
        return this.#word('false', false)
      case 'n':
        return this.#word('null', null)
      default:
        return this.#number()
    }
  }

  #object<T extends Entries>(depth: number, result: T): T {
    this.#at++
    this.#match(SPACE)
    if (this.#skip('}')) return result
    do {
      this.#match(SPACE)
      if (this.text[this.#at] !== '"') this.#fail('a key in double quotes')
      const key = this.#string()
      if (result.has(key)) {
        throw new FormatError({ where: this.where, what: `the key ${JSON.stringify(key)} occurs twice in one object` })
      }
      this.#match(SPACE)
      this.#need(':')
      result.set(key, this.#value(depth + 1))
    } while (this.#skip(','))
    this.#need('}')
    return result
  }

  #array(depth: number): JsonValue[] {
    const result: JsonValue[] = []
    this.#at++
    this.#match(SPACE)
    if (this.#skip(']')) return result
    do result.push(this.#value(depth + 1))
    while (this.#skip(','))
    this.#need(']')
    // A copied array has no spare capacity, which counts because headers hold thousands of shapes.
    return result.slice()
  }

  #string(): string {
    const start = this.#at
    this.#at++
    this.#match(PLAIN)
    while (this.text[this.#at] === '\\') {
      if (!this.#match(ESCAPE)) this.#fail('an escape that JSON knows')
      this.#match(PLAIN)
    }
    if (this.text[this.#at] !== '"') this.#fail('a closing quote')
    this.#at++
    const value: string = JSON.parse(this.text.slice(start, this.#at))
    if (LONE_SURROGATE.test(value)) {
      throw new FormatError({ where: this.where, what: `half a surrogate pair in the string ${JSON.stringify(value)}` })
    }
    return value
  }

  #number(): number {
    const start = this.#at
    if (this.options.isLoose && this.#match(NOT_FINITE)) return Number(this.text.slice(start, this.#at))
    if (!this.#match(NUMBER)) this.#fail('a value')
    const spelling = this.text.slice(start, this.#at)
    if (this.options.wholeNumbers && !WHOLE_NUMBER.test(spelling)) {
      throw new FormatError({
        where: this.where,
        what: `wrong number at character ${start}`,
        expected: 'a whole number in plain digits',
        got: spelling,
      })
    }
    return Number(spelling)
  }

  #word<T>(word: string, value: T): T {
    if (!this.text.startsWith(word, this.#at)) this.#fail('a value')
    this.#at += word.length
    return value
  }

  #match(pattern: RegExp): boolean {
    pattern.lastIndex = this.#at
    if (!pattern.test(this.text)) return false
    this.#at = pattern.lastIndex
    return true
  }

  #skip(character: string): boolean {
    if (this.text[this.#at] !== character) return false
    this.#at++
    return true
  }

  #need(character: string): void {
    if (!this.#skip(character)) this.#fail(JSON.stringify(character))
  }

  #fail(expected: string): never {
    const got = this.#at < this.text.length ? JSON.stringify(this.text[this.#at]) : 'the end'
    throw new FormatError({ where: this.where, what: `not valid JSON at character ${this.#at}`, expected, got })
  }
}

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g

/**
 * Changes one member of a JSON text and leaves every other character, because strict readers tell `1.0` from `1`.
 * `path` lists the keys from the outermost object inwards. A missing member is added to its object, or to the outermost
 * object if that is missing too.
 */
export function setMember(text: string, path: readonly string[], value: unknown): string {
  const written = JSON.stringify(value)
  const span = findValue(text, path)
  if (span !== undefined) return text.slice(0, span.start) + written + text.slice(span.end)
  const holder = path.length > 1 ? findValue(text, path.slice(0, -1)) : undefined
  if (holder !== undefined && text[holder.start] === '{') {
    const inner = setMember(text.slice(holder.start, holder.end), path.slice(-1), value)
    return text.slice(0, holder.start) + inner + text.slice(holder.end)
  }
  const before = text.slice(0, text.lastIndexOf('}')).trimEnd()
  const space = /^\s*\{(\s*)/.exec(text)?.[1] ?? ''
  const comma = before.endsWith('{') ? '' : ','
  return `${before}${comma}${space}${JSON.stringify(path.at(-1))}: ${written}${text.slice(before.length)}`
}

/** Finds where a value stands in the text. If a key occurs twice, the last one counts, as in JSON.parse. */
function findValue(text: string, path: readonly string[]): { start: number; end: number } | undefined {
  const open: { isArray: boolean; key: string | undefined; start: number }[] = []
  const isHere = () => open.length === path.length && open.every(({ key }, i) => key === path[i])
  let found: { start: number; end: number } | undefined
  for (const { 0: token, index } of text.matchAll(TOKEN)) {
    const end = index + token.length
    const holder = open.at(-1)
    if (token === '{' || token === '[') open.push({ isArray: token === '[', key: undefined, start: index })
    else if (token === '}' || token === ']') {
      const { start } = open.pop()!
      if (isHere()) found = { start, end }
    } else if (token === ',') holder!.key = undefined
    else if (token === ':') continue
    else if (holder?.isArray === false && holder.key === undefined) holder.key = JSON.parse(token)
    else if (isHere()) found = { start: index, end }
  }
  return found
}
