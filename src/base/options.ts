// Checks of values that callers in plain JavaScript give: options by a table that has the same keys as their type, so
// that the two cannot drift, and arguments by kind. A misspelled option is an error with a near miss; nothing is
// ignored in silence.

import { ConfigError, nearMisses } from './errors.js'

/** The values that an option takes. */
export interface Kind {
  /** For messages: `an integer of at least 1`. */
  readonly expected: string
  /** All that it takes, where that is a few words: a near miss is looked for among them. */
  readonly words?: readonly string[]
  accepts(value: unknown): boolean
}

/** The kinds of all options of `T`: a missing or an additional key does not compile. */
export type OptionTable<T> = { readonly [K in keyof Required<T>]: Kind }

/** A kind of value. */
export function kind(expected: string, accepts: (value: unknown) => boolean): Kind {
  return { expected, accepts }
}

export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** True if the value has all these methods. */
export function hasMethods(value: unknown, ...methods: readonly (string | symbol)[]): boolean {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return false
  return methods.every((name) => typeof (value as Record<string | symbol, unknown>)[name] === 'function')
}

export const STRING = kind('text', (value) => typeof value === 'string')
export const NAME = kind('text that is not empty', (value) => typeof value === 'string' && value !== '')
export const BOOLEAN = kind('true or false', (value) => typeof value === 'boolean')
export const FUNCTION = kind('a function', (value) => typeof value === 'function')
export const OBJECT = kind('an object', isObject)
export const COUNT = kind('an integer of at least 1', (value) => Number.isSafeInteger(value) && (value as number) >= 1)
export const INTEGER = kind('a safe integer', Number.isSafeInteger)
export const SIGNAL = kind('an AbortSignal', (value) => isObject(value) && typeof value.aborted === 'boolean')

/** A number that `accepts` takes; NaN never is one. */
export function numberKind(expected: string, accepts: (value: number) => boolean): Kind {
  return kind(expected, (value) => typeof value === 'number' && !Number.isNaN(value) && accepts(value))
}

/** One of these words. */
export function oneOf(...values: readonly string[]): Kind {
  return { ...kind(values.join(', '), (value) => values.includes(value as string)), words: values }
}

/** A list of such values. */
export function listOf({ expected, accepts }: Kind): Kind {
  return kind(`a list, each ${expected}`, (value) => Array.isArray(value) && value.every(accepts))
}

/** One of several kinds. */
export function anyOf(...kinds: readonly Kind[]): Kind {
  const expected = kinds.map((one) => one.expected).join(', or ')
  const words = kinds.flatMap((one) => one.words ?? [])
  return { ...kind(expected, (value) => kinds.some((one) => one.accepts(value))), words }
}

/** A kind that also takes null. */
export function orNull({ expected, accepts }: Kind): Kind {
  return kind(`${expected}, or null`, (value) => value === null || accepts(value))
}

/** The table that the options of a function are checked against. */
export interface OptionRules<T> {
  /** The function's name, for messages. */
  readonly of: string
  readonly table: OptionTable<T>
  /** Options that must be there. */
  readonly required?: readonly (keyof T & string)[]
  /** Options whose own settings are easily written one level too high: `rank` beside `config`. */
  readonly nested?: Readonly<Record<string, readonly string[]>>
  /** Options of other functions that are easily given to this one: name → where it belongs, as one sentence. */
  readonly elsewhere?: Readonly<Record<string, string>>
}

/**
 * Checks a function's options. Undefined stands for none, unless some are required.
 *
 * @throws ConfigError naming the first option that is unknown, missing or of another kind
 */
export function checkOptions<T extends object>(options: unknown, rules: OptionRules<T>): asserts options is T {
  const { of, table, required = [], nested = {}, elsewhere = {} } = rules
  const given = options === undefined ? {} : options
  if (!isObject(given)) {
    throw new ConfigError({
      where: `options of ${of}`,
      what: 'not valid',
      expected: `an object with ${Object.keys(table).slice(0, 5).join(', ')}${Object.keys(table).length > 5 ? ', …' : ''}`,
      got: describe(options),
    })
  }
  const names = Object.keys(table)
  for (const name of Object.keys(given)) {
    if (!Object.hasOwn(table, name)) throw unknownOption(name, { of, names, nested, elsewhere })
  }
  for (const name of names) {
    const value = given[name]
    if (value !== undefined) checkArgument(value, table[name as keyof T], name)
    else if (required.includes(name as keyof T & string)) {
      throw new ConfigError({
        where: name,
        what: `missing: ${of} needs it`,
        expected: table[name as keyof T].expected,
        ...(options === undefined && { got: 'no options' }),
      })
    }
  }
}

/** @throws ConfigError naming the argument when the value is of another kind */
export function checkArgument(value: unknown, { expected, words = [], accepts }: Kind, where: string): void {
  if (accepts(value)) return
  const near = typeof value === 'string' ? nearMisses(value, words, 1)[0] : undefined
  const hint = near === undefined ? undefined : `Did you mean ${near}?`
  throw new ConfigError({ where, what: 'not valid', expected, got: describe(value), ...(hint && { hint }) })
}

/** The message about a name that is none of the known ones. */
export function unknownOption(
  name: string,
  {
    of,
    names,
    nested = {},
    elsewhere = {},
  }: { of: string; names: readonly string[] } & Pick<OptionRules<object>, 'nested' | 'elsewhere'>,
): ConfigError {
  const inner = new Map(
    Object.entries(nested ?? {}).flatMap(([group, list]) => list.map((one) => [one, `${group}.${one}`])),
  )
  const spelled = (other: string) => other.replaceAll(/[-_]/g, '').toLowerCase()
  const all = [...names, ...inner.keys()]
  const near = all.find((one) => spelled(one) === spelled(name)) ?? nearMisses(name, all, 1)[0]
  const meant = names.includes(near) ? near : inner.get(near)
  return new ConfigError({
    where: name,
    what: `${of} has no such option`,
    hint:
      elsewhere[name] ??
      (meant === undefined
        ? `There ${names.length === 1 ? 'is' : 'are'} ${names.join(', ') || 'none'}`
        : `Did you mean ${meant}?`),
  })
}

/** A value in a few words, for messages. */
export function describe(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (typeof value === 'bigint') return `${value}n`
  if (typeof value === 'function') return 'a function'
  if (typeof value === 'string') return JSON.stringify(value.slice(0, MAX_DESCRIBED))
  if (typeof value !== 'object' || value === null) return String(value)
  const { name } = (value.constructor ?? Object) as { name?: string }
  if (name === 'Promise') return 'a promise: write await before it'
  if (!Array.isArray(value) && name !== 'Object' && name) return `an object of ${name}`
  return jsonOf(value) ?? (Array.isArray(value) ? `a list of ${value.length}` : `an object with ${Object.keys(value)}`)
}

const MAX_DESCRIBED = 200

/** Undefined for what is too long, or no JSON. */
function jsonOf(value: object): string | undefined {
  try {
    const text = JSON.stringify(value)
    return text.length > MAX_DESCRIBED ? undefined : text
  } catch {
    return undefined
  }
}
