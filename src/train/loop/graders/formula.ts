// The formulas of `multi` graders: numbers, names, + - * / ^, parentheses and a few functions. They are parsed here and
// not evaluated as code, because strangers may have written them.

import { ConfigError } from '../../../core/base/errors.js'

export type Formula = (read: (name: string) => number) => number

const FUNCTIONS: Readonly<Record<string, (...values: number[]) => number>> = {
  min: Math.min,
  max: Math.max,
  abs: Math.abs,
  floor: Math.floor,
  ceil: Math.ceil,
  exp: Math.exp,
  sqrt: Math.sqrt,
  log: Math.log,
}
/** Functions of any number of values; the others take one. */
const OF_MANY = ['min', 'max']

const OPERATORS: Readonly<Record<string, (a: number, b: number) => number>> = {
  '+': (a, b) => a + b,
  '-': (a, b) => a - b,
  '*': (a, b) => a * b,
  '/': (a, b) => a / b,
}

const MOST_CHARACTERS = 2000
const DEEPEST = 100
const TOKEN = /\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|([-+*/^(),]))/y

/**
 * Parses a formula. As in Python, ^ binds to the right and tighter than a sign before it. Throws ConfigError at the
 * first fault, with its place.
 */
export function parseFormula(text: string, names: readonly string[], where: string): Formula {
  const fail = (what: string, hint?: string): never => {
    throw new ConfigError({ where, what, got: JSON.stringify(text.slice(0, 200)), ...(hint && { hint }) })
  }
  if (text.length > MOST_CHARACTERS) fail(`longer than ${MOST_CHARACTERS} characters`)
  const tokens: { readonly text: string; readonly kind: 'number' | 'name' | 'sign'; readonly at: number }[] = []
  const length = text.trimEnd().length
  for (TOKEN.lastIndex = 0; TOKEN.lastIndex < length; ) {
    const start = TOKEN.lastIndex
    const found = TOKEN.exec(text)
    if (found === null) return fail(`not a formula at character ${start + 1}`)
    const [, number, name, sign] = found
    tokens.push({
      text: number ?? name ?? sign,
      kind: number ? 'number' : name ? 'name' : 'sign',
      at: TOKEN.lastIndex - (number ?? name ?? sign).length,
    })
  }
  let next = 0
  let depth = 0
  const isNext = (...signs: readonly string[]) => tokens[next]?.kind === 'sign' && signs.includes(tokens[next].text)
  const take = () => tokens[next++].text
  const expect = (sign: string) => {
    if (!isNext(sign)) fail(`${sign} is missing at character ${(tokens[next]?.at ?? length) + 1}`)
    next++
  }
  const nested = <T>(parse: () => T): T => {
    if (++depth > DEEPEST) fail(`nested deeper than ${DEEPEST}`)
    const value = parse()
    depth--
    return value
  }
  const chain = (signs: readonly string[], part: () => Formula): Formula => {
    let all = part()
    while (isNext(...signs)) {
      const [operator, left, right] = [OPERATORS[take()], all, part()]
      all = (read) => operator(left(read), right(read))
    }
    return all
  }
  const sum = (): Formula => nested(() => chain(['+', '-'], () => chain(['*', '/'], signed)))
  const signed = (): Formula =>
    nested(() => {
      if (!isNext('-', '+')) return power()
      const factor = take() === '-' ? -1 : 1
      const value = signed()
      return (read) => factor * value(read)
    })
  const power = (): Formula => {
    const base = value()
    if (!isNext('^')) return base
    next++
    const exponent = signed()
    return (read) => base(read) ** exponent(read)
  }
  const value = (): Formula => {
    const token = tokens[next]
    if (token?.kind === 'number') {
      const number = Number(take())
      return () => number
    }
    if (token?.kind === 'name') {
      const name = take()
      if (isNext('(')) return call(name)
      if (!names.includes(name))
        fail(`it names the grader ${name}, which is not there`, `There are ${names.join(', ')}`)
      return (read) => read(name)
    }
    expect('(')
    const inner = sum()
    expect(')')
    return inner
  }
  const call = (name: string): Formula => {
    const known = Object.keys(FUNCTIONS)
    if (!known.includes(name)) fail(`there is no function ${name}`, `There are ${known.join(', ')}`)
    next++
    const values = [sum()]
    for (; isNext(','); values.push(sum())) next++
    expect(')')
    if (values.length > 1 && !OF_MANY.includes(name)) fail(`${name} takes one value`)
    return (read) => FUNCTIONS[name](...values.map((argument) => argument(read)))
  }
  const formula = sum()
  if (next < tokens.length) fail(`not expected at character ${tokens[next].at + 1}: ${tokens[next].text}`)
  return formula
}
