// The sources that data can be read from: records in memory, files, folders.

import type { ByteSource, Directory } from '../base/bytes.js'
import { hasMethods } from '../base/options.js'

/** A file, a folder of files, or several of them in order; or records in memory. */
export type DataSource =
  | ByteSource
  | Directory
  | readonly (ByteSource | Directory)[]
  | Iterable<unknown>
  | AsyncIterable<unknown>

export function isDataSource(value: unknown): value is DataSource {
  return isByteSource(value) || isDirectory(value) || isIterable(value)
}

export function isByteSource(value: unknown): value is ByteSource {
  return hasMethods(value, 'read') && typeof (value as ByteSource).byteLength === 'number'
}

export function isDirectory(value: unknown): value is Directory {
  return hasMethods(value, 'list', 'has', 'open')
}

export function isIterable(value: unknown): value is Iterable<unknown> | AsyncIterable<unknown> {
  return hasMethods(value, Symbol.iterator) || hasMethods(value, Symbol.asyncIterator)
}
