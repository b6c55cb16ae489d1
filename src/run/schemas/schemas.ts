// Checks that a JSON schema has only keywords that generation can enforce, and does not cost too much.

import { attempt, ConfigError } from '../../core/base/errors.js'
import { excessOf, isObject } from '../../core/base/options.js'
import { FORMAT_PATTERNS, rewritten } from './schema-forms.js'

const MOST = { bytes: 32_768, depth: 32, parts: 512, counts: 1000, pattern: 128 }

/** Keywords that do not restrict values. */
const NOTES = new Set([
  ...['title', 'description', 'default', 'examples', 'deprecated', 'readOnly', 'writeOnly', '$comment', '$schema'],
  ...['$id'],
])
const COUNTS = ['minItems', 'maxItems', 'minLength', 'maxLength']
const NUMBERS = ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum']
/** Pairs of bounds; the first must not be larger than the second. */
const PAIRS = [
  ['minItems', 'maxItems'],
  ['minLength', 'maxLength'],
  ['minimum', 'maximum'],
]
const ONE = ['items', 'additionalProperties']
const LIST = ['anyOf', 'prefixItems']
const NAMED = ['properties', '$defs', 'definitions']
const KNOWN = new Set([
  ...['type', 'enum', 'const', 'required', '$ref', 'pattern'],
  ...[...COUNTS, ...NUMBERS, ...ONE, ...LIST, ...NAMED],
])
const TYPES = new Set(['object', 'array', 'string', 'integer', 'number', 'boolean', 'null'])

/** A structural tag as text. No schema begins like it, because there is no such type. */
export const TAG_START = '{"type":"structural_tag"'
export const tagText = (format: object) => JSON.stringify({ type: 'structural_tag', format })

export function checkedSchema(given: object, name = 'schema'): string {
  // Before it is walked through: it may be deep, or large.
  const bytes = JSON.stringify(given).length
  const isSmall = bytes <= MOST.bytes && excessOf(given, { depth: 4 * MOST.depth }) === undefined
  const schema = isSmall ? rewritten(given, isUsable) : given
  const text = JSON.stringify(schema)
  const used = { parts: 0, counts: 0 }
  const known = new Map<unknown, boolean>()
  const fail = (where: string, what: string, expected?: string): never => {
    throw new ConfigError({ where, what, ...(expected !== undefined && { expected }) })
  }
  const limit = (where: string, what: string, value: number, most: number) => {
    if (!(value >= 0 && value <= most)) fail(where, `${what} (${value})`, `at most ${most}`)
  }
  const visit = (part: unknown, where: string, depth: number): void => {
    limit(where, 'too deep', depth, MOST.depth)
    limit(where, 'too many parts', ++used.parts, MOST.parts)
    if (typeof part === 'boolean') return
    if (!isObject(part)) fail(where, 'not a schema', 'an object')
    if (!hasEnd(schema, part, known)) fail(where, 'it refers to itself, so that no text fits')
    for (const [least, most] of PAIRS) {
      const { [least]: low, [most]: high } = part as Record<string, unknown>
      if (Number(low) > Number(high)) fail(`${where}.${least}`, `above ${most}`)
    }
    for (const [key, value] of Object.entries(part as Record<string, unknown>)) {
      const at = `${where}.${key}`
      if (NOTES.has(key)) continue
      if (!KNOWN.has(key)) fail(at, 'texts cannot be kept to this keyword', [...KNOWN].join(', '))
      if (key === 'type' && ![value].flat().every((type) => TYPES.has(type as string)))
        fail(at, 'unknown', [...TYPES].join(', '))
      if (COUNTS.includes(key)) {
        if (!Number.isSafeInteger(value)) fail(at, 'not a whole number')
        used.counts += value as number
      }
      // The library is not exact for fractions: with a maximum of 1 it allows 1.5, with a minimum of 0.1 it allows
      // "0,1".
      if (NUMBERS.includes(key) && !(isOfIntegers(part as object) && Number.isSafeInteger(value))) {
        fail(at, 'texts are kept to whole bounds of whole numbers alone', '"type": "integer" and an integer')
      }
      if (key === 'required' && !(Array.isArray(value) && value.every((item) => typeof item === 'string'))) {
        fail(at, 'not a list of names')
      }
      if (key === 'enum') {
        if (!Array.isArray(value) || value.length === 0) fail(at, 'not a list of values')
        used.parts += (value as unknown[]).length
      }
      if (key === '$ref' && placeOf(schema, value) === undefined)
        fail(at, 'no such part of this schema', '#/$defs/NAME')
      if (key === 'pattern') used.counts += patternCost(value, at)
      if (ONE.includes(key)) visit(value, at, depth + 1)
      if (LIST.includes(key)) {
        if (!Array.isArray(value) || value.length === 0) fail(at, 'not a list of schemas')
        for (const [i, item] of (value as unknown[]).entries()) visit(item, `${at}[${i}]`, depth + 1)
      }
      if (NAMED.includes(key)) {
        if (!isObject(value)) fail(at, 'not an object of schemas')
        for (const [name, item] of Object.entries(value as object)) visit(item, `${at}.${name}`, depth + 1)
      }
    }
  }
  limit(name, 'too many bytes', bytes, MOST.bytes)
  visit(schema, name, 0)
  limit(name, 'too many parts', used.parts, MOST.parts)
  limit(name, 'its lengths and counts are too large together', used.counts, MOST.counts)
  return text
}

function isOfIntegers({ type }: { readonly type?: unknown }): boolean {
  return [type].flat().includes('integer') && ![type].flat().includes('number')
}

/** Returns the part of the schema that a reference such as `#` or `#/a/b` names. */
function placeOf(schema: object, ref: unknown): Record<string, unknown> | undefined {
  if (typeof ref !== 'string' || !/^#(\/|$)/.test(ref)) return undefined
  let place: unknown = schema
  for (const key of ref.split('/').slice(1)) {
    if (!isObject(place) || !Object.hasOwn(place, key)) return undefined
    place = place[key]
  }
  return isObject(place) ? place : undefined
}

/** False if a part refers to itself, through references and alternatives, before any character of a text is chosen. */
function hasEnd(schema: object, part: unknown, known: Map<unknown, boolean>): boolean {
  if (!isObject(part)) return true
  const found = known.get(part)
  if (found !== undefined) return found
  // While its nested parts are checked: reaching this part again means a circle.
  known.set(part, false)
  const next = [placeOf(schema, part.$ref), ...(Array.isArray(part.anyOf) ? part.anyOf : [])]
  const ends = next.every((nested) => hasEnd(schema, nested, known))
  known.set(part, ends)
  return ends
}

/** The cost of each format: its regular expression is ours, so it is not counted. */
const FORMAT_COST = 30

function isUsable(pattern: string): boolean {
  return attempt(() => patternCost(pattern, 'pattern')).problems.length === 0
}

function patternCost(pattern: unknown, where: string): number {
  if (FORMAT_PATTERNS.has(pattern)) return FORMAT_COST
  let isValid = typeof pattern === 'string' && pattern.length <= MOST.pattern
  try {
    new RegExp(pattern as string, 'u')
  } catch {
    isValid = false
  }
  // The library matches an expression with the whole text, and knows neither lookaround nor backreferences.
  if (!isValid || !/^\^.*\$$/s.test(pattern as string) || /\(\?(?!:)|\\[\dbBpPk]/.test(pattern as string)) {
    throw new ConfigError({
      where,
      what: 'this expression cannot be used',
      expected: `^…$ of at most ${MOST.pattern} characters, without \\b, \\p, look-around and back references`,
    })
  }
  const numbers = [...(pattern as string).matchAll(/\{(\d+)(?:,(\d*))?\}/g)].map(([, from, to]) => Number(to || from))
  return numbers.reduce((product, number) => product * Math.max(1, number), 1)
}
