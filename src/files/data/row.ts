// Rows of data, the forms that data can have, and the choice of rows that are held out for evaluation.

import type { ByteSource, Directory } from '../../core/base/bytes.js'
import { DataError, didYouMean } from '../../core/base/errors.js'
import { hasMethods, isObject, kind } from '../../core/base/options.js'
import { Random } from '../../core/base/random.js'

export interface Row {
  readonly row: unknown
  readonly where: string
}

export type OnInvalid = (error: DataError) => void

export function unlessInvalid<T>(read: () => T, onInvalid: OnInvalid | undefined): T | undefined {
  try {
    return read()
  } catch (error) {
    if (onInvalid === undefined || !(error instanceof DataError)) throw error
    onInvalid(error)
    return undefined
  }
}

export type Rows = AsyncIterable<Row>

/**
 * Chooses the rows that are held out for evaluation, by a seed and without knowing how many rows there are. The share
 * is kept to within one row. Call the result with each row's number, in order from 0.
 */
export function planSplit(share: number, seed: number): (index: number) => boolean {
  const random = new Random(seed, 'eval-split')
  let taken = 0
  const startOf = (group: number) => Math.ceil(group / share)
  const pick = () => startOf(taken) + random.below(startOf(taken + 1) - startOf(taken))
  let next = pick()
  return (index) => {
    if (index !== next) return false
    taken++
    next = pick()
    return true
  }
}

/** Maps the name of a field that lowrank reads to the name of the column in the data. */
export type ColumnNames = Readonly<Record<string, string>>

export function renameColumns({ row, where }: Row, columns: ColumnNames): Row {
  if (!isObject(row)) throw new DataError({ where, what: 'not a valid record', expected: 'an object with fields' })
  const renamed: Record<string, unknown> = {}
  for (const [name, column] of Object.entries(columns)) {
    if (!Object.hasOwn(row, column)) {
      const isReversed = Object.hasOwn(row, name)
      const meant = `The name in the data comes last: \`columns: { ${column}: '${name}' }\``
      throw new DataError({
        where,
        what: `no field "${column}"`,
        expected: Object.keys(row).slice(0, 12).join(', ') || 'a field',
        hint: isReversed ? meant : didYouMean(column, Object.keys(row), 3),
      })
    }
    renamed[name] = row[column]
  }
  return { row: renamed, where }
}

export const COLUMN_NAMES = kind("an object such as { prompt: 'question', completion: 'answer' }", (value) => {
  const columns = isObject(value) ? Object.values(value) : []
  return columns.length > 0 && columns.every((column) => typeof column === 'string')
})

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
