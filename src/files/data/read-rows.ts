// Reads data in any form as one stream of rows, each with its place for messages. It does not know tokens or tasks.

import { ConfigError, DataError } from '../../core/base/errors.js'
import { checkArgument, excessOf } from '../../core/base/options.js'
import type { ReadOptions } from './read-files.js'
import {
  COLUMN_NAMES,
  type DataSource,
  isByteSource,
  isDirectory,
  isIterable,
  type Row,
  renameColumns,
  unlessInvalid,
} from './row.js'

export async function* readRows(data: DataSource, options: ReadOptions = {}): AsyncGenerator<Row> {
  const { columns, onInvalid } = options
  if (columns !== undefined) checkArgument(columns, COLUMN_NAMES, 'columns')
  for await (const row of rowsOf(data, options)) {
    const checked = unlessInvalid(() => {
      checkDepth(row)
      return columns === undefined ? row : renameColumns(row, columns)
    }, onInvalid)
    if (checked !== undefined) yield checked
  }
}

/** Deeper records would end in a RangeError where they become text again, in a chat template or a hash. */
const MAX_DEPTH = 100

function checkDepth({ row, where }: Row): void {
  if (excessOf(row, { depth: MAX_DEPTH }) === undefined) return
  throw new DataError({ where, what: 'nested too deep', expected: `lists and objects of at most ${MAX_DEPTH} levels` })
}

async function* rowsOf(data: DataSource, options: ReadOptions): AsyncGenerator<Row> {
  const { name = 'data' } = options
  if (isByteSource(data) || isDirectory(data)) {
    // Loaded only here, so that a page whose records are in memory does not fetch code that reads files.
    const { rowsOfFile, rowsOfFolder } = await import('./read-files.js')
    yield* isByteSource(data) ? rowsOfFile(data, options) : rowsOfFolder(data, options)
  } else if (isIterable(data)) {
    let index = 0
    for await (const item of data) {
      if (isByteSource(item) || isDirectory(item)) yield* rowsOf(item, options)
      else yield { row: item, where: `${name}[${index}]` }
      index++
    }
  } else {
    throw new ConfigError({
      where: name,
      what: 'neither records nor a file',
      got: data === null ? 'null' : typeof data,
    })
  }
}
