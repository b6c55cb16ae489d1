// Parses Python's regular expressions (the re module of 3.11) into trees. Adapter configs choose modules with them.
// They may come from strangers, so our own engine (expression.ts) runs them: it never takes exponential time.

import { firstOf } from '../../base/group.js'

export type CharacterTest = (code: number) => boolean

export type Expression =
  /** `code` is set if only a single character matches. */
  | { readonly kind: 'character'; readonly test: CharacterTest; readonly code?: number }
  | { readonly kind: 'sequence'; readonly items: readonly Expression[] }
  | { readonly kind: 'choice'; readonly options: readonly Expression[] }
  | {
      readonly kind: 'repeat'
      readonly item: Expression
      readonly min: number
      readonly max: number
      readonly isLazy: boolean
    }
  | { readonly kind: 'position'; readonly test: (text: readonly number[], at: number) => boolean }
  | { readonly kind: 'look'; readonly item: Expression; readonly isBehind: boolean; readonly isNegative: boolean }

export class ExpressionError extends Error {}

interface Flags {
  readonly isCaseless: boolean
  readonly isMultiline: boolean
  readonly isDotAll: boolean
  readonly isAscii: boolean
}

const MAX_DEPTH = 200
const LINE_FEED = 10
const FLAGS = /^\(\?([aiLmsux]+)\)/
const FLAG_GROUP = /^\(\?([aimsu]*)(?:-([ims]+))?:/
const QUANTIFIER = /^(?:([*+?])|\{(\d*)(?:(,)(\d*))?\})/
const HEX_ESCAPE = /^(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})/
const CONTROLS: Readonly<Record<string, number>> = { a: 7, b: 8, t: 9, n: 10, v: 11, f: 12, r: 13 }

/** Test for ASCII first: nearly all module names are. */
const ASCII_WORD = /[0-9A-Za-z_]/
const isDigit: CharacterTest = (code) => {
  return code < 128 ? code >= 48 && code <= 57 : /\p{Nd}/u.test(String.fromCodePoint(code))
}
const isWord: CharacterTest = (code) => {
  const character = String.fromCodePoint(code)
  return code < 128 ? ASCII_WORD.test(character) : /[\p{L}\p{N}]/u.test(character)
}
const isSpace: CharacterTest = (code) => {
  if (code < 128) return (code >= 9 && code <= 13) || (code >= 28 && code <= 32)
  return code === 0x85 || (/\s/.test(String.fromCodePoint(code)) && code !== 0xfeff)
}
const not =
  (test: CharacterTest): CharacterTest =>
  (code) =>
    !test(code)
const inAscii =
  (test: CharacterTest): CharacterTest =>
  (code) =>
    code < 128 && test(code)

/**
 * Parses a Python expression. Throws ExpressionError if Python could not compile it, or if it is not supported here.
 */
export function parseExpression(pattern: string): Expression {
  return new Parser(pattern).parse()
}

class Parser {
  #at = 0
  #depth = 0
  #flags: Flags = { isCaseless: false, isMultiline: false, isDotAll: false, isAscii: false }
  readonly #names = new Set<string>()

  constructor(private readonly text: string) {}

  parse(): Expression {
    const global = FLAGS.exec(this.text)
    if (global !== null) {
      if (/[xL]/.test(global[1])) throw new ExpressionError(`the flags ${global[1]}`)
      this.#flags = withFlags(this.#flags, global[1], '')
      this.#at = global[0].length
    }
    const result = this.#choice()
    if (this.#at < this.text.length) throw new ExpressionError('a closing parenthesis without an opening one')
    return result
  }

  #choice(): Expression {
    if (++this.#depth > MAX_DEPTH) throw new ExpressionError('groups nested too deep')
    const options = [this.#sequence()]
    while (this.#skip('|')) options.push(this.#sequence())
    this.#depth--
    if (options.length === 1) return options[0]
    // Alternatives with a common beginning, such as the names of a thousand layers, share it. They keep their order,
    // which decides which of them matches first.
    return factored(options.map((option) => (option.kind === 'sequence' ? option.items : [option])))
  }

  #sequence(): Expression {
    const items: Expression[] = []
    while (this.#at < this.text.length && this.text[this.#at] !== '|' && this.text[this.#at] !== ')') {
      const item = this.#atom()
      if (item !== undefined) items.push(this.#quantified(item))
    }
    return items.length === 1 ? items[0] : { kind: 'sequence', items }
  }

  #quantified(item: Expression): Expression {
    const quantifier = this.#quantifier()
    if (quantifier === undefined) return item
    if (item.kind === 'position') throw new ExpressionError('nothing to repeat')
    if (this.#skip('+')) throw new ExpressionError('a possessive quantifier')
    const isLazy = this.#skip('?')
    if (this.#quantifier() !== undefined) throw new ExpressionError('a quantifier after a quantifier')
    return { kind: 'repeat', item, ...quantifier, isLazy }
  }

  /** Consumes a quantifier if there is one. Braces that do not form a quantifier are ordinary characters. */
  #quantifier(): { min: number; max: number } | undefined {
    const match = QUANTIFIER.exec(this.text.slice(this.#at, this.#at + 40))
    if (match === null || match[0] === '{}') return undefined
    this.#at += match[0].length
    const [, sign, low, comma, high] = match
    if (sign !== undefined) return { min: sign === '+' ? 1 : 0, max: sign === '?' ? 1 : Number.POSITIVE_INFINITY }
    const min = Number(low || 0)
    const max = comma === undefined ? min : high === '' ? Number.POSITIVE_INFINITY : Number(high)
    if (max < min) throw new ExpressionError('a quantifier whose maximum is below its minimum')
    return { min, max }
  }

  #inside(openingLength: number): Expression {
    this.#at += openingLength
    const item = this.#choice()
    if (!this.#skip(')')) throw new ExpressionError('an opening parenthesis without a closing one')
    return item
  }

  #next(): number {
    const code = this.text.codePointAt(this.#at)
    if (code === undefined) throw new ExpressionError('it ends too early')
    this.#at += code > 0xffff ? 2 : 1
    return code
  }

  #skip(character: string): boolean {
    if (this.text[this.#at] !== character) return false
    this.#at++
    return true
  }

  #atom(): Expression | undefined {
    if (this.text[this.#at] === '(') return this.#group()
    if (this.#quantifier() !== undefined) throw new ExpressionError('nothing to repeat')
    const code = this.#next()
    const { isMultiline, isDotAll } = this.#flags
    switch (String.fromCodePoint(code)) {
      case '.':
        return { kind: 'character', test: isDotAll ? () => true : (tested) => tested !== LINE_FEED }
      case '^':
        return { kind: 'position', test: (text, at) => at === 0 || (isMultiline && text[at - 1] === LINE_FEED) }
      case '$':
        return {
          kind: 'position',
          test: (text, at) => {
            return at === text.length || (text[at] === LINE_FEED && (isMultiline || at === text.length - 1))
          },
        }
      case '[':
        return this.#character(this.#set())
      case '\\':
        return this.#escape()
      default:
        return this.#literal(code)
    }
  }

  #character(test: CharacterTest): Expression {
    return { kind: 'character', test: this.#flags.isCaseless ? caseless(test) : test }
  }

  #literal(code: number): Expression {
    const test: CharacterTest = (tested) => tested === code
    return this.#flags.isCaseless ? this.#character(test) : { kind: 'character', test, code }
  }

  #group(): Expression | undefined {
    const rest = this.text.slice(this.#at, this.#at + 300)
    const comment = /^\(\?#[^)]*\)/.exec(rest)
    if (comment !== null) {
      this.#at += comment[0].length
      return undefined
    }
    if (rest.startsWith('(?P=')) throw new ExpressionError('a reference to a group')
    const look = /^\(\?(<?)([=!])/.exec(rest)
    if (look !== null) {
      const item = this.#inside(look[0].length)
      return { kind: 'look', item, isBehind: look[1] === '<', isNegative: look[2] === '!' }
    }
    const flagged = FLAG_GROUP.exec(rest)
    if (flagged !== null) {
      const outer = this.#flags
      this.#flags = withFlags(outer, flagged[1], flagged[2] ?? '')
      const item = this.#inside(flagged[0].length)
      this.#flags = outer
      return { kind: 'sequence', items: [item] }
    }
    const named = /^\(\?P<([\p{L}_]\w*)>/u.exec(rest)
    if (named === null && rest.startsWith('(?'))
      throw new ExpressionError(`a group that begins with ${rest.slice(0, 4)}`)
    if (named !== null) {
      if (this.#names.has(named[1])) throw new ExpressionError(`two groups named ${named[1]}`)
      this.#names.add(named[1])
    }
    return { kind: 'sequence', items: [this.#inside(named?.[0].length ?? 1)] }
  }

  #escape(): Expression {
    const rest = this.text.slice(this.#at, this.#at + 10)
    if (/^[1-9]/.test(rest) && !/^[0-3][0-7]{2}/.test(rest)) throw new ExpressionError('a reference to a group')
    const word = this.#flags.isAscii ? inAscii(isWord) : isWord
    const isBoundary = (text: readonly number[], at: number) => {
      return (at > 0 && word(text[at - 1])) !== (at < text.length && word(text[at]))
    }
    const positions: Readonly<Record<string, (text: readonly number[], at: number) => boolean>> = {
      A: (_, at) => at === 0,
      Z: (text, at) => at === text.length,
      b: isBoundary,
      B: (text, at) => text.length > 0 && !isBoundary(text, at),
    }
    if (rest !== '' && Object.hasOwn(positions, rest[0])) {
      this.#at++
      return { kind: 'position', test: positions[rest[0]] }
    }
    const escaped = this.#escapedCode()
    return typeof escaped === 'number' ? this.#literal(escaped) : this.#character(escaped)
  }

  #escapedCode(): number | CharacterTest {
    const rest = this.text.slice(this.#at, this.#at + 10)
    const hex = HEX_ESCAPE.exec(rest)
    const octal = /^(?:0[0-7]{0,2}|[1-3][0-7]{2})/.exec(rest)
    if (hex !== null || octal !== null) {
      const spelling = (hex ?? octal)![0]
      this.#at += spelling.length
      const code = hex === null ? Number.parseInt(spelling, 8) : Number.parseInt(spelling.slice(1), 16)
      if (code > 0x10ffff) throw new ExpressionError(`no character \\${spelling}`)
      return code
    }
    const code = this.#next()
    const name = String.fromCodePoint(code)
    const classes: Readonly<Record<string, CharacterTest>> = { d: isDigit, w: isWord, s: isSpace }
    const known = Object.hasOwn(classes, name.toLowerCase()) ? classes[name.toLowerCase()] : undefined
    if (known !== undefined) {
      const matching = this.#flags.isAscii ? inAscii(known) : known
      return name === name.toLowerCase() ? matching : not(matching)
    }
    if (Object.hasOwn(CONTROLS, name)) return CONTROLS[name]
    if (/[a-zA-Z0-9]/.test(name)) throw new ExpressionError(`the escape \\${name}`)
    return code
  }

  #set(): CharacterTest {
    const isNegative = this.#skip('^')
    const ranges: [low: number, high: number][] = []
    const classes = new Map<string, CharacterTest>()
    for (let isFirst = true; isFirst || this.text[this.#at] !== ']'; isFirst = false) {
      const at = this.#at
      const low = this.#setItem()
      if (typeof low !== 'number') classes.set(this.text.slice(at, this.#at), low)
      const isRange = this.text[this.#at] === '-' && ![']', undefined].includes(this.text[this.#at + 1])
      if (!isRange) {
        if (typeof low === 'number') ranges.push([low, low])
        continue
      }
      this.#at++
      const high = this.#setItem()
      if (typeof low !== 'number' || typeof high !== 'number' || high < low) throw new ExpressionError('a wrong range')
      ranges.push([low, high])
    }
    this.#at++
    const isListed = inRanges(ranges)
    const others = [...classes.values()]
    const isIn: CharacterTest = (code) => isListed(code) || others.some((test) => test(code))
    const folded = this.#flags.isCaseless ? caseless(isIn) : isIn
    return isNegative ? not(folded) : isIn
  }

  #setItem(): number | CharacterTest {
    const code = this.#next()
    return code === '\\'.charCodeAt(0) ? this.#escapedCode() : code
  }
}

/** Tests for ranges by binary search, so a set of a thousand characters costs little more than a set of two. */
function inRanges(ranges: readonly (readonly [low: number, high: number])[]): CharacterTest {
  const sorted: [low: number, high: number][] = []
  for (const [low, high] of [...ranges].sort((a, b) => a[0] - b[0])) {
    const last = sorted.at(-1)
    if (last !== undefined && low <= last[1] + 1) last[1] = Math.max(last[1], high)
    else sorted.push([low, high])
  }
  return (code) => {
    const place = firstOf(sorted.length, (i) => code <= sorted[i][1])
    return place < sorted.length && code >= sorted[place][0]
  }
}

function withFlags(flags: Flags, on: string, off: string): Flags {
  const has = (flag: string, before: boolean) => (before || on.includes(flag)) && !off.includes(flag)
  return {
    isCaseless: has('i', flags.isCaseless),
    isMultiline: has('m', flags.isMultiline),
    isDotAll: has('s', flags.isDotAll),
    isAscii: on.includes('a') || (flags.isAscii && !on.includes('u')),
  }
}

function caseless(test: CharacterTest): CharacterTest {
  return (code) => {
    const character = String.fromCodePoint(code)
    const cases = [character, character.toLowerCase(), character.toUpperCase()]
    // Skip ß, which becomes two characters in upper case: Python does not match them.
    return cases.some((variant) => [...variant].length === 1 && test(variant.codePointAt(0)!))
  }
}

function factored(options: readonly (readonly Expression[])[]): Expression {
  const result: Expression[] = []
  for (let at = 0; at < options.length; ) {
    let end = at + 1
    while (end < options.length && isAlike(options[at][0], options[end][0])) end++
    const run = options.slice(at, end)
    const length = end - at === 1 ? run[0].length : commonLength(run)
    const rests = run.map((items) => items.slice(length))
    const items = [...run[0].slice(0, length), ...(end - at === 1 ? [] : [factored(rests)])]
    result.push(items.length === 1 ? items[0] : { kind: 'sequence', items })
    at = end
  }
  return result.length === 1 ? result[0] : { kind: 'choice', options: result }
}

function commonLength(options: readonly (readonly Expression[])[]): number {
  const [first] = options
  let length = 0
  while (length < first.length && options.every((items) => isAlike(first[length], items[length]))) length++
  return length
}

function isAlike(a: Expression | undefined, b: Expression | undefined): boolean {
  return a?.kind === 'character' && b?.kind === 'character' && a.code !== undefined && a.code === b.code
}
