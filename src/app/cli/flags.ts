// Makes command options from API options. They come from tables that are generated from the types.

import { jsonIn, ranged } from '../../core/base/options.js'
import { FLAGS } from './gen/options.js'
import {
  choice,
  type Occurrence,
  type Option,
  readNumber,
  repeated,
  single,
  text,
  toggle,
  UsageError,
} from './options.js'

export interface Flag {
  readonly form: 'switch' | 'number' | 'word' | keyof Forms
  readonly about: string
  readonly range?: string
  readonly words?: readonly string[]
  readonly fallback?: string
  readonly placeholder?: string
  readonly isRequired?: boolean
}

export type FlagTable = Readonly<Record<string, Flag>>

interface Forms {
  text: string
  source: string
  target: string
  files: string[]
  names: string[]
  modules: string | string[]
  tokens: (string | number)[]
  pairs: Record<string, string>
  numbers: Record<string, number>
  settings: Record<string, unknown>
}

type Tables = typeof FLAGS
type ReadAs<F> = F extends { form: 'switch' }
  ? boolean
  : F extends { form: 'number' }
    ? number
    : F extends { form: 'word'; words: readonly (infer W)[] }
      ? W
      : F extends { form: infer K extends keyof Forms }
        ? Forms[K]
        : never
type OptionOf<F> = Option<F extends { form: 'switch' } | { isRequired: true } ? ReadAs<F> : ReadAs<F> | undefined>

export function flags<N extends keyof Tables, K extends keyof Tables[N] & string = keyof Tables[N] & string>(
  name: N,
  ...keys: K[]
): { [P in K]: OptionOf<Tables[N][P]> } {
  const table: FlagTable = FLAGS[name]
  const chosen = keys.length === 0 ? Object.keys(table) : keys
  return Object.fromEntries(chosen.map((key) => [key, optionOf(table[key])])) as never
}

function optionOf(flag: Flag): Option<unknown> {
  const { about, words, placeholder, isRequired, range = '' } = flag
  const isListed = placeholder !== undefined && words !== undefined
  const [bounds] = /in [[(].*[\])]$/.exec(range) ?? []
  return {
    ...plainOption(flag),
    about: isListed ? `${about}. Types: ${words.join(', ')}` : about,
    ...(bounds !== undefined && { bounds }),
    ...(flag.fallback !== undefined && { fallback: flag.fallback }),
    ...(placeholder !== undefined && { placeholder }),
    ...(isRequired && { isRequired }),
  }
}

function plainOption({ form, about, range = '', words = [] }: Flag): Option<unknown> {
  if (form === 'switch') return toggle(about)
  if (form === 'word') return choice(words, about)
  if (form !== 'number') return FORMS[form](about)
  return single(/^an? (safe )?integer/.test(range) ? 'N' : 'X', about, (occurrence) => readRanged(occurrence, range))
}

/** Reads a number. Its range is checked here, because commands may open a model before they call the API. */
function readRanged(occurrence: Occurrence, range: string): number {
  const number = readNumber(occurrence)
  const { expected, accepts } = ranged(range)
  if (accepts(number)) return number
  throw new UsageError(`${occurrence.flag}: not valid; expected ${expected}, got ${number}`)
}

const FORMS: Readonly<Record<keyof Forms, (about: string) => Option<unknown>>> = {
  text: (about) => text('TEXT', about),
  source: (about) => text('DIR|FILE|ID', about),
  target: (about) => text('DIR|FILE', about),
  files(about) {
    const option = repeated('FILE|DIR', about)
    return { ...option, read: (all) => (all.length === 0 ? undefined : option.read(all)) }
  },
  names: (about) => single('a,b', about, namesIn),
  modules: (about) =>
    single('all-linear|default|a,b', about, (occurrence) => {
      return ['all-linear', 'default'].includes(occurrence.value) ? occurrence.value : namesIn(occurrence)
    }),
  tokens: (about) =>
    single('a,N,…', about, (occurrence) => {
      return namesIn(occurrence).map((name) => (/^\d+$/.test(name) ? Number(name) : name))
    }),
  pairs: (about) => single('a=b,…', about, (occurrence) => Object.fromEntries(pairsIn(occurrence, 'a=b,c=d'))),
  numbers: (about) =>
    single('a=N,…', about, ({ flag, value }) => {
      const pairs = pairsIn({ flag, value }, 'q_proj=16,v_proj=4')
      return Object.fromEntries(pairs.map(([name, value]) => [name, readNumber({ flag, value })]))
    }),
  settings: (about) =>
    single('a=b,…|JSON', about, (occurrence) => {
      if (occurrence.value.trimStart().startsWith('{')) return objectIn(occurrence)
      return Object.fromEntries(pairsIn(occurrence, 'scale=30').map(([name, value]) => [name, literalOf(value)]))
    }),
}

function namesIn({ flag, value }: Occurrence): string[] {
  const names = value.split(',').map((name) => name.trim())
  if (!names.includes('')) return names
  throw new UsageError(`${flag} takes names divided by commas, such as a,b; got '${value}'`)
}

/** Reads names with values. The last equals sign divides, because a name may be a regular expression with `=`. */
function pairsIn({ flag, value }: Occurrence, example: string): [name: string, value: string][] {
  const pairs = value.split(',').map((pair): [string, string] => {
    const at = pair.lastIndexOf('=')
    return [pair.slice(0, Math.max(0, at)).trim(), pair.slice(at + 1).trim()]
  })
  if (pairs.every((pair) => !pair.includes(''))) return pairs
  throw new UsageError(`${flag} takes names with values, such as ${example}; got '${value}'`)
}

function objectIn({ flag, value }: Occurrence): unknown {
  const object = jsonIn(value)
  if (object !== undefined) return object
  throw new UsageError(`${flag} takes JSON such as {"enable_thinking": false}; got '${value}'`)
}

/** Returns a number or a boolean if the text looks like it, else the text. */
function literalOf(value: string): unknown {
  if (value === 'true' || value === 'false') return value === 'true'
  return Number.isNaN(Number(value)) ? value : Number(value)
}
