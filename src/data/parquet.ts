// Parquet, by hyparquet, an optional peer that loads with the first such file. One row group is held at a time; nested columns
// (lists of messages) come as objects and lists.

import type { ByteSource } from '../base/bytes.js'
import { DataError, LowrankError, UnsupportedError } from '../base/errors.js'
import type { ColumnNames } from './columns.js'
import type { Row } from './row.js'

/** What hyparquet reads by itself; the other codecs are in hyparquet-compressors. */
const BUILT_IN_CODECS = new Set(['UNCOMPRESSED', 'SNAPPY'])

/**
 * The rows of a Parquet file. Of the columns only those that `columns` names are read, if it is given.
 *
 * @throws UnsupportedError when a package to read it is not installed, DataError when the file is no Parquet or broken
 */
export async function* readParquet(source: ByteSource, columns?: ColumnNames): AsyncGenerator<Row> {
  const { parquetMetadataAsync, parquetReadObjects, parquetSchema } = await loadReader()
  const file = {
    byteLength: source.byteLength,
    async slice(start: number, end = source.byteLength): Promise<ArrayBuffer> {
      const bytes = await source.read(start, Math.min(end, source.byteLength) - start)
      // Not slice: that of Node's Buffer copies nothing.
      return new Uint8Array(bytes).buffer
    },
  }
  const metadata = await attempt(source, () => parquetMetadataAsync(file))
  const present = parquetSchema(metadata).children.map(({ element }) => element.name)
  const named = Object.values(columns ?? {})
  // Where a name is wrong, the rows tell all that there are.
  const wanted = named.length > 0 && named.every((name) => present.includes(name)) ? named : present
  const codecs = metadata.row_groups.flatMap((group) => group.columns.map((column) => column.meta_data?.codec))
  const needsCompressors = codecs.some((codec) => codec !== undefined && !BUILT_IN_CODECS.has(codec))
  const compressors = needsCompressors ? (await loadCompressors()).compressors : undefined
  let first = 0
  for (const group of metadata.row_groups) {
    const rowEnd = first + Number(group.num_rows)
    const options = { file, metadata, columns: wanted, rowStart: first, rowEnd, compressors }
    const rows = await attempt(source, () => parquetReadObjects(options))
    for (const [i, row] of rows.entries())
      yield { row: withNumbers(row), where: `${source.name}, row ${first + i + 1}` }
    first = rowEnd
  }
}

/** The value with 64-bit integers as numbers, as JSON has them, where they are exact. */
function withNumbers(value: unknown): unknown {
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : value
  if (Array.isArray(value)) return value.map(withNumbers)
  if (typeof value !== 'object' || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, withNumbers(inner)]))
}

/** What a reading of the file returns; an error of hyparquet's as one of ours. */
async function attempt<T>(source: ByteSource, read: () => Promise<T>): Promise<T> {
  try {
    return await read()
  } catch (cause) {
    if (cause instanceof LowrankError) throw cause
    const message = cause instanceof Error ? cause.message : String(cause)
    throw new DataError({ where: source.name, what: `cannot be read as Parquet (${message})`, cause })
  }
}

// In a `try` of their own bundlers take these packages for optional, and build where they are not installed.

async function loadReader() {
  try {
    return await import('hyparquet')
  } catch (cause) {
    throw notInstalled('hyparquet', cause)
  }
}

async function loadCompressors() {
  try {
    return await import('hyparquet-compressors')
  } catch (cause) {
    throw notInstalled('hyparquet-compressors', cause)
  }
}

function notInstalled(name: string, cause: unknown): UnsupportedError {
  return new UnsupportedError({
    where: 'Parquet',
    what: `the package ${name} is not installed`,
    hint: `Run npm install ${name}, or write the data as JSONL`,
    cause,
  })
}
