// The kinds of pictures that calls accept, for the generated tables of options (gen/options.ts).

import { type Kind, kind } from '../base/options.js'
import { isImageSource } from '../images/image-source.js'

const isOneOrMore = (value: unknown) => [value].flat().every(isImageSource)

export const IMAGE: Kind = kind('a picture: a path, the bytes of a file, or { data, width, height }', isImageSource)

export const IMAGES: Kind = kind(
  'a picture (a path, the bytes of a file, or { data, width, height }), a list of them, or one of these for each prompt',
  (value) => isOneOrMore(value) || (Array.isArray(value) && value.every(isOneOrMore)),
)
