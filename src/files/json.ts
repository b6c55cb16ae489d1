// A strict reader of JSON (RFC 8259) for files from strangers. JSON.parse does the work. It is also an error here if a
// key occurs twice, because JSON.parse would silently keep the last, and if a number such as `1.0` stands for `1`.

import { parsePythonJson } from '../core/base/bytes.js'
import { FormatError, messageOf } from '../core/base/errors.js'

/** A value of JSON. Objects become Maps, which keep the order of the text. */
export type JsonValue = string | number | boolean | null | JsonValue[] | JsonObject
export type JsonObject = Map<string, JsonValue>

/** Our formats nest at most five levels. Anything deeper than this limit is an attack on the stack. */
const MAX_DEPTH = 64

/** A value takes up to 300 bytes of memory, even if its text is short. A header has eight values for each tensor. */
const MAX_VALUES = 1 << 22

const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]|[^\s{}[\],:"]+/g
const NUMBER = /^[-\d]/
const WHOLE_NUMBER = /^\d+$/
const LONE_SURROGATE = /\p{Surrogate}/u
/** Each value but the first follows one of these characters: commas and opening brackets. */
const BEFORE_VALUES = new Set([0x2c, 0x5b, 0x7b])

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
  const decoded = decodeText(bytes, where)
  const text = options.isLoose ? decoded.replace(/^\uFEFF/, '') : decoded
  let values = 0
  for (let i = 0; i < text.length; i++) if (BEFORE_VALUES.has(text.charCodeAt(i))) values++
  if (values > MAX_VALUES) throw new FormatError({ where, what: `JSON of more than ${MAX_VALUES} values` })
  try {
    if (options.isLoose) parsePythonJson(text)
    else JSON.parse(text)
  } catch (cause) {
    throw new FormatError({ where, what: `not valid JSON (${messageOf(cause)})`, cause })
  }
  return readValid(text, where, options)
}

function decodeText(bytes: Uint8Array, where: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (cause) {
    throw new FormatError({ where, what: 'not valid UTF-8', cause })
  }
}

function readValid(text: string, where: string, { wholeNumbers = false }: JsonOptions): JsonValue {
  const open: (JsonValue[] | JsonObject)[] = []
  let root: JsonValue = null
  let key: string | undefined
  const put = (value: JsonValue) => {
    const holder = open.at(-1)
    if (holder === undefined) root = value
    else if (Array.isArray(holder)) holder.push(value)
    else holder.set(key!, value)
    key = undefined
  }
  for (const [token] of text.matchAll(TOKEN)) {
    const holder = open.at(-1)
    if (token === '}' || token === ']') open.pop()
    else if (token === '{' || token === '[') {
      const value: JsonValue[] | JsonObject = token === '{' ? new Map() : []
      put(value)
      if (open.push(value) > MAX_DEPTH) throw new FormatError({ where, what: `JSON nested deeper than ${MAX_DEPTH}` })
    } else if (token !== ',' && token !== ':') {
      const value = scalar(token, where, wholeNumbers)
      if (!(holder instanceof Map) || key !== undefined) put(value)
      else {
        key = String(value)
        if (holder.has(key)) {
          throw new FormatError({ where, what: `the key ${JSON.stringify(key)} occurs twice in one object` })
        }
      }
    }
  }
  return root
}

function scalar(token: string, where: string, wholeNumbers: boolean): string | number | boolean | null {
  if (NUMBER.test(token)) {
    if (!wholeNumbers || WHOLE_NUMBER.test(token)) return Number(token)
    const expected = 'a whole number in plain digits'
    throw new FormatError({ where, what: 'a number in a wrong spelling', expected, got: token })
  }
  if (token === 'NaN' || token === 'Infinity') return Number(token)
  if (token[0] === '"' && !token.includes('\\')) return token.slice(1, -1)
  const value = JSON.parse(token)
  if (typeof value === 'string' && LONE_SURROGATE.test(value)) {
    throw new FormatError({ where, what: `half a surrogate pair in the string ${JSON.stringify(value)}` })
  }
  return value
}

/** A `__proto__` key becomes an ordinary property. */
export function toPlain(value: JsonValue): unknown {
  if (Array.isArray(value)) return value.map(toPlain)
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, item]) => [key, toPlain(item)]))
  return value
}

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
