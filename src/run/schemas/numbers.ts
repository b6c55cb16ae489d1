// Writes numbers between bounds, and multiples of a step, as rules over digits of an EBNF grammar. The library's own
// ranges are not exact: with a maximum of 1 it allows 1.5, with a minimum of 0.1 it allows "0,1".

/** The most digits of any number before the point and after it. */
const [WHOLE, PART] = [19, 17]

const EXPONENT = '[eE] [+-]? ([0-9]{1,2} | "1" [0-9]{2} | "2" [0-8] [0-9])'

/** Numbers without bounds. With these exponents none is infinite. */
export const ANY_INTEGER = `"0" | "-"? [1-9] [0-9]{0,${WHOLE - 1}}`
export const ANY_NUMBER = `"-"? ("0" | [1-9] [0-9]{0,${WHOLE - 1}}) ("." [0-9]{1,${PART}})? (${EXPONENT})?`

export const NUMBERS = ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf'] as const

export type NumberPart = Readonly<Partial<Record<(typeof NUMBERS)[number], number>>>

/** A step is a multiple of `modulus` when it is written with `places` digits after the point. */
interface Step {
  readonly modulus: bigint
  /** Negative: every multiple ends with so many zeros. */
  readonly places: number
}

/** Returns undefined for steps that are not 1, 2, 4, 5 or 25 times a power of ten. */
export function stepOf(multipleOf: number): Step | undefined {
  if (!(multipleOf > 0)) return undefined
  for (let places = 1 - WHOLE; places <= PART; places++) {
    const modulus = scaled(multipleOf, places, 'down')
    if (modulus === 0n || modulus !== scaled(multipleOf, places, 'up')) continue
    return 100n % modulus === 0n ? { modulus, places } : undefined
  }
  return undefined
}

/** The decimal that is printed for a number, times 10 to the power of `places`, as an integer. */
function scaled(value: number, places: number, round: 'up' | 'down'): bigint {
  const [, sign, whole, part = '', exponent = '0'] = /^(-?)(\d+)(?:\.(\d+))?(?:e([+-]\d+))?$/.exec(String(value))!
  const digits = BigInt(sign + whole + part)
  const shift = places + Number(exponent) - part.length
  if (shift >= 0) return digits * 10n ** BigInt(shift)
  const unit = 10n ** BigInt(-shift)
  const down = digits / unit - (digits % unit < 0n ? 1n : 0n)
  return round === 'up' && digits % unit !== 0n ? down + 1n : down
}

/** The next number that a parser can tell from this one: digits between the two are read as either. */
function beside(value: number, by: 1 | -1): number {
  if (value === 0) return by * Number.MIN_VALUE
  const bits = new BigInt64Array(Float64Array.of(value).buffer)
  bits[0] += BigInt(value > 0 ? by : -by)
  return new Float64Array(bits.buffer)[0]
}

/**
 * @param rules gets the rules that the result needs
 * @returns alternatives of a rule, or undefined if no number of so many digits fits
 */
export function numberRule(part: NumberPart, isInteger: boolean, rules: Map<string, string>): string | undefined {
  const none = Number.POSITIVE_INFINITY
  const { minimum = -none, maximum = none, exclusiveMinimum: over = -none, exclusiveMaximum: under = none } = part
  const { modulus, places } =
    part.multipleOf === undefined ? { modulus: 1n, places: isInteger ? 0 : PART } : stepOf(part.multipleOf)!
  const zeros = Math.max(0, -places)
  const most = 10n ** BigInt(WHOLE + places) - 1n
  const least = Math.max(minimum, Number.isFinite(over) ? beside(over, 1) : over)
  const greatest = Math.min(maximum, Number.isFinite(under) ? beside(under, -1) : under)
  const low = Number.isFinite(least) ? scaled(least, places, 'up') : -most
  const high = Number.isFinite(greatest) ? scaled(greatest, places, 'down') : most
  const range = (from: bigint, to: bigint) => {
    const [start, end] = [from < 1n ? 1n : from, to > most ? most : to]
    const digits = { modulus, places: Math.max(0, places), isInteger, end: '0'.repeat(zeros) }
    return start > end ? [] : new Digits(digits, rules).between(start, end)
  }
  const negative = range(-high, -low)
  const alternatives = [
    ...(low <= 0n && high >= 0n ? [places > 0 && !isInteger ? `"0" ("." [0]{1,${places}})?` : '"0"'] : []),
    ...range(low, high),
    ...(negative.length > 0 ? [`"-" (${negative.join(' | ')})`] : []),
  ]
  return alternatives.length > 0 ? alternatives.join(' | ') : undefined
}

interface DigitsForm {
  readonly modulus: bigint
  readonly places: number
  readonly isInteger: boolean
  /** What ends each number. */
  readonly end: string
}

/** Rules for positive decimals, which are integers times 10 to the power of `-places`, digit by digit. */
class Digits {
  readonly #known = new Map<string, string | undefined>()

  constructor(
    private readonly form: DigitsForm,
    private readonly rules: Map<string, string>,
  ) {}

  between(low: bigint, high: bigint): string[] {
    const { places, modulus } = this.form
    const wholeOf = (value: bigint) => Math.max(1, value.toString().length - places)
    const found: (string | undefined)[] = []
    for (let whole = wholeOf(low); whole <= wholeOf(high); whole++) {
      const from = 10n ** BigInt(whole + places - 1)
      const [least, most] = [whole === 1 ? 1n : from, 10n * from - 1n]
      const length = whole + places
      const isFree = whole > 1 && low <= least && 10n ** BigInt(places) % modulus === 0n
      const last = wholeOf(high) - (high === 10n ** BigInt(wholeOf(high) + places) - 1n ? 0 : 1)
      if (isFree && last >= whole) {
        // Numbers with any of these many digits: their first digits do not matter.
        found.push(`[1-9] [0-9]{${whole - 1},${last - 1}} ${this.#after(places, undefined, undefined, 0n)}`)
        whole = last
        continue
      }
      const text = (value: bigint) => value.toString().padStart(length, '0')
      found.push(this.#after(length, text(low > least ? low : least), text(high < most ? high : most), 0n))
    }
    return found.filter((rule) => rule !== undefined)
  }

  /**
   * What may come before the last `left` digits end.
   *
   * @param low the smallest of these digits, and `high` the largest. Undefined: what came before has decided it
   * @param rest of the digits before, divided by the modulus
   */
  #after(left: number, low: string | undefined, high: string | undefined, rest: bigint): string | undefined {
    const { modulus, places, isInteger, end } = this.form
    if (low !== undefined && /^0*$/.test(low)) return this.#after(left, undefined, high, rest)
    if (high !== undefined && /^9*$/.test(high)) return this.#after(left, low, undefined, rest)
    const shift = 10n ** BigInt(left)
    if (shift % modulus === 0n && rest > 0n) return this.#after(left, low, high, 0n)
    const key = [left, low, high, rest].join()
    if (this.#known.has(key)) return this.#known.get(key)
    const alternatives: string[] = []
    if (left <= places && low === undefined && (rest * shift) % modulus === 0n) alternatives.push(JSON.stringify(end))
    const nexts = new Map<string, string>()
    const isOver = left === 0 || (isInteger && left <= places)
    for (let digit = Number(low?.[0] ?? 0); !isOver && digit <= Number(high?.[0] ?? 9); digit++) {
      const tail = (bound: string | undefined) => (bound?.[0] === String(digit) ? bound.slice(1) : undefined)
      const next = this.#after(left - 1, tail(low), tail(high), (rest * 10n + BigInt(digit)) % modulus)
      if (next !== undefined) nexts.set(next, `${nexts.get(next) ?? ''}${digit}`)
    }
    const point = left === places ? '"." ' : ''
    for (const [next, digits] of nexts) alternatives.push(`${point}[${digits}] ${next}`)
    const name = alternatives.length === 0 ? undefined : `digits_${this.rules.size}`
    if (name !== undefined) this.rules.set(name, alternatives.join(' | '))
    this.#known.set(key, name)
    return name
  }
}
