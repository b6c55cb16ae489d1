// Checks that a JSON schema has only keywords that generation can enforce, and does not cost too much, or takes the
// other keywords out.

import { attempt, ConfigError } from '../../core/base/errors.js'
import { excessOf, isObject } from '../../core/base/options.js'
import { NUMBERS, type NumberPart, numberRule, stepOf } from './numbers.js'
import { FORMAT_PATTERNS, rewritten } from './schema-forms.js'

const MOST = { bytes: 32_768, depth: 32, parts: 512, counts: 1000, pattern: 128 }

/** Keywords that do not restrict values. */
const NOTES = new Set([
  ...['title', 'description', 'default', 'examples', 'deprecated', 'readOnly', 'writeOnly', '$comment', '$schema'],
  ...['$id'],
])
const COUNTS = ['minItems', 'maxItems', 'minLength', 'maxLength']
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
/** The library reads one of these, and nothing beside it. */
const ALONE = ['$ref', 'const', 'enum', 'anyOf']
const TYPES = new Set(['object', 'array', 'string', 'integer', 'number', 'boolean', 'null'])

/** A structural tag as text. No schema begins like it, because there is no such type. */
export const TAG_START = '{"type":"structural_tag"'
export const tagText = (format: object) => JSON.stringify({ type: 'structural_tag', format })

/** @throws ConfigError for a keyword that texts cannot be kept to */
export function checkedSchema(given: object, name = 'schema'): string {
  return JSON.stringify(heldSchema(given, name, 'all').schema)
}

/**
 * Returns the schema without the keywords that texts cannot be kept to, and the places of these.
 *
 * @param keep `all` throws ConfigError for such a keyword, and for what no schema has. `known` throws for the latter
 *   alone, `some` for nothing
 * @param keywords that a form of calls can hold
 */
export function heldSchema(given: object, name: string, keep: Keep, keywords: ReadonlySet<string> = KNOWN) {
  const { value, problems } = attempt(() => held(given, name, keep, keywords))
  if (value !== undefined) return value
  if (keep === 'some') return { schema: { type: 'object' }, lost: [name] }
  throw problems[0]
}

type Keep = 'all' | 'known' | 'some'

function held(
  given: object,
  name: string,
  keep: Keep,
  keywords: ReadonlySet<string>,
): { schema: object; lost: string[] } {
  // Before it is walked through: it may be deep, or large.
  const bytes = JSON.stringify(given).length
  const isSmall = bytes <= MOST.bytes && excessOf(given, { depth: 4 * MOST.depth }) === undefined
  const lost: string[] = []
  const schema = isSmall ? rewritten(given, isUsable) : given
  const used = { parts: 0, counts: 0 }
  const known = new Map<unknown, boolean>()
  const unheld = new Set<unknown>()
  const refuse: Fail = (...told) => {
    const { problems } = attempt(() => fail(...told))
    unheld.add(problems[0])
    throw problems[0]
  }
  const limit = (where: string, what: string, value: number, most: number) => {
    if (!(value >= 0 && value <= most)) fail(where, `${what} (${value})`, `at most ${most}`)
  }
  const count = (at: string, value: number) => {
    if (!(value >= 0)) fail(at, `negative (${value})`)
    const sum = used.counts + value
    if (sum > MOST.counts) refuse(at, `lengths and counts are too large together (${sum})`, `at most ${MOST.counts}`)
    used.counts = sum
  }
  const visit = (part: unknown, where: string, depth: number): void => {
    limit(where, 'too deep', depth, MOST.depth)
    limit(where, 'too many parts', ++used.parts, MOST.parts)
    if (typeof part === 'boolean') return
    if (!isObject(part)) fail(where, 'not a schema', 'an object')
    if (!hasEnd(schema, part, known)) fail(where, 'it refers to itself, so that no text fits')
    const keys = part as Record<string, unknown>
    for (const [least, most] of PAIRS) {
      if (Number(keys[least]) > Number(keys[most])) fail(`${where}.${least}`, `above ${most}`)
    }
    // Texts of any branch are closer to the schema than any text.
    if (keep !== 'all' && Array.isArray(keys.oneOf) && keys.anyOf === undefined) {
      keys.anyOf = keys.oneOf
      delete keys.oneOf
      lost.push(`${where}.oneOf`)
    }
    for (const key of Object.keys(keys)) {
      const at = `${where}.${key}`
      const [problem] = attempt(() => visitKey(keys, key, at, depth)).problems
      if (problem === undefined) continue
      if (keep === 'all' || (keep === 'known' && !unheld.has(problem))) throw problem
      delete keys[key]
      lost.push(at)
    }
    const numbers = NUMBERS.filter((key) => keys[key] !== undefined)
    if (numbers.length > 0 && numberRule(keys as NumberPart, !isOf(keys, 'number'), new Map()) === undefined) {
      fail(where, 'no number fits these bounds')
    }
  }
  const visitKey = (part: Record<string, unknown>, key: string, at: string, depth: number): void => {
    const value = part[key]
    if (NOTES.has(key)) return
    if (!KNOWN.has(key) || !keywords.has(key))
      refuse(at, 'texts cannot be kept to this keyword', [...KNOWN].filter((known) => keywords.has(known)).join(', '))
    if (key === 'type' && ![value].flat().every((type) => TYPES.has(type as string)))
      fail(at, 'unknown', [...TYPES].join(', '))
    if (COUNTS.includes(key)) {
      if (!Number.isSafeInteger(value)) fail(at, 'not a whole number')
      count(at, value as number)
    }
    if ((NUMBERS as readonly string[]).includes(key)) {
      if (!Number.isFinite(value)) fail(at, 'not a number')
      if (!['number', 'integer'].some((type) => isOf(part, type)) || ALONE.some((other) => part[other] !== undefined))
        refuse(at, 'only numbers are kept to this keyword', '"type": "number" or "integer"')
      if (key === 'multipleOf' && stepOf(value as number) === undefined)
        refuse(at, 'texts cannot be kept to this step', '1, 2, 4, 5 or 25, times a power of ten')
    }
    if (key === 'required' && !(Array.isArray(value) && value.every((item) => typeof item === 'string'))) {
      fail(at, 'not a list of names')
    }
    if (key === 'enum') {
      if (!Array.isArray(value) || value.length === 0) fail(at, 'not a list of values')
      used.parts += (value as unknown[]).length
    }
    if (key === '$ref' && placeOf(schema, value) === undefined) fail(at, 'no such part of this schema', '#/$defs/NAME')
    if (key === 'pattern') count(at, patternCost(value, at, refuse))
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
  limit(name, 'too many bytes', bytes, MOST.bytes)
  visit(schema, name, 0)
  limit(name, 'too many parts', used.parts, MOST.parts)
  return { schema, lost }
}

const isOf = ({ type }: { readonly type?: unknown }, name: string) => [type].flat().includes(name)

/** Returns the part of the schema that a reference such as `#` or `#/a/b` names. */
export function placeOf(schema: object, ref: unknown): Record<string, unknown> | undefined {
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

type Fail = (where: string, what: string, expected?: string) => never

function patternCost(pattern: unknown, where: string, refuse: Fail = fail): number {
  if (FORMAT_PATTERNS.has(pattern)) return FORMAT_COST
  if (typeof pattern !== 'string') fail(where, 'not an expression')
  const text = pattern as string
  try {
    new RegExp(text, 'u')
  } catch {
    fail(where, 'not an expression')
  }
  // The library matches an expression with the whole text, and knows neither lookaround nor backreferences.
  if (text.length > MOST.pattern || !/^\^.*\$$/s.test(text) || /\(\?(?!:)|\\[\dbBpPk]/.test(text)) {
    const expected = `^…$ of at most ${MOST.pattern} characters, without \\b, \\p, look-around and back references`
    refuse(where, 'this expression cannot be used', expected)
  }
  const numbers = [...text.matchAll(/\{(\d+)(?:,(\d*))?\}/g)].map(([, from, to]) => Number(to || from))
  return numbers.reduce((product, number) => product * Math.max(1, number), 1)
}

function fail(where: string, what: string, expected?: string): never {
  throw new ConfigError({ where, what, ...(expected !== undefined && { expected }) })
}
