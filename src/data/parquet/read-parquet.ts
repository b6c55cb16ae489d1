// Parquet, by hyparquet, an optional peer that loads with the first such file. One row group is held at a time; nested
// columns (lists of messages) come as objects and lists. hyparquet believes what a file says of its counts and lengths,
// so everything is checked against the file's size before: a damaged file of 1 kB could keep it busy for minutes.

import type { Compressors, FileMetaData, RowGroup, SchemaTree } from 'hyparquet'
import type { ByteSource } from '../../base/bytes.js'
import { DataError, LowrankError, UnsupportedError } from '../../base/errors.js'
import type { ColumnNames } from '../columns.js'
import type { Row } from '../row.js'
import { checkDepth, checkFooter, columnChunks, rowCount } from './footer.js'
import { type Budget, checkPages } from './pages.js'
import { unpackSnappy } from './snappy.js'
import { BrokenParquet } from './thrift.js'

/** Codecs that need no other package; the others are in hyparquet-compressors. */
const OWN_CODECS: Compressors = { SNAPPY: unpackSnappy, UNCOMPRESSED: (bytes) => bytes }

/** A table of data for a language model has a handful. */
const MAX_COLUMNS = 4096

/**
 * A small file may hold millions of equal rows, because equal values take next to no bytes. It may not hold any number
 * of them.
 */
const FREE: Budget = { values: 2 ** 22, bytes: 2 ** 26 }
const PER_BYTE: Budget = { values: 64, bytes: 1024 }

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
  const { metadata, tree } = await attempt(source, async () => {
    await checkFooter(source)
    const metadata = await parquetMetadataAsync(file, { geoparquet: false })
    const tree = parquetSchema(metadata)
    checkDepth(tree)
    return { metadata, tree }
  })
  const present = new Set(tree.children.map(({ element }) => element.name))
  const named = new Set(Object.values(columns ?? {}))
  // If a name is wrong, the rows tell all that there are.
  const wanted = named.size > 0 && [...named].every((name) => present.has(name)) ? named : present
  if (wanted.size > MAX_COLUMNS) {
    throw new DataError({
      where: source.name,
      what: 'more columns than are read',
      expected: `at most ${MAX_COLUMNS}`,
      got: String(wanted.size),
      hint: "Name the columns to read, as in `columns: { text: 'NAME' }`",
    })
  }
  const compressors = await compressorsFor(metadata)
  /** With the wanted columns alone: hyparquet's time grows with the square of their number. */
  const read = {
    ...metadata,
    row_groups: metadata.row_groups.map((group) => {
      const columns = group.columns.filter(({ meta_data }) => wanted.has(meta_data?.path_in_schema[0] ?? ''))
      return { ...group, columns }
    }),
  }
  const budget = {
    values: FREE.values + PER_BYTE.values * source.byteLength,
    bytes: FREE.bytes + PER_BYTE.bytes * source.byteLength,
  }
  let first = 0
  for (const group of metadata.row_groups) {
    const rows = await attempt(source, async () => {
      await checkGroup(source, group, tree, wanted, compressors, budget)
      const options = {
        file,
        metadata: read,
        columns: [...wanted],
        rowStart: first,
        rowEnd: first + rowCount(group),
        compressors,
      }
      return parquetReadObjects(options)
    })
    for (const [i, row] of rows.entries())
      yield { row: withNumbers(row), where: `${source.name}, row ${first + i + 1}` }
    first += rowCount(group)
  }
}

/** Throws BrokenParquet when the wanted columns of a row group would take more than their bytes allow. */
async function checkGroup(
  source: ByteSource,
  group: RowGroup,
  tree: SchemaTree,
  wanted: ReadonlySet<string>,
  compressors: Compressors,
  budget: Budget,
): Promise<void> {
  const rows = rowCount(group)
  for (const chunk of columnChunks(group, tree, (name) => wanted.has(name), source.byteLength)) {
    const unpack = compressors[chunk.codec as keyof Compressors]
    if (unpack === undefined) throw new BrokenParquet(`the codec ${chunk.codec}, which lowrank does not read`)
    const kind = {
      ...chunk.kind,
      unpack(bytes: Uint8Array, length: number): Uint8Array {
        const unpacked = unpack(bytes, length)
        if (unpacked.byteLength === length) return unpacked
        throw new BrokenParquet(`a page of ${unpacked.byteLength} bytes, where its header says ${length}`)
      },
    }
    checkPages(await source.read(chunk.offset, chunk.byteLength), kind, rows, budget)
  }
}

async function compressorsFor({ row_groups }: FileMetaData): Promise<Compressors> {
  const codecs = row_groups.flatMap(({ columns }) => columns.map(({ meta_data }) => meta_data?.codec))
  const needsOthers = codecs.some((codec) => codec !== undefined && OWN_CODECS[codec] === undefined)
  return needsOthers ? { ...(await loadCompressors()).compressors, ...OWN_CODECS } : OWN_CODECS
}

/** The value with 64-bit integers as numbers, as JSON has them, where they are exact. */
function withNumbers(value: unknown): unknown {
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : value
  if (Array.isArray(value)) return value.map(withNumbers)
  if (typeof value !== 'object' || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, withNumbers(inner)]))
}

/** Reads the file, and turns an error of hyparquet's into one of ours. */
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
