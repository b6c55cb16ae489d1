// Says why a value does not fit a JSON schema: types, enums, objects, lists, alternatives, references and bounds.
// Keywords that are not here, such as formats, allow everything.

import { describe, isObject } from './options.js'

const IS_TYPE: Readonly<Record<string, (value: unknown) => boolean>> = {
  string: (value) => typeof value === 'string',
  number: (value) => typeof value === 'number',
  integer: Number.isInteger,
  boolean: (value) => typeof value === 'boolean',
  null: (value) => value === null,
  array: Array.isArray,
  object: isObject,
}

type Bound = readonly [keyword: string, fits: (size: number, bound: number) => boolean]

const atLeast = (size: number, bound: number) => size >= bound
const atMost = (size: number, bound: number) => size <= bound
const BOUNDS: Readonly<Record<string, readonly Bound[]>> = {
  number: [
    ['minimum', atLeast],
    ['maximum', atMost],
    ['exclusiveMinimum', (value, bound) => value > bound],
    ['exclusiveMaximum', (value, bound) => value < bound],
  ],
  string: [
    ['minLength', atLeast],
    ['maxLength', atMost],
  ],
  array: [
    ['minItems', atLeast],
    ['maxItems', atMost],
  ],
}

/** A value as JSON whose objects have their members in one order: equal texts are equal values. */
export function orderedJson(value: unknown): string {
  return JSON.stringify(value, (_, part) => {
    return isObject(part) ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1))) : part
  })
}

/** The part of a schema that a reference names; other parts are returned as they are. */
export function resolvePart(part: unknown, root: unknown): unknown {
  if (!isObject(part) || typeof part.$ref !== 'string') return part
  const steps = part.$ref.split('/').slice(1)
  return steps.reduce<unknown>((place, step) => (isObject(place) ? place[step] : undefined), root)
}

/** @returns the first problem, with its place, as `level: expected integer, got "3"`; undefined if the value fits */
export function schemaProblem(value: unknown, schema: unknown, where = '', root = schema): string | undefined {
  const part = resolvePart(schema, root)
  if (part === false) return problem(where, 'nothing', value)
  if (!isObject(part)) return undefined
  const { type, enum: words, const: only, anyOf, oneOf, allOf, properties, required, items, prefixItems } = part
  const first = (parts: unknown) =>
    [parts ?? []].flat().map((each) => schemaProblem(value, each, where, root)) as (string | undefined)[]
  const some = [anyOf, oneOf].filter(Array.isArray).map(first)
  const failed =
    some.find((problems) => !problems.includes(undefined)) ?? first(allOf).filter((each) => each !== undefined)
  if (failed.length > 0) return failed[0]
  const allowed = only === undefined ? words : [only]
  if (Array.isArray(allowed) && !allowed.map(orderedJson).includes(orderedJson(value))) {
    return problem(where, allowed.map((word) => JSON.stringify(word)).join(', '), value)
  }
  const types = type === undefined ? [] : [type].flat().map((name) => String(name).toLowerCase())
  if (types.length > 0 && !types.some((name) => IS_TYPE[name]?.(value) ?? true))
    return problem(where, types.join(' or '), value)
  const kind = Array.isArray(value) ? 'array' : typeof value
  const size =
    typeof value === 'number'
      ? value
      : typeof value === 'string'
        ? [...value].length
        : Number((value as unknown[] | null)?.length)
  for (const [keyword, fits] of BOUNDS[kind] ?? []) {
    const bound = part[keyword]
    if (typeof bound === 'number' && !fits(size, bound)) return problem(where, `${keyword} ${bound}`, value)
  }
  if (typeof value === 'string' && typeof part.pattern === 'string' && !new RegExp(part.pattern, 'u').test(value)) {
    return problem(where, part.pattern, value)
  }
  const firstOf = (members: Iterable<readonly [string, unknown, unknown]>) => {
    for (const [place, member, of] of members) {
      const found = schemaProblem(member, of, place, root)
      if (found !== undefined) return found
    }
    return undefined
  }
  if (Array.isArray(value)) {
    const heads = Array.isArray(prefixItems) ? prefixItems : []
    return firstOf(value.map((item, i) => [`${where}[${i}]`, item, i < heads.length ? heads[i] : items]))
  }
  if (!isObject(value)) return undefined
  const inside = (name: string) => (where === '' ? name : `${where}.${name}`)
  const missing = [required ?? []].flat().find((name) => !Object.hasOwn(value, String(name)))
  if (missing !== undefined) return `${inside(String(missing))}: missing`
  const known = isObject(properties) ? properties : {}
  const unknown = Object.keys(value).find((name) => !Object.hasOwn(known, name))
  if (unknown !== undefined && part.additionalProperties === false) return `${inside(unknown)}: not in the schema`
  return firstOf(
    Object.entries(value).map(([name, member]) => {
      return [inside(name), member, Object.hasOwn(known, name) ? known[name] : part.additionalProperties]
    }),
  )
}

function problem(where: string, expected: string, got: unknown): string {
  return `${where === '' ? 'arguments' : where}: expected ${expected}, got ${describe(got)}`
}
