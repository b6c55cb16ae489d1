// Writes an EBNF grammar of xgrammar for values that are not JSON: https://xgrammar.mlc.ai/docs/

import { ConfigError } from '../../../core/base/errors.js'
import { isObject } from '../../../core/base/options.js'

interface Dialect {
  /** The name of the form, for errors. */
  readonly form: string
  write(value: unknown): string
  /** The rule of a text, and rules that it needs. */
  readonly text: string
  readonly more: readonly string[]
  key(name: string, depth: number): string
  /** The rule of a key that the schema does not name. */
  readonly anyKey: string | ((depth: number) => string)
  readonly separator: string
  readonly sorts?: (a: string, b: string) => number
  /** True if the arguments have no braces around them. */
  readonly isBare?: boolean
}

const NOTES = [
  'title',
  'description',
  'default',
  'examples',
  '$schema',
  '$id',
  '$comment',
  'strict',
  '$defs',
  'definitions',
]
/** The keywords of schemas that such a grammar holds. */
export const READ: ReadonlySet<string> = new Set([
  ...NOTES,
  'type',
  'enum',
  'const',
  'properties',
  'required',
  'additionalProperties',
  'items',
  'anyOf',
  '$ref',
])

const literal = (text: string) => JSON.stringify(text)

/**
 * @param root the schema of the arguments. Undefined: any object
 * @throws ConfigError if the schema has a keyword that such a grammar cannot hold
 */
export function grammarOf(root: object | undefined, dialect: Dialect): string {
  const { separator, write, key } = dialect
  const rules = new Map<string, string>()
  const names = new Map<unknown, string>()
  const next = literal(separator)
  const anyKey = (depth: number) => (typeof dialect.anyKey === 'string' ? dialect.anyKey : dialect.anyKey(depth))
  const add = (body: (name: string) => string, hint: string): string => {
    const name = `${hint}${rules.size}`
    rules.set(name, '')
    rules.set(name, body(name))
    return name
  }
  const resolve = (part: unknown): unknown => {
    const path = isObject(part) && typeof part.$ref === 'string' ? part.$ref : undefined
    if (path === undefined) return part
    return path
      .split('/')
      .slice(1)
      .reduce<unknown>((place, step) => (isObject(place) ? place[step] : undefined), root)
  }
  const value = (given: unknown, where: string): string => {
    const part = resolve(given)
    if (part === undefined || part === true || !isObject(part)) return 'any'
    const known = names.get(part)
    if (known !== undefined) return known
    return add((name) => {
      names.set(part, name)
      return alternatives(part, where).join(' | ')
    }, 'v')
  }
  const alternatives = (part: Readonly<Record<string, unknown>>, where: string): string[] => {
    const unread = Object.keys(part).find((name) => !READ.has(name))
    if (unread !== undefined) {
      const what = `calls in the form ${dialect.form} cannot be kept to this keyword`
      throw new ConfigError({ where: `${where}.${unread}`, what, expected: [...READ].join(', ') })
    }
    const fixed = part.const === undefined ? part.enum : [part.const]
    if (Array.isArray(fixed)) return fixed.map((each) => literal(write(each)))
    if (Array.isArray(part.anyOf)) return part.anyOf.map((each, i) => value(each, `${where}.anyOf[${i}]`))
    const types = part.type === undefined ? [part.properties === undefined ? 'any' : 'object'] : [part.type].flat()
    return types.map((type) => {
      if (type === 'string') return 'text'
      if (type === 'array') return list(value(part.items, `${where}.items`))
      if (type === 'object') return `"{" ${members(part, where, 1)} "}"`
      return `${type}`
    })
  }
  const list = (item: string) => `"[" (${item} (${next} ${item})*)? "]"`
  /** A rule for each property, with and without one before it. */
  const members = (part: Readonly<Record<string, unknown>>, where: string, depth: number): string => {
    const properties = isObject(part.properties) ? part.properties : undefined
    if (properties === undefined) return `(${anyKey(depth)} any (${next} ${anyKey(depth)} any)*)?`
    const required = Array.isArray(part.required) ? part.required : []
    const ordered = Object.keys(properties).sort(dialect.sorts ?? (() => 0))
    let rest = [add(() => '""', 'o'), add(() => '""', 'o')]
    for (const name of ordered.reverse()) {
      const member = `${literal(key(name, depth))} ${value(properties[name], `${where}.properties.${name}`)}`
      rest = [false, true].map((isLater, i) => {
        const written = `${isLater ? `${next} ` : ''}${member} ${rest[1]}`
        return add(() => (required.includes(name) ? written : `${written} | ${rest[i]}`), 'o')
      })
    }
    return rest[0]
  }
  const top = resolve(root ?? { type: 'object' })
  const body = isObject(top) ? members(top, 'parameters', dialect.isBare === true ? 0 : 1) : '""'
  return [
    `root ::= ${dialect.isBare === true ? body : `"{" ${body} "}"`}`,
    ...[...rules].map(([name, rule]) => `${name} ::= ${rule}`),
    `text ::= ${dialect.text}`,
    ...dialect.more,
    'integer ::= "-"? ("0" | [1-9] [0-9]*)',
    'number ::= integer ("." [0-9]+)? ([eE] [+-]? [0-9]+)?',
    `boolean ::= ${literal(write(true))} | ${literal(write(false))}`,
    `null ::= ${literal(write(null))}`,
    `any ::= text | number | boolean | null | ${list('any')} | "{" (${anyKey(1)} any (${next} ${anyKey(1)} any)*)? "}"`,
  ].join('\n')
}
