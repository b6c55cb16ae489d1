// Renaming fields: data sets name the same things differently.

import { ConfigError, DataError, nearMisses } from '../base/errors.js'
import type { Row } from './row.js'

/** Name that is wanted → the data's own name for it. */
export type ColumnNames = Readonly<Record<string, string>>

export function renameColumns({ row, where }: Row, columns: ColumnNames): Row {
  if (typeof row !== 'object' || row === null || Array.isArray(row)) {
    throw new DataError({ where, what: 'not a valid record', expected: 'an object with fields' })
  }
  const fields = row as Readonly<Record<string, unknown>>
  const renamed: Record<string, unknown> = {}
  for (const [name, column] of Object.entries(columns)) {
    if (!Object.hasOwn(fields, column)) {
      const near = nearMisses(column, Object.keys(fields))
      throw new DataError({
        where,
        what: `no field "${column}"`,
        expected: Object.keys(fields).slice(0, 12).join(', ') || 'a field',
        ...(near.length > 0 && { hint: `Did you mean ${near.join(', ')}?` }),
      })
    }
    renamed[name] = fields[column]
  }
  return { row: renamed, where }
}

export function checkColumnNames(columns: unknown): asserts columns is ColumnNames | undefined {
  if (columns === undefined) return
  const isNames =
    typeof columns === 'object' &&
    columns !== null &&
    !Array.isArray(columns) &&
    Object.values(columns).every((column) => typeof column === 'string')
  if (isNames && Object.keys(columns).length > 0) return
  throw new ConfigError({
    where: 'columns',
    what: 'not names of fields',
    expected: "an object such as { prompt: 'question', completion: 'answer' }",
    got: JSON.stringify(columns) ?? typeof columns,
  })
}
