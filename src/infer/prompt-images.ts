// The option `images`: which pictures go with which prompt.

import { DataError } from '../base/errors.js'
import { type Kind, kind } from '../base/options.js'
import type { ImageSource } from '../images/image.js'
import { isImageSource } from '../images/image-source.js'
import type { PromptImages } from './session.js'

const isOneOrMore = (value: unknown) => [value].flat().every(isImageSource)

/** The option `images`. */
export const IMAGES: Kind = kind(
  'a picture (a path, the bytes of a file, or { data, width, height }), a list of pictures, or for several prompts a list with one of these for each',
  (value) => isOneOrMore(value) || (Array.isArray(value) && value.every(isOneOrMore)),
)

/**
 * The pictures of each prompt.
 *
 * @param prompts how many there are; undefined for one that is no list
 * @throws DataError for a list that does not fit the prompts
 */
export function imagesOf(images: PromptImages | undefined, prompts: number | undefined): readonly ImageSource[][] {
  if (images === undefined) return Array.from({ length: prompts ?? 1 }, () => [])
  const lists = [images].flat() as readonly (ImageSource | readonly ImageSource[])[]
  const expected =
    prompts === undefined ? 'a picture, or a list of pictures' : `a list of ${prompts}, one for each prompt`
  const refuse = (got: string) => new DataError({ where: 'images', what: 'not as many as prompts', expected, got })
  if (prompts === undefined) {
    if (lists.some((one) => Array.isArray(one))) throw refuse('a list of lists')
    return [lists as ImageSource[]]
  }
  if (!Array.isArray(images)) throw refuse('one picture')
  if (images.length !== prompts) throw refuse(`a list of ${images.length}`)
  return lists.map((one) => [one].flat() as ImageSource[])
}
