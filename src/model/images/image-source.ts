// Tells whether a value is a picture, in one of the forms that callers may pass.

import { isObject } from '../../core/base/options.js'
import type { ImageSource } from './image.js'

export function isImageSource(value: unknown): value is ImageSource {
  if (typeof value === 'string') return value !== ''
  if (value instanceof Uint8Array) return true
  return isObject(value) && (value.bytes instanceof Uint8Array || 'data' in value)
}
