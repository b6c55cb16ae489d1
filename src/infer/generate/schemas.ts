// Checks a JSON schema before a text has to fit it: only keywords that the text will really keep to, and bounds on what
// it costs.

import { ConfigError } from '../../base/errors.js'
import { isObject } from '../../base/options.js'

const MOST = { bytes: 32_768, depth: 32, parts: 512, counts: 1000, pattern: 128 }

/** Keywords that say nothing about what fits. */
const NOTES = new Set([
  ...['title', 'description', 'default', 'examples', 'deprecated', 'readOnly', 'writeOnly', '$comment', '$schema'],
  ...['$id'],
])
const COUNTS = ['minItems', 'maxItems', 'minLength', 'maxLength']
const NUMBERS = ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum']
const ONE = ['items', 'additionalProperties']
const LIST = ['anyOf', 'prefixItems']
const NAMED = ['properties', '$defs', 'definitions']
const KNOWN = new Set([
  ...['type', 'enum', 'const', 'required', '$ref', 'pattern'],
  ...[...COUNTS, ...NUMBERS, ...ONE, ...LIST, ...NAMED],
])
const TYPES = new Set(['object', 'array', 'string', 'integer', 'number', 'boolean', 'null'])

export function checkedSchema(schema: object): string {
  const text = JSON.stringify(schema)
  const used = { parts: 0, counts: 0 }
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
    for (const [key, value] of Object.entries(part as Record<string, unknown>)) {
      const at = `${where}.${key}`
      if (NOTES.has(key)) continue
      if (!KNOWN.has(key)) fail(at, 'texts cannot be kept to this keyword', [...KNOWN].join(', '))
      if (key === 'type' && ![value].flat().every((one) => TYPES.has(one as string)))
        fail(at, 'unknown', [...TYPES].join(', '))
      if (COUNTS.includes(key)) {
        if (!Number.isSafeInteger(value)) fail(at, 'not a whole number')
        used.counts += value as number
      }
      if (NUMBERS.includes(key) && typeof value !== 'number') fail(at, 'not a number')
      if (key === 'required' && !(Array.isArray(value) && value.every((one) => typeof one === 'string'))) {
        fail(at, 'not a list of names')
      }
      if (key === 'enum') {
        if (!Array.isArray(value) || value.length === 0) fail(at, 'not a list of values')
        used.parts += (value as unknown[]).length
      }
      if (key === '$ref' && !hasPlace(schema, value)) fail(at, 'no such part of this schema', '#/$defs/NAME')
      if (key === 'pattern') used.counts += patternCost(value, at)
      if (ONE.includes(key)) visit(value, at, depth + 1)
      if (LIST.includes(key)) {
        if (!Array.isArray(value) || value.length === 0) fail(at, 'not a list of schemas')
        for (const [i, one] of (value as unknown[]).entries()) visit(one, `${at}[${i}]`, depth + 1)
      }
      if (NAMED.includes(key)) {
        if (!isObject(value)) fail(at, 'not an object of schemas')
        for (const [name, one] of Object.entries(value as object)) visit(one, `${at}.${name}`, depth + 1)
      }
    }
  }
  limit('schema', 'too many bytes', text.length, MOST.bytes)
  visit(schema, 'schema', 0)
  limit('schema', 'too many parts', used.parts, MOST.parts)
  limit('schema', 'its lengths and counts are too large together', used.counts, MOST.counts)
  return text
}

/** True for `#`, and for `#/a/b` where the schema has such a part. */
function hasPlace(schema: object, ref: unknown): boolean {
  if (typeof ref !== 'string' || !/^#(\/|$)/.test(ref)) return false
  let place: unknown = schema
  for (const key of ref.split('/').slice(1)) {
    if (!isObject(place) || !Object.hasOwn(place, key)) return false
    place = place[key]
  }
  return isObject(place)
}

function patternCost(pattern: unknown, where: string): number {
  let isValid = typeof pattern === 'string' && pattern.length <= MOST.pattern
  try {
    new RegExp(pattern as string, 'u')
  } catch {
    isValid = false
  }
  // The library takes an expression for a whole text, and knows neither looking around nor going back.
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
