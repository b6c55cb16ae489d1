// Rewrites what JSON schemas of Pydantic, Zod and OpenAPI say into keywords that texts are kept to: formats as
// expressions, branches of oneOf that exclude each other as anyOf, and objects of allOf as one object. What cannot be
// rewritten stays, and the check refuses it by its name.

import { isObject } from '../../core/base/options.js'

export type Part = Readonly<Record<string, unknown>>

const MONTHS = '(0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|02-(0[1-9]|1\\d|2[0-8])'
const DATE = `\\d{4}-(${MONTHS})`
const TIME = '([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?Z'
const BYTE = '(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)'
const LABEL = '[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?'
const SPAN = '\\d{1,4}'
const DAYS = `${SPAN}Y(${SPAN}M(${SPAN}D)?)?|${SPAN}M(${SPAN}D)?|${SPAN}D`
const HOURS = `T(${SPAN}H(${SPAN}M(${SPAN}S)?)?|${SPAN}M(${SPAN}S)?|${SPAN}S)`

/**
 * An expression for each format. Every text that fits is of the format, but not the other way round: times are of UTC,
 * addresses begin with http, and February ends on the 28th.
 */
const FORMATS: Readonly<Record<string, string>> = {
  date: DATE,
  time: TIME,
  'date-time': `${DATE}T${TIME}`,
  email: `[A-Za-z0-9_+-]{1,30}(\\.[A-Za-z0-9_+-]{1,30})?@(${LABEL}\\.){1,3}[A-Za-z]{2,10}`,
  uri: `https?://(${LABEL}\\.){0,4}${LABEL}(:[1-9]\\d{0,3})?(/[A-Za-z0-9._~&=+?-]{0,60}){0,9}`,
  uuid: '[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}',
  ipv4: `(${BYTE}\\.){3}${BYTE}`,
  ipv6: '([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}',
  duration: `P((${DAYS})(${HOURS})?|${HOURS}|${SPAN}W)`,
  hostname: `(${LABEL}\\.){0,4}${LABEL}`,
}
export const FORMAT_PATTERNS: ReadonlySet<unknown> = new Set(Object.values(FORMATS).map((text) => `^${text}$`))

/** The longest text of any of these formats, and the shortest of each. */
const LONGEST = 1000
const shortest = (format: string) => ({ hostname: 1, duration: 3 })[format] ?? 5

/** @param isUsable tells whether the library takes an expression */
export function rewritten(root: object, isUsable: (pattern: string) => boolean): object {
  const resolve = (part: unknown): unknown => {
    const keys = isObject(part) && typeof part.$ref === 'string' ? part.$ref.split('/') : []
    if (keys[0] !== '#') return part
    return keys.slice(1).reduce<unknown>((place, key) => (isObject(place) ? place[key] : undefined), root)
  }
  const write = (part: unknown): unknown => {
    if (Array.isArray(part)) return part.map(write)
    if (!isObject(part)) return part
    const { discriminator, propertyNames, ...kept } = part as Part
    const names = propertyNames
    const isAnyName = names === undefined || JSON.stringify(names) === '{"type":"string"}'
    const plain = ofFormat(isAnyName ? kept : { ...kept, propertyNames: names }, isUsable)
    const { oneOf, ...beside } = plain
    if (Array.isArray(oneOf) && beside.anyOf === undefined && excludeEachOther(oneOf.map(resolve))) {
      return write({ ...beside, anyOf: oneOf })
    }
    return withParts(joined(plain, resolve), write)
  }
  return write(root) as object
}

/** The part with each schema inside of it changed. */
export function withParts(part: Part, change: (part: unknown) => unknown): Part {
  const changed = ([key, value]: [string, unknown]) => {
    // Keywords whose values are not schemas.
    if (['enum', 'const', 'required', 'default', 'examples'].includes(key)) return [key, value]
    if (!isObject(value) || !['properties', '$defs', 'definitions'].includes(key)) return [key, change(value)]
    return [key, Object.fromEntries(Object.entries(value).map(([name, nested]) => [name, change(nested)]))]
  }
  return Object.fromEntries(Object.entries(part).map(changed))
}

function ofFormat(part: Part, isUsable: (pattern: string) => boolean): Part {
  const { format, ...plain } = part
  const { pattern, minLength = 0, maxLength = LONGEST, ...rest } = plain
  const expression = typeof format === 'string' && Object.hasOwn(FORMATS, format) ? FORMATS[format] : undefined
  if (expression === undefined) return part
  // An expression beside the format says more, as Zod's do.
  if (typeof pattern === 'string' && isUsable(pattern)) return plain
  if (Number(minLength) > shortest(format as string) || Number(maxLength) < LONGEST) return part
  return { ...rest, type: 'string', pattern: `^${expression}$` }
}

/** True if no text fits two of the branches: they differ in type, or in a value that both need. */
function excludeEachOther(branches: readonly unknown[]): boolean {
  return branches.every((a, i) => branches.slice(i + 1).every((b) => isObject(a) && isObject(b) && differ(a, b)))
}

function differ(a: Part, b: Part): boolean {
  const values = (part: Part) => (part.const !== undefined ? [part.const] : (part.enum as unknown[] | undefined))
  const areApart = (first: unknown[] | undefined, second: unknown[] | undefined) => {
    const texts = second?.map((value) => JSON.stringify(value))
    return first !== undefined && texts !== undefined && !first.some((value) => texts.includes(JSON.stringify(value)))
  }
  const types = [a, b].map(({ type }) => (type === undefined ? undefined : [type].flat()))
  const isNumber = (list: unknown[] | undefined) => list?.some((type) => type === 'integer' || type === 'number')
  if (areApart(types[0], types[1]) && !(isNumber(types[0]) && isNumber(types[1]))) return true
  if (areApart(values(a), values(b))) return true
  const [first, second] = [a, b].map(({ properties }) => (isObject(properties) ? properties : {}))
  return [a.required ?? []].flat().some((name) => {
    const [firstValue, secondValue] = [first[name as string], second[name as string]]
    return (
      [b.required ?? []].flat().includes(name) &&
      isObject(firstValue) &&
      isObject(secondValue) &&
      differ(firstValue, secondValue)
    )
  })
}

/** Joins the objects of allOf, and a reference that stands alone in it. */
function joined(part: Part, resolve: (part: unknown) => unknown): Part {
  const { allOf, ...beside } = part
  if (!Array.isArray(allOf)) return part
  if (allOf.length === 1 && beside.properties === undefined) return { ...beside, ...(allOf[0] as Part) }
  const parts = [beside, ...allOf.map(resolve)]
  const isPlain = (of: unknown): of is Part => {
    return isObject(of) && Object.keys(of).every((key) => JOINED.has(key)) && (of.type ?? 'object') === 'object'
  }
  const known = parts.filter(isPlain)
  const names = known.flatMap(({ properties }) => Object.keys(properties ?? {}))
  if (known.length < parts.length || new Set(names).size < names.length) return part
  const required = known.flatMap((of) => (of.required as string[] | undefined) ?? [])
  const closed = known.some(({ additionalProperties }) => additionalProperties === false)
  return {
    ...beside,
    type: 'object',
    properties: Object.fromEntries(known.flatMap(({ properties }) => Object.entries(properties ?? {}))),
    required: [...new Set(required)],
    ...(closed && { additionalProperties: false }),
  }
}

const JOINED = new Set([
  ...['type', 'properties', 'required', 'additionalProperties', 'title', 'description', 'default', 'examples'],
  ...['$defs', 'definitions', '$schema'],
])
