// The kinds of pictures and tokens that calls accept, for the generated tables of options (gen/options.ts).

import { isObject, type Kind, kind, listOf, ranged } from '../core/base/options.js'
import { isImageSource } from '../model/images/image-source.js'

const isOneOrMore = (value: unknown) => [value].flat().every(isImageSource)

export const IMAGE: Kind = kind('a picture: a path, the bytes of a file, or { data, width, height }', isImageSource)

export const IMAGES: Kind = kind(
  'a picture (a path, the bytes of a file, or { data, width, height }), a list of them, or one of these for each prompt',
  (value) => isOneOrMore(value) || (Array.isArray(value) && value.every(isOneOrMore)),
)

const TOKEN_ID = ranged('an integer of at least 0')
export const TOKEN_IDS: Kind = listOf(TOKEN_ID)
export const LOGIT_BIAS: Kind = kind('an object of numbers by token id, such as { "50256": -100 }', (value) => {
  if (!isObject(value)) return false
  return Object.entries(value).every(([id, bias]) => TOKEN_ID.accepts(Number(id)) && Number.isFinite(bias))
})
