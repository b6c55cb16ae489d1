// Checks options and arguments. The tables of options are generated from their types (scripts/generate/options.mjs).
// Unknown options are never ignored: the error suggests the option that was meant.

import { ConfigError } from './errors.js'
import { adviceOn, meantBy } from './words.js'

/** Which values an option or an argument may have. */
export interface Kind {
  /** A description for error messages, such as `an integer of at least 1`. */
  readonly expected: string
  /** All words that are accepted, if there are only a few. */
  readonly words?: readonly string[]
  readonly isRequired?: boolean
  /** Of an object: its own options. */
  readonly inner?: OptionTable
  accepts(value: unknown): boolean
}

/**
 * Maps each option to the values that it accepts. Tables import no types, because the files of the types import the
 * tables.
 */
export type OptionTable = Readonly<Record<string, Kind>>

export function kind(expected: string, accepts: (value: unknown) => boolean): Kind {
  return { expected, accepts }
}

/** Like Array.isArray, which does not narrow a type to readonly arrays. */
export const isList = (value: unknown): value is readonly unknown[] => Array.isArray(value)

export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

export function objectOf(value: unknown): Record<string, unknown> {
  return isObject(value) ? value : {}
}

export function pickFields(record: object, names: readonly string[]): Record<string, unknown> {
  return Object.fromEntries(Object.entries(record).filter(([name]) => names.includes(name)))
}

/** Says whether plain data is nested deeper than `depth`, or has more than `values` values in total. */
export function excessOf(
  value: unknown,
  { depth, values = Number.POSITIVE_INFINITY }: { readonly depth: number; readonly values?: number },
): 'depth' | 'values' | undefined {
  const isPlain = (item: unknown): item is object => {
    if (typeof item !== 'object' || item === null) return false
    return Array.isArray(item) || [Object.prototype, null].includes(Object.getPrototypeOf(item))
  }
  let level = [value].filter(isPlain)
  for (let reached = 1, count = 0; level.length > 0; reached++) {
    if (reached > depth) return 'depth'
    const deeper: object[] = []
    for (const part of level) {
      const parts = Array.isArray(part) ? part : Object.values(part)
      count += parts.length
      if (count > values) return 'values'
      for (const item of parts) if (isPlain(item)) deeper.push(item)
    }
    level = deeper
  }
  return undefined
}

/** Parses a text as JSON. Returns undefined if it is not JSON, or not a text. */
export function jsonIn(text: unknown): unknown {
  try {
    return typeof text === 'string' ? JSON.parse(text) : undefined
  } catch {
    return undefined
  }
}

/** Writes a value as JSON, with a bigint, which JSON does not have, as text. */
export function toJson(value: unknown): string {
  return JSON.stringify(value, (_, inner: unknown) => (typeof inner === 'bigint' ? String(inner) : inner))
}

export function hasMethods(value: unknown, ...methods: readonly (string | symbol)[]): boolean {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return false
  return methods.every((name) => typeof (value as Record<string | symbol, unknown>)[name] === 'function')
}

const RANGE =
  /^(a number|a finite number|an integer|a safe integer)(?: of at least (-?[\d.]+)| above (-?[\d.]+)| in ([[(])(.+), (.+)([\])]))?(, or Infinity)?$/

/** Makes a kind from words such as `a safe integer` or `a number in (0, 1]`. NaN is never accepted. */
export function ranged(expected: string): Kind {
  const [, noun, least, above, open, from, to, close, orInfinity] = RANGE.exec(expected) ?? []
  if (noun === undefined) throw new Error(`not a range: ${expected}`)
  const low = Number(least ?? above ?? from ?? Number.NEGATIVE_INFINITY)
  const high = Number(to ?? Number.POSITIVE_INFINITY)
  const isAbove = (value: number) => (above !== undefined || open === '(' ? value > low : value >= low)
  const isBelow = (value: number) => (close === ')' ? value < high : value <= high)
  const isOfNoun = noun.endsWith('integer') ? Number.isSafeInteger : noun === 'a number' ? () => true : Number.isFinite
  return kind(expected, (value) => {
    if (typeof value !== 'number') return false
    if (orInfinity !== undefined && value === Number.POSITIVE_INFINITY) return true
    return isOfNoun(value) && isAbove(value) && isBelow(value)
  })
}

export const STRING = kind('text', (value) => typeof value === 'string')
export const NAME = kind('text that is not empty', (value) => typeof value === 'string' && value !== '')
export const BOOLEAN = kind('true or false', (value) => typeof value === 'boolean')
export const FUNCTION = kind('a function', (value) => typeof value === 'function')
export const OBJECT = kind('an object', isObject)
/** Callbacks by their names. */
export const eventsOf = (...names: readonly string[]): Kind => ({
  ...OBJECT,
  inner: Object.fromEntries(names.map((name) => [name, FUNCTION])),
})
export const INTEGER = ranged('a safe integer')
export const COUNT = ranged('an integer of at least 1')
export const NUMBERS = listOf(ranged('a finite number'))
export const SIGNAL = kind('an AbortSignal', (value) => isObject(value) && typeof value.aborted === 'boolean')

export const ENDPOINT = kind('an address such as https://huggingface.co, without a password', (value) => {
  if (typeof value !== 'string' || !/^https?:\/\/[^/]/.test(value) || !URL.canParse(value)) return false
  const { username, password } = new URL(value)
  return username === '' && password === ''
})

export function oneOf(...values: readonly (string | number)[]): Kind {
  const words = values.filter((value) => typeof value === 'string')
  return { ...kind(values.join(', '), (value) => values.includes(value as string)), words }
}

export function needed(optionKind: Kind): Kind {
  return { ...optionKind, isRequired: true }
}

export function listOf({ expected, accepts }: Kind): Kind {
  return kind(`a list, each ${expected}`, (value) => Array.isArray(value) && value.every(accepts))
}

export function anyOf(...kinds: readonly Kind[]): Kind {
  const expected = kinds.map((option) => option.expected).join(', or ')
  const words = kinds.flatMap((option) => option.words ?? [])
  return { ...kind(expected, (value) => kinds.some((option) => option.accepts(value))), words }
}

export function orNull({ expected, accepts }: Kind): Kind {
  return kind(`${expected}, or null`, (value) => value === null || accepts(value))
}

/** Options that people easily put in the wrong place, with the place where each belongs. */
export interface Elsewhere {
  /** An option that is an object → its settings, such as `config` → `rank`. */
  readonly nested?: Readonly<Record<string, readonly string[]>>
  /** An option of another function → a sentence that says where it belongs. */
  readonly elsewhere?: Readonly<Record<string, string>>
}

/** Checks options. Undefined means no options. Throws ConfigError for the first option that is wrong or missing. */
export function checkOptions(options: unknown, of: string, table: OptionTable, elsewhere: Elsewhere = {}): void {
  const given = options === undefined ? {} : options
  const names = Object.keys(table)
  if (!isObject(given)) {
    throw new ConfigError({
      where: `options of ${of}`,
      what: 'not valid',
      expected: `an object with ${names.slice(0, 5).join(', ')}${names.length > 5 ? ', …' : ''}`,
      got: describe(options),
    })
  }
  const unknown = Object.keys(given).find((name) => !Object.hasOwn(table, name))
  if (unknown !== undefined) {
    const inner = names.flatMap((name) => (table[name].inner ? [[name, Object.keys(table[name].inner)] as const] : []))
    const nested = { ...Object.fromEntries(inner), ...elsewhere.nested }
    throw unknownOption(unknown, of, names, { ...elsewhere, nested })
  }
  for (const [name, optionKind] of Object.entries(table)) {
    const value = given[name]
    if (value !== undefined) {
      checkArgument(value, optionKind, name)
      if (optionKind.inner !== undefined) checkOptions(value, `${of}’s \`${name}\``, optionKind.inner)
    } else if (optionKind.isRequired) {
      throw new ConfigError({
        where: name,
        what: `missing: ${of} needs it`,
        expected: optionKind.expected,
        ...(options === undefined && { got: 'no options' }),
      })
    }
  }
}

/** @throws ConfigError that names the argument if the value is of another kind */
export function checkArgument(value: unknown, { expected, words = [], accepts }: Kind, where: string): void {
  if (accepts(value)) return
  const hint = typeof value === 'string' ? hintOn(value, words, where) : undefined
  throw new ConfigError({ where, what: 'not valid', expected, got: describe(value), ...(hint && { hint }) })
}

/** Says what to write instead of a value that an option does not take, or undefined if nothing is close. */
export function hintOn(value: string, words: readonly string[], option: string): string | undefined {
  const meant = meantBy(value, words)
  return adviceOn(value, [option]) ?? (meant && `Did you mean ${meant}?`)
}

export function unknownOption(
  name: string,
  of: string,
  names: readonly string[],
  { nested = {}, elsewhere = {} }: Elsewhere = {},
): ConfigError {
  const inner = new Map(
    Object.entries(nested).flatMap(([group, list]) => list.map((setting) => [setting, `${group}.${setting}`] as const)),
  )
  const meant = meantBy(name, [...names, ...inner.keys()])
  const known = `There ${names.length === 1 ? 'is' : 'are'} ${names.join(', ') || 'none'}`
  const hint = meant === undefined ? known : `Did you mean ${names.includes(meant) ? meant : inner.get(meant)}?`
  const event = /^on[A-Z]/.test(name) ? name[2].toLowerCase() + name.slice(3) : ''
  const callback = nested.on?.includes(event) ? `Callbacks are in one option: on: { ${event} }` : undefined
  return new ConfigError({
    where: name,
    what: `${of} has no such option`,
    hint: callback ?? elsewhere[name] ?? adviceOn(name, names) ?? hint,
  })
}

/** Replaces the name and password in an address with an ellipsis, for messages. */
export function withoutPassword(address: string): string {
  return address.replaceAll(/\/\/[^/?#\s]*@/g, '//…@')
}

export function describe(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (typeof value === 'bigint') return `${value}n`
  if (typeof value === 'function') return 'a function'
  if (typeof value === 'string') return JSON.stringify(withoutPassword(value).slice(0, MAX_DESCRIBED))
  if (typeof value !== 'object' || value === null) return String(value)
  const { name } = (value.constructor ?? Object) as { name?: string }
  if (name === 'Promise') return 'a promise: write await before it'
  if (!Array.isArray(value) && name !== 'Object' && name) return `an object of ${name}`
  return jsonOf(value) ?? (Array.isArray(value) ? `a list of ${value.length}` : `an object with ${Object.keys(value)}`)
}

const MAX_DESCRIBED = 200

function jsonOf(value: object): string | undefined {
  try {
    const text = JSON.stringify(value)
    return text.length > MAX_DESCRIBED ? undefined : text
  } catch {
    return undefined
  }
}
