// Renaming fields: data sets name the same things differently.

import { ConfigError, DataError, nearMisses } from '../base/errors.js'
import { isObject } from '../base/options.js'
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

export function checkColumnNames(columns: unknown): asserts columns is ColumnNames | undefined {
  if (columns === undefined) return
  const isNames = isObject(columns) && Object.values(columns).every((column) => typeof column === 'string')
  if (isNames && Object.keys(columns).length > 0) return
  throw new ConfigError({
    where: 'columns',
    what: 'not names of fields',
    expected: "an object such as { prompt: 'question', completion: 'answer' }",
    got: JSON.stringify(columns) ?? typeof columns,
  })
}
