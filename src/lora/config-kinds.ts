// The kinds of values that a LoraConfig's settings can have, for the table of options (gen/options.ts).

import { isObject, type Kind, kind, listOf, NAME, ranged } from '../core/base/options.js'
import { isInit, STARTS } from './init/inits.js'

/** Every entry is compared with every tensor. Nobody lists more modules or parameters than this. */
const MAX_ENTRIES = 1000

const INDEX = ranged('an integer of at least 0')
const NAMES = listOf(NAME)

export const INIT: Kind = { ...kind(STARTS.join(', '), isInit), words: STARTS }

export const MODULES: Kind = kind(
  'module names, an expression or all-linear',
  (value) => NAME.accepts(value) || NAMES.accepts(value),
)

export const LAYERS: Kind = kind('layer indexes', (value) => INDEX.accepts(value) || listOf(INDEX).accepts(value))

export const RANKS: Kind = kind(
  'module expressions with ranks of at least 1',
  isTable(ranged('an integer of at least 1')),
)

export const ALPHAS: Kind = kind('module expressions with finite alphas', isTable(ranged('a finite number')))

export const SHORT_LIST: Kind = kind(
  `a list of names, ${MAX_ENTRIES} at most`,
  (value) => NAMES.accepts(value) && (value as unknown[]).length <= MAX_ENTRIES,
)

const TOKENS = kind(
  'tokens',
  (value) => listOf(INDEX).accepts(value) && new Set(value as []).size === (value as []).length,
)

export const TOKEN_INDICES: Kind = kind(
  'tokens, or module names with tokens',
  (value) => TOKENS.accepts(value) || isTable(TOKENS)(value),
)

function isTable({ accepts }: Kind): (value: unknown) => boolean {
  return (value) => isObject(value) && !(value instanceof Map) && Object.values(value).every(accepts)
}
