// Tells whether a value fits a JSON schema, by all keywords that say something about values. Texts are kept to a part
// of them alone.

import { attempt } from '../../core/base/errors.js'
import { isObject } from '../../core/base/options.js'
import { fullMatch } from '../../lora/patterns/patterns.js'
import { placeOf } from './schemas.js'

type Check<T> = (value: T, limit: never, part: Readonly<Record<string, unknown>>, fits: Fit) => boolean
type Fit = (value: unknown, part: unknown) => boolean
type Members = Readonly<Record<string, unknown>>

/** A schema that refers to itself can ask for any number of comparisons. What comes after these counts as fitting. */
const [MOST_STEPS, MOST_DEPTH] = [50_000, 300]

const TYPES: Readonly<Record<string, (value: unknown) => boolean>> = {
  string: (value) => typeof value === 'string',
  number: (value) => typeof value === 'number',
  integer: Number.isInteger,
  boolean: (value) => typeof value === 'boolean',
  null: (value) => value === null,
  array: Array.isArray,
  object: isObject,
}

/** JSON with the names of each object in order: equal values have the same. */
const spelled = (value: unknown): string =>
  JSON.stringify(value, (_, nested) => (isObject(nested) ? Object.fromEntries(Object.entries(nested).sort()) : nested))

/** An expression that may take too long is not tried. */
const matches = (text: string, pattern: string) =>
  attempt(() => fullMatch(`[\\s\\S]*(?:${pattern})[\\s\\S]*`, 'pattern')(text)).value ?? true

const restOf = (value: Members, { properties = {}, patternProperties = {} }: Members) =>
  Object.entries(value).filter(([name]) => {
    const isMatched = Object.keys(patternProperties as object).some((pattern) => matches(name, pattern))
    return !Object.hasOwn(properties as object, name) && !isMatched
  })

const ANY: Readonly<Record<string, Check<unknown>>> = {
  type: (value, types) => [types].flat().some((type) => TYPES[type]?.(value)),
  enum: (value, values: unknown[]) => values.some((known) => spelled(known) === spelled(value)),
  const: (value, only) => spelled(value) === spelled(only),
  allOf: (value, parts: unknown[], _, fits) => parts.every((part) => fits(value, part)),
  anyOf: (value, parts: unknown[], _, fits) => parts.some((part) => fits(value, part)),
  oneOf: (value, parts: unknown[], _, fits) => parts.filter((part) => fits(value, part)).length === 1,
  not: (value, part, _, fits) => !fits(value, part),
  if: (value, part, { then: then_ = true, else: else_ = true }, fits) => fits(value, fits(value, part) ? then_ : else_),
}
const NUMBER: Readonly<Record<string, Check<number>>> = {
  minimum: (value, least) => value >= least,
  maximum: (value, most) => value <= most,
  exclusiveMinimum: (value, least) => value > least,
  exclusiveMaximum: (value, most) => value < most,
  multipleOf: (value, step) => Math.abs(value / step - Math.round(value / step)) < 1e-6,
}
const STRING: Readonly<Record<string, Check<string>>> = {
  minLength: (value, least) => [...value].length >= least,
  maxLength: (value, most) => [...value].length <= most,
  pattern: matches,
}
const LIST: Readonly<Record<string, Check<readonly unknown[]>>> = {
  minItems: (value, least) => value.length >= least,
  maxItems: (value, most) => value.length <= most,
  uniqueItems: (value, isUnique) => !isUnique || new Set(value.map(spelled)).size === value.length,
  prefixItems: (value, parts: unknown[], _, fits) =>
    value.slice(0, parts.length).every((item, i) => fits(item, parts[i])),
  items: (value, part, { prefixItems = [] }, fits) =>
    value.slice((prefixItems as unknown[]).length).every((item) => fits(item, part)),
  contains(value, part, { minContains = 1, maxContains = Number.POSITIVE_INFINITY }, fits) {
    const { length } = value.filter((item) => fits(item, part))
    return length >= (minContains as number) && length <= (maxContains as number)
  },
}
const OBJECT: Readonly<Record<string, Check<Members>>> = {
  required: (value, names: string[]) => names.every((name) => Object.hasOwn(value, name)),
  minProperties: (value, least) => Object.keys(value).length >= least,
  maxProperties: (value, most) => Object.keys(value).length <= most,
  properties: (value, parts: Members, _, fits) =>
    Object.entries(value).every(([name, item]) => !Object.hasOwn(parts, name) || fits(item, parts[name])),
  patternProperties: (value, parts: Members, _, fits) =>
    Object.entries(parts).every(([pattern, part]) =>
      Object.entries(value).every(([name, item]) => !matches(name, pattern) || fits(item, part)),
    ),
  additionalProperties: (value, part, beside, fits) => restOf(value, beside).every(([, item]) => fits(item, part)),
  propertyNames: (value, part, _, fits) => Object.keys(value).every((name) => fits(name, part)),
  dependentRequired: (value, needs: Record<string, string[]>) =>
    Object.entries(needs).every(([name, others]) => !(name in value) || others.every((other) => other in value)),
}

/** @param value undefined, as for text that is no JSON, fits nothing */
export function fitsSchema(value: unknown, schema: object): boolean {
  let [steps, depth] = [0, 0]
  const fits: Fit = (value, part) => {
    if (typeof part === 'boolean') return part
    if (!isObject(part) || ++steps > MOST_STEPS || depth > MOST_DEPTH) return true
    depth++
    const place = part.$ref === undefined ? undefined : placeOf(schema, part.$ref)
    const checks = {
      ...ANY,
      ...(typeof value === 'number' && NUMBER),
      ...(typeof value === 'string' && STRING),
      ...(Array.isArray(value) && LIST),
      ...(isObject(value) && OBJECT),
    } as Record<string, Check<unknown>>
    const isMet = ([key, limit]: [string, unknown]) => {
      try {
        return !Object.hasOwn(checks, key) || checks[key](value, limit as never, part, fits)
      } catch {
        // The keyword is not as JSON Schema has it, such as "required": true.
        return true
      }
    }
    const isFit = (place === undefined || fits(value, place)) && Object.entries(part).every(isMet)
    depth--
    return isFit
  }
  return value !== undefined && fits(value, schema)
}
