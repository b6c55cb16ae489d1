// Made by scripts/generate/options.mjs from the types. Do not edit.

import { type OptionTable, NAME, needed, listOf, FUNCTION, OBJECT } from '../../core/base/options.js'

export const GRADIENT_OPTIONS: OptionTable = {
  of: needed(NAME),
  by: needed(listOf(NAME)),
  feeds: FUNCTION,
  seed: NAME,
  runtime: OBJECT,
}

