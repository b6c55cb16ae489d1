// Translates Python's regular expressions (re of 3.11), with which adapter configs choose modules, into JavaScript's.
// They may come from strangers and JavaScript's engine backtracks, so the translation also estimates how long a match
// can take.

export class ExpressionError extends Error {}

/** Nobody writes longer expressions, and they would take long to compile. */
const MAX_LENGTH = 65536
const MAX_DEPTH = 100
/** The most ways that a match may have to try. JavaScript's engine takes seconds for them, minutes at worst. */
const MAX_WAYS = 1e8
/** Alternatives in an expression that count as one. */
const FEW_OPTIONS = 32

const QUANTIFIER = /([*+?])|\{(\d*)(?:(,)(\d*))?\}(?<!\{\})/y
const CONTROLS: Readonly<Record<string, number>> = { a: 7, b: 8, t: 9, n: 10, v: 11, f: 12, r: 13 }
const CLASSES = {
  d: '\\p{Nd}',
  w: '\\p{L}\\p{N}_',
  s: '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000',
}
const ASCII_CLASSES = { d: '0-9', w: '0-9A-Za-z_', s: '\\t-\\r\\x1c-\\x20' }

/** A part, translated. On n characters there are at most `ways` · C(n + loops, loops) ways to match it. */
interface Part {
  readonly source: string
  readonly ways: number
  readonly loops: number
  /** The text that the part matches, if it can match only one. */
  readonly text?: string
  /** True for a position such as `^`, which matches no characters and cannot be repeated. */
  readonly isPlace?: boolean
}

/** A Python expression, with JavaScript's source before and after it. */
export class Expression {
  readonly #regExp: RegExp
  readonly #ways: number
  readonly #loops: number

  /** Throws ExpressionError if Python cannot compile the pattern, or if it is not supported here. */
  constructor(pattern: string, before = '', after = '') {
    if (pattern.length > MAX_LENGTH) throw new ExpressionError(`longer than ${MAX_LENGTH} characters`)
    // Matches of nothing are repeated too, as often as nested counts say.
    const counts = [...pattern.matchAll(/\{(\d*),?(\d*)\}/g)].map(([, low, high]) => Number(high || low || 1))
    if (counts.reduce((product, count) => product * Math.max(1, count), 1) > MAX_WAYS) {
      throw new ExpressionError('its counts are too large: it could take hours to match')
    }
    const translation = new Translation(pattern)
    const { source, ways, loops } = translation.parse()
    this.#ways = ways * Math.ceil(pattern.split('|').length / FEW_OPTIONS)
    this.#loops = loops + (before === '' ? 0 : 1)
    try {
      this.#regExp = new RegExp(`^${before}(?:${source})${after}`, translation.isCaseless ? 'iu' : 'u')
    } catch (cause) {
      throw new ExpressionError('Python cannot read it, or it is too large', { cause })
    }
  }

  /** Matches from the start of the text. Throws ExpressionError if that could take longer than minutes. */
  exec(text: string): RegExpExecArray | null {
    let total = this.#ways
    for (let i = 1; i <= this.#loops && text.length > 0 && total <= MAX_WAYS; i++) total *= (text.length + i) / i
    if (total > MAX_WAYS) {
      throw new ExpressionError('it could take hours to match, because of repeats inside repeats or too many of them')
    }
    return this.#regExp.exec(text)
  }
}

class Translation {
  isCaseless = false
  #isMultiline = false
  #isDotAll = false
  #classes: Readonly<Record<string, string>> = CLASSES
  #at = 0
  #depth = 0
  readonly #names = new Set<string>()

  constructor(private readonly pattern: string) {}

  parse(): Part {
    const flags = this.#take(/\(\?([aimsuxL]+)\)/y)
    if (flags !== undefined) {
      if (/[xL]/.test(flags[1])) throw new ExpressionError(`the flags ${flags[1]}`)
      this.isCaseless = flags[1].includes('i')
      this.#isMultiline = flags[1].includes('m')
      this.#isDotAll = flags[1].includes('s')
      if (flags[1].includes('a')) this.#classes = ASCII_CLASSES
    }
    const result = this.#choice()
    if (this.#at < this.pattern.length) throw new ExpressionError('a closing parenthesis without an opening one')
    return result
  }

  /** Consumes what a sticky expression matches here. */
  #take(expected: RegExp): RegExpExecArray | undefined {
    expected.lastIndex = this.#at
    const match = expected.exec(this.pattern)
    this.#at += match?.[0].length ?? 0
    return match ?? undefined
  }

  #choice(): Part {
    if (++this.#depth > MAX_DEPTH) throw new ExpressionError('groups nested too deep')
    const options = [this.#sequence()]
    while (this.#take(/\|/y)) options.push(this.#sequence())
    this.#depth--
    if (options.length === 1) return options[0]
    const texts = options.flatMap(({ text }) => text ?? [])
    return {
      source: options.map(({ source }) => source).join('|'),
      ways: texts.length === options.length ? mostPrefixes(texts) : options.reduce((sum, { ways }) => sum + ways, 0),
      loops: Math.max(...options.map(({ loops }) => loops)),
    }
  }

  #sequence(): Part {
    const parts: Part[] = []
    while (this.#at < this.pattern.length && !'|)'.includes(this.pattern[this.#at])) parts.push(this.#quantified())
    const texts = parts.flatMap(({ text }) => text ?? [])
    return {
      source: parts.map(({ source }) => source).join(''),
      ways: parts.reduce((product, { ways }) => product * ways, 1),
      loops: parts.reduce((sum, { loops }) => sum + loops, 0),
      ...(texts.length === parts.length ? { text: texts.join('') } : {}),
    }
  }

  #quantified(): Part {
    const item = this.#atom()
    const quantifier = this.#take(QUANTIFIER)
    if (quantifier === undefined) return item
    const [, sign, low, comma, high] = quantifier
    const min = sign === undefined ? Number(low) : sign === '+' ? 1 : 0
    const last =
      sign === undefined
        ? comma === undefined
          ? min
          : Number(high || Number.POSITIVE_INFINITY)
        : sign === '?'
          ? 1
          : Number.POSITIVE_INFINITY
    if (item.isPlace === true || last < min) throw new ExpressionError(`a wrong quantifier ${quantifier[0]}`)
    const isLazy = this.#take(/\?/y) !== undefined
    if (this.#take(QUANTIFIER)) throw new ExpressionError('a quantifier after a quantifier, or a possessive one')
    const source = `${item.source}{${min},${last === Number.POSITIVE_INFINITY ? '' : last}}${isLazy ? '?' : ''}`
    if (item.ways === 1 && item.loops === 0) {
      const isEndless = last === Number.POSITIVE_INFINITY
      return { source, ways: isEndless ? 1 : last - min + 1, loops: isEndless ? 1 : 0 }
    }
    const ways = (item.ways + (min === last ? 0 : 1)) ** last
    return { source, ways, loops: last === Number.POSITIVE_INFINITY ? 0 : item.loops * last }
  }

  #atom(): Part {
    if (this.#take(QUANTIFIER)) throw new ExpressionError('nothing to repeat')
    if (this.#take(/\(/y)) return this.#group()
    if (this.#take(/\./y)) return character(this.#isDotAll ? '[^]' : '[^\\n]')
    if (this.#take(/\^/y)) return place(this.#isMultiline ? '(?:^|(?<=\\n))' : '^')
    if (this.#take(/\$/y)) return place(this.#isMultiline ? '(?=\\n|$)' : '(?=\\n?$)')
    if (this.#take(/\[/y)) return character(this.#set())
    const escaped = this.#take(/\\([AZbB])/y)
    if (escaped !== undefined) {
      const word = `[${this.#classes.w}]`
      if (escaped[1] === 'A') return place('^')
      if (escaped[1] === 'Z') return place('$')
      if (escaped[1] === 'b') return place(`(?:(?<=${word})(?!${word})|(?<!${word})(?=${word}))`)
      return place(`(?!^$)(?:(?<=${word})(?=${word})|(?<!${word})(?!${word}))`)
    }
    const code = this.#code()
    if (typeof code === 'string') return character(code)
    const text = String.fromCodePoint(code)
    return { ...character(literal(code)), text: this.isCaseless ? text.toLowerCase() : text }
  }

  #group(): Part {
    if (this.#take(/\?#[^)]*\)/y)) return { source: '', ways: 1, loops: 0, text: '', isPlace: true }
    if (this.#take(/\?P=/y)) throw new ExpressionError('a reference to a group')
    const look = this.#take(/\?<?[=!]/y)
    const name = look ?? this.#take(/\?P<([\p{L}_][\p{L}\p{N}_]*)>|\?:/uy)
    if (name === undefined && this.pattern[this.#at] === '?') {
      throw new ExpressionError(`a group that begins with (${this.pattern.slice(this.#at, this.#at + 3)}`)
    }
    if (name?.[1] !== undefined) {
      if (this.#names.has(name[1])) throw new ExpressionError(`two groups named ${name[1]}`)
      this.#names.add(name[1])
    }
    const { source, ...inside } = this.#choice()
    if (!this.#take(/\)/y)) throw new ExpressionError('an opening parenthesis without a closing one')
    if (look === undefined) return { source: `(?:${source})`, ...inside }
    // Python can repeat what looks around. JavaScript can repeat it in a group only.
    return { source: `(?:(${look[0]}${source}))`, ways: inside.ways, loops: inside.loops }
  }

  /** Reads a character or an escape: a code point, or the source of a class. */
  #code(): number | string {
    const hex = this.#take(/\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U(00(?:0\d|10)[0-9a-f]{4}))/iy)
    if (hex !== undefined) return Number.parseInt(hex[1] ?? hex[2] ?? hex[3], 16)
    const octal = this.#take(/\\(0[0-7]{0,2}|[1-3][0-7]{2})/y)
    if (octal !== undefined) return Number.parseInt(octal[1], 8)
    const kind = this.#take(/\\([dDwWsS])/y)?.[1]
    if (kind !== undefined) return `[${kind < 'a' ? '^' : ''}${this.#classes[kind.toLowerCase()]}]`
    const [, plain, escaped = plain] = this.#take(/([^\\])|\\([\s\S])/uy) ?? []
    if (escaped === undefined) throw new ExpressionError('it ends too early')
    if (plain !== undefined || !/[a-z0-9]/i.test(escaped)) return escaped.codePointAt(0)!
    if (/[1-9]/.test(escaped)) throw new ExpressionError('a reference to a group')
    if (!Object.hasOwn(CONTROLS, escaped)) throw new ExpressionError(`the escape \\${escaped}`)
    return CONTROLS[escaped]
  }

  #set(): string {
    const isNegative = this.#take(/\^/y) !== undefined
    let ranges = ''
    const classes: string[] = []
    for (let isFirst = true; isFirst || !this.#take(/\]/y); isFirst = false) {
      const low = this.#code()
      const high = this.#take(/-(?!\]|$)/y) ? this.#code() : low
      if (typeof low === 'string' && low === high) classes.push(low)
      else if (typeof low === 'string' || typeof high === 'string' || high < low)
        throw new ExpressionError('a wrong range')
      else ranges += low === high ? literal(low) : `${literal(low)}-${literal(high)}`
    }
    const all = [...(ranges === '' ? [] : [`[${ranges}]`]), ...classes].join('|')
    return isNegative ? `(?:(?!${all})[^])` : `(?:${all})`
  }
}

const character = (source: string): Part => ({ source, ways: 1, loops: 0 })
const place = (source: string): Part => ({ source, ways: 1, loops: 0, isPlace: true })
const literal = (code: number) => `\\u{${code.toString(16)}}`

/**
 * Returns how many of the texts can match at the same place: the length of the longest chain in which each text begins
 * with the text before it.
 */
function mostPrefixes(texts: readonly string[]): number {
  const chain: string[] = []
  let most = 0
  for (const text of [...texts].sort()) {
    while (chain.length > 0 && !text.startsWith(chain.at(-1)!)) chain.pop()
    most = Math.max(most, chain.push(text))
  }
  return most
}
