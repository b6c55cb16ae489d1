// Renaming fields: data sets name the same things differently.

import { DataError, nearMisses } from '../base/errors.js'
import { isObject, kind } from '../base/options.js'
import type { Row } from './row.js'

/** Name that is wanted → the data's own name for it. */
export type ColumnNames = Readonly<Record<string, string>>

export function renameColumns({ row, where }: Row, columns: ColumnNames): Row {
  if (!isObject(row)) throw new DataError({ where, what: 'not a valid record', expected: 'an object with fields' })
  const renamed: Record<string, unknown> = {}
  for (const [name, column] of Object.entries(columns)) {
    if (!Object.hasOwn(row, column)) {
      const near = nearMisses(column, Object.keys(row))
      throw new DataError({
        where,
        what: `no field "${column}"`,
        expected: Object.keys(row).slice(0, 12).join(', ') || 'a field',
        ...(near.length > 0 && { hint: `Did you mean ${near.join(', ')}?` }),
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
