// Parses regular expressions into trees, in two dialects: Python's (the re module of 3.11), in which adapter configs
// choose modules, and JavaScript's, into which @huggingface/tokenizers turns the expressions of a tokenizer.json. Both
// may come from strangers. Python's are run by our own engine, which never takes exponential time. JavaScript's are
// refused if they could (cost.ts).

import { firstOf } from '../group.js'

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
  | { readonly kind: 'group'; readonly number: number; readonly item: Expression }
  | { readonly kind: 'reference'; readonly number: number; readonly isCaseless: boolean }
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

/** Nearly all module names are ASCII, so it is tested first. */
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
  return new PythonParser(pattern).parse()
}

/** Parses a JavaScript expression. All positions, such as ^ and \\b, are treated alike: they may always match. */
export function parseRegExp({ source, flags }: RegExp): Expression {
  return new JavaScriptParser(source, flags.replace(/[gy]/g, '')).parse()
}

abstract class Parser {
  protected readonly text: string
  protected at = 0
  #depth = 0

  constructor(pattern: string) {
    this.text = pattern
  }

  protected abstract atom(): Expression | undefined

  parse(): Expression {
    const result = this.#choice()
    if (this.at < this.text.length) throw new ExpressionError('a closing parenthesis without an opening one')
    return result
  }

  #choice(): Expression {
    if (++this.#depth > MAX_DEPTH) throw new ExpressionError('groups nested too deep')
    const options = [this.#sequence()]
    while (this.skip('|')) options.push(this.#sequence())
    this.#depth--
    if (options.length === 1) return options[0]
    // Alternatives with a common beginning, such as the names of a thousand layers, share it. They keep their order,
    // which decides which of them matches first.
    return factored(options.map((option) => (option.kind === 'sequence' ? option.items : [option])))
  }

  #sequence(): Expression {
    const items: Expression[] = []
    while (this.at < this.text.length && this.text[this.at] !== '|' && this.text[this.at] !== ')') {
      const item = this.atom()
      if (item !== undefined) items.push(this.#quantified(item))
    }
    return items.length === 1 ? items[0] : { kind: 'sequence', items }
  }

  #quantified(item: Expression): Expression {
    const quantifier = this.quantifier()
    if (quantifier === undefined) return item
    if (item.kind === 'position') throw new ExpressionError('nothing to repeat')
    if (this.skip('+')) throw new ExpressionError('a possessive quantifier')
    const isLazy = this.skip('?')
    if (this.quantifier() !== undefined) throw new ExpressionError('a quantifier after a quantifier')
    return { kind: 'repeat', item, ...quantifier, isLazy }
  }

  /** Consumes a quantifier if there is one. Braces that do not form a quantifier are ordinary characters. */
  protected quantifier(): { min: number; max: number } | undefined {
    const match = QUANTIFIER.exec(this.text.slice(this.at, this.at + 40))
    if (match === null || match[0] === '{}') return undefined
    this.at += match[0].length
    const [, sign, low, comma, high] = match
    if (sign !== undefined) return { min: sign === '+' ? 1 : 0, max: sign === '?' ? 1 : Number.POSITIVE_INFINITY }
    const min = Number(low || 0)
    const max = comma === undefined ? min : high === '' ? Number.POSITIVE_INFINITY : Number(high)
    if (max < min) throw new ExpressionError('a quantifier whose maximum is below its minimum')
    return { min, max }
  }

  protected inside(openingLength: number): Expression {
    this.at += openingLength
    const item = this.#choice()
    if (!this.skip(')')) throw new ExpressionError('an opening parenthesis without a closing one')
    return item
  }

  protected next(): number {
    const code = this.text.codePointAt(this.at)
    if (code === undefined) throw new ExpressionError('it ends too early')
    this.at += code > 0xffff ? 2 : 1
    return code
  }

  protected skip(character: string): boolean {
    if (this.text[this.at] !== character) return false
    this.at++
    return true
  }
}

class PythonParser extends Parser {
  #flags: Flags = { isCaseless: false, isMultiline: false, isDotAll: false, isAscii: false }
  #groups = 0
  readonly #closed = new Set<number>()
  readonly #names = new Map<string, number>()

  override parse(): Expression {
    const global = FLAGS.exec(this.text)
    if (global !== null) {
      if (/[xL]/.test(global[1])) throw new ExpressionError(`the flags ${global[1]}`)
      this.#flags = withFlags(this.#flags, global[1], '')
      this.at = global[0].length
    }
    return super.parse()
  }

  protected override atom(): Expression | undefined {
    if (this.text[this.at] === '(') return this.#group()
    if (this.quantifier() !== undefined) throw new ExpressionError('nothing to repeat')
    const code = this.next()
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
    const rest = this.text.slice(this.at, this.at + 300)
    const comment = /^\(\?#[^)]*\)/.exec(rest)
    if (comment !== null) {
      this.at += comment[0].length
      return undefined
    }
    const reference = /^\(\?P=(\w+)\)/.exec(rest)
    if (reference !== null) {
      this.at += reference[0].length
      return this.#reference(this.#names.get(reference[1]))
    }
    const look = /^\(\?(<?)([=!])/.exec(rest)
    if (look !== null) {
      const item = this.inside(look[0].length)
      return { kind: 'look', item, isBehind: look[1] === '<', isNegative: look[2] === '!' }
    }
    const flagged = FLAG_GROUP.exec(rest)
    if (flagged !== null) {
      const outer = this.#flags
      this.#flags = withFlags(outer, flagged[1], flagged[2] ?? '')
      const item = this.inside(flagged[0].length)
      this.#flags = outer
      return { kind: 'sequence', items: [item] }
    }
    const named = /^\(\?P<([\p{L}_]\w*)>/u.exec(rest)
    if (named === null && rest.startsWith('(?'))
      throw new ExpressionError(`a group that begins with ${rest.slice(0, 4)}`)
    const number = ++this.#groups
    if (named !== null) {
      if (this.#names.has(named[1])) throw new ExpressionError(`two groups named ${named[1]}`)
      this.#names.set(named[1], number)
    }
    const item = this.inside(named?.[0].length ?? 1)
    this.#closed.add(number)
    return { kind: 'group', number, item }
  }

  #reference(number: number | undefined): Expression {
    if (number === undefined || !this.#closed.has(number))
      throw new ExpressionError('a reference to no group before it')
    return { kind: 'reference', number, isCaseless: this.#flags.isCaseless }
  }

  #escape(): Expression {
    const rest = this.text.slice(this.at, this.at + 10)
    const group = /^[1-9]\d?/.exec(rest)
    if (group !== null && !/^[0-3][0-7]{2}/.test(rest)) {
      this.at += group[0].length
      return this.#reference(Number(group[0]))
    }
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
      this.at++
      return { kind: 'position', test: positions[rest[0]] }
    }
    const escaped = this.#escapedCode()
    return typeof escaped === 'number' ? this.#literal(escaped) : this.#character(escaped)
  }

  #escapedCode(): number | CharacterTest {
    const rest = this.text.slice(this.at, this.at + 10)
    const hex = HEX_ESCAPE.exec(rest)
    const octal = /^(?:0[0-7]{0,2}|[1-3][0-7]{2})/.exec(rest)
    if (hex !== null || octal !== null) {
      const spelling = (hex ?? octal)![0]
      this.at += spelling.length
      const code = hex === null ? Number.parseInt(spelling, 8) : Number.parseInt(spelling.slice(1), 16)
      if (code > 0x10ffff) throw new ExpressionError(`no character \\${spelling}`)
      return code
    }
    const code = this.next()
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
    const isNegative = this.skip('^')
    const ranges: [low: number, high: number][] = []
    const classes = new Map<string, CharacterTest>()
    for (let isFirst = true; isFirst || this.text[this.at] !== ']'; isFirst = false) {
      const at = this.at
      const low = this.#setItem()
      if (typeof low !== 'number') classes.set(this.text.slice(at, this.at), low)
      const isRange = this.text[this.at] === '-' && ![']', undefined].includes(this.text[this.at + 1])
      if (!isRange) {
        if (typeof low === 'number') ranges.push([low, low])
        continue
      }
      this.at++
      const high = this.#setItem()
      if (typeof low !== 'number' || typeof high !== 'number' || high < low) throw new ExpressionError('a wrong range')
      ranges.push([low, high])
    }
    this.at++
    const isListed = inRanges(ranges)
    const others = [...classes.values()]
    const isIn: CharacterTest = (code) => isListed(code) || others.some((test) => test(code))
    const folded = this.#flags.isCaseless ? caseless(isIn) : isIn
    return isNegative ? not(folded) : isIn
  }

  #setItem(): number | CharacterTest {
    const code = this.next()
    return code === '\\'.charCodeAt(0) ? this.#escapedCode() : code
  }
}

/** Matches a character, an escape or a set. */
const CHARACTER =
  /(?:\\(?:[pP]\{[^}]*\}|u\{[0-9a-fA-F]+\}|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|c[A-Za-z]|[^bBk1-9])|\[(?:\\[\s\S]|[^\]\\])*\]|[^()|*+?\\^$])/uy
const GROUP = /\((?:\?(?:(<?)([=!])|<[^>]*>|[a-z]*(?:-[a-z]+)?:))?/y
const POSITION = /[\^$]|\\[bB]/y

class JavaScriptParser extends Parser {
  readonly #flags: string
  /** The tests by their source, so that equal characters share a test. */
  readonly #tests = new Map<string, CharacterTest>()

  constructor(source: string, flags: string) {
    super(source)
    this.#flags = flags
  }

  protected override atom(): Expression {
    const group = this.#find(GROUP)
    if (group !== null) {
      const item = this.inside(group[0].length)
      if (group[2] === undefined) return item
      return { kind: 'look', item, isBehind: group[1] === '<', isNegative: group[2] === '!' }
    }
    const position = this.#find(POSITION)
    if (position !== null) {
      this.at += position[0].length
      return { kind: 'position', test: () => true }
    }
    const character = this.#find(CHARACTER)
    if (character === null) throw new ExpressionError('a reference to a group')
    this.at += character[0].length
    return { kind: 'character', test: this.#testOf(character[0]) }
  }

  #find(expression: RegExp): RegExpExecArray | null {
    expression.lastIndex = this.at
    return expression.exec(this.text)
  }

  #testOf(source: string): CharacterTest {
    const known = this.#tests.get(source)
    if (known !== undefined) return known
    const expression = new RegExp(`^(?:${source})$`, this.#flags)
    const test: CharacterTest = (code) => expression.test(String.fromCodePoint(code))
    this.#tests.set(source, test)
    return test
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
    // In upper case, ß becomes two characters, and Python matches neither.
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
