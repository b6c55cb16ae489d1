// Reads Parquet files with hyparquet, an optional peer, one row group at a time. A damaged file of 1 kB can keep
// hyparquet busy for minutes, so it runs in a thread that we end if it takes too much time or memory. A browser has no
// such thread: there we only check the footer, and the time after each page of the file.

import type { ColumnChunk, Compressors, FileMetaData, RowGroup } from 'hyparquet'
import type { ByteSource } from '../../core/base/bytes.js'
import { DataError, LowrankError, messageOf, UnsupportedError } from '../../core/base/errors.js'
import type { ColumnNames, Row } from './row.js'

/**
 * Limits for a file: milliseconds, not counting the wait for its bytes; bytes by which the memory may grow; values of
 * the columns, because a small file may hold millions of equal ones; and bytes of its pages after decompression.
 */
const limitsFor = (byteLength: number) => ({
  ms: 10_000 + byteLength / 1024,
  memoryBytes: 2 ** 30 + 32 * byteLength,
  values: 2 ** 22 + 64 * byteLength,
  pageBytes: 2 ** 26 + 1024 * byteLength,
})
type ParquetLimits = ReturnType<typeof limitsFor>

/** Data for a language model has a handful of columns, and hyparquet's time grows with the square of their number. */
const MAX_COLUMNS = 4096
const WATCH_MS = 50
const OWN_CODECS = ['SNAPPY', 'UNCOMPRESSED']

/** Reads a file's rows, with only the columns that `columns` names. Tests pass their own `limits`. */
export async function* readParquet(
  source: ByteSource,
  columns?: ColumnNames,
  limits = limitsFor(source.byteLength),
): AsyncGenerator<Row> {
  const reader = startThread(source, limits) ?? readHere(source, limits)
  try {
    const metadata = await reader.footer()
    const nameOf = ({ meta_data }: ColumnChunk) => meta_data?.path_in_schema[0]
    const names = new Set(
      metadata.row_groups.flatMap(({ columns }) => columns.flatMap((column) => nameOf(column) ?? [])),
    )
    // A VARIANT may refer to one part many times, so a small file could become very large.
    if (metadata.schema.some(({ logical_type }) => logical_type?.type === 'VARIANT')) {
      throw broken(source, 'a column of VARIANT values, which lowrank does not read')
    }
    const named = Object.values(columns ?? {})
    // If a name is wrong, read all columns: the error then lists what the rows have.
    const wanted = new Set<string | undefined>(
      named.length > 0 && named.every((name) => names.has(name)) ? named : names,
    )
    if (wanted.size > MAX_COLUMNS) {
      throw new DataError({
        where: source.name,
        what: 'more columns than are read',
        expected: `at most ${MAX_COLUMNS}`,
        got: String(wanted.size),
        hint: "Name the columns to read, as in `columns: { text: 'NAME' }`",
      })
    }
    const groups = metadata.row_groups.map((group) => ({
      ...group,
      columns: group.columns.filter((column) => wanted.has(nameOf(column))),
    }))
    checkCounts(source, groups, limits)
    let first = 0
    for (const group of groups) {
      const rows = await reader.rows({ ...metadata, row_groups: [group] })
      const last = rows.at(-1)
      // A null in a nested column is also read as undefined, so only flat columns can show that values are missing.
      const flat = group.columns.flatMap(({ meta_data }) =>
        meta_data!.path_in_schema[1] ? [] : meta_data!.path_in_schema,
      )
      if (last !== undefined && flat.some((name) => last[name] === undefined)) {
        throw broken(source, `fewer values than ${group.num_rows} rows need`)
      }
      for (const [i, row] of rows.entries())
        yield { row: withNumbers(row), where: `${source.name}, row ${first + i + 1}` }
      first += rows.length
    }
  } finally {
    reader.close()
  }
}

/** Throws DataError if the footer's counts are not valid, or impossible in a file of this size. */
function checkCounts(source: ByteSource, groups: readonly RowGroup[], { values, pageBytes }: ParquetLimits): void {
  const sums = { values: 0, bytes: 0 }
  for (const { num_rows, columns } of groups) {
    if (columns.length === 0 && num_rows !== 0n) throw broken(source, `${num_rows} rows without columns`)
    for (const { meta_data } of columns) {
      const { num_values, total_uncompressed_size: bytes, total_compressed_size: size } = meta_data!
      const start = meta_data!.dictionary_page_offset || meta_data!.data_page_offset
      for (const count of [num_rows, num_values, bytes, size, start]) {
        if (!(count >= 0n && count <= Number.MAX_SAFE_INTEGER)) throw broken(source, `a count of ${count}`)
      }
      if (Number(start) + Number(size) > source.byteLength) throw broken(source, 'a column outside the file')
      if (num_values < num_rows) throw broken(source, `${num_values} values for ${num_rows} rows`)
      sums.values += Number(num_values)
      sums.bytes += Number(bytes)
    }
  }
  if (sums.values > values) throw broken(source, 'more values than a file of its size can hold')
  if (sums.bytes > pageBytes) throw broken(source, 'more bytes than a file of its size can hold')
}

interface Reader {
  footer(): Promise<FileMetaData>
  /** The rows of the row groups in `metadata`, with the columns that `metadata` still lists. */
  rows(metadata: FileMetaData): Promise<Record<string, unknown>[]>
  close(): void
}

const SCRIPT = `
const { parentPort: port, workerData } = require('worker_threads')
const { createRequire } = require('module')
const { pathToFileURL } = require('url')
const load = (name) => {
  try {
    return import(pathToFileURL(createRequire(workerData.from).resolve(name)).href)
  } catch {
    throw { missing: name }
  }
}
const waiting = []
const file = {
  byteLength: workerData.byteLength,
  slice: (start, end = file.byteLength) =>
    new Promise((resolve) => port.postMessage({ asked: waiting.push(resolve) - 1, start, end })),
}
port.on('message', async ({ asked, bytes, metadata, codecs }) => {
  if (asked !== undefined) return waiting[asked](bytes)
  try {
    const { parquetMetadataAsync, parquetReadObjects } = await load('hyparquet')
    const compressors = codecs ? (await load('hyparquet-compressors')).compressors : undefined
    port.postMessage({ ready: true })
    const result = metadata
      ? await parquetReadObjects({ file, metadata, compressors })
      : await parquetMetadataAsync(file, { geoparquet: false })
    port.postMessage({ result })
  } catch (error) {
    port.postMessage({ missing: error?.missing, failure: String(error?.message ?? error) })
  }
})
`

/** Starts a reader in a worker thread of Node, or returns undefined if the runtime has no such threads. */
function startThread(source: ByteSource, limits: ParquetLimits): Reader | undefined {
  // Looked up at run time, so that bundles for browsers do not mention Node's modules.
  const threads = globalThis.process?.getBuiltinModule?.('worker_threads')
  if (threads === undefined) return undefined
  const worker = new threads.Worker(SCRIPT, {
    eval: true,
    // Without the caller's arguments, which may load parts of a test runner.
    execArgv: [],
    env: {},
    workerData: { from: import.meta.url, byteLength: source.byteLength },
    resourceLimits: { maxOldGenerationSizeMb: limits.memoryBytes / 2 ** 20 },
  })
  worker.unref()
  let spentMs = 0

  const call = <T>(request: object) =>
    new Promise<T>((resolve, reject) => {
      const startRss = process.memoryUsage.rss()
      // Counts open waits: first for hyparquet to load, then for the bytes that it asked for.
      let waits = 1
      let last = performance.now()
      const timer = setInterval(() => {
        const now = performance.now()
        if (waits === 0) spentMs += now - last
        last = now
        const isLarge = process.memoryUsage.rss() - startRss > limits.memoryBytes
        if (isLarge) end(tooMuch(source, `${Math.round(limits.memoryBytes / 2 ** 20)} MiB of memory`))
        else if (spentMs > limits.ms) end(tooMuch(source, `${Math.round(limits.ms / 1000)} s`))
      }, WATCH_MS)
      const end = (error: unknown) => {
        clearInterval(timer)
        worker.removeAllListeners()
        void worker.terminate()
        reject(error)
      }
      worker.removeAllListeners()
      worker.on('error', (cause) => end(broken(source, messageOf(cause), cause)))
      worker.on('exit', (code) => end(broken(source, `its thread ended with code ${code}`)))
      worker.on('message', ({ missing, ready, result, failure, asked: index, start, end: stop }) => {
        if (missing !== undefined) end(notInstalled(missing))
        else if (failure !== undefined) end(broken(source, failure))
        else if (ready) waits--
        else if (index !== undefined) {
          waits++
          slice(source, start, stop).then((bytes) => {
            waits--
            last = performance.now()
            worker.postMessage({ asked: index, bytes }, [bytes])
          }, end)
        } else {
          clearInterval(timer)
          resolve(result as T)
        }
      })
      worker.postMessage(request)
    })
  return {
    footer: () => call({}),
    rows: (metadata) => call({ metadata, codecs: needsCodecs(metadata) }),
    close: () => void worker.terminate(),
  }
}

function readHere(source: ByteSource, { ms }: ParquetLimits): Reader {
  let readAt = performance.now()
  const file = {
    byteLength: source.byteLength,
    async slice(start: number, end = source.byteLength): Promise<ArrayBuffer> {
      const bytes = await slice(source, start, end)
      readAt = performance.now()
      return bytes
    },
  }
  const onPage = () => {
    if (performance.now() - readAt > ms) throw tooMuch(source, `${Math.round(ms / 1000)} s`)
  }
  const attempt = async <T>(read: () => Promise<T>): Promise<T> => {
    try {
      return await read()
    } catch (cause) {
      if (cause instanceof LowrankError) throw cause
      throw broken(source, messageOf(cause), cause)
    }
  }
  return {
    footer: () => attempt(async () => (await load(false)).parquetMetadataAsync(file, { geoparquet: false })),
    rows: (metadata) =>
      attempt(async () => {
        const { parquetReadObjects, compressors } = await load(needsCodecs(metadata))
        return parquetReadObjects({ file, metadata, onPage, compressors })
      }),
    close() {},
  }
}

async function load(needsCodecs: boolean) {
  let name = 'hyparquet'
  // Inside a `try`, bundlers treat these packages as optional and build even if they are not installed.
  try {
    const { parquetMetadataAsync, parquetReadObjects } = await import('hyparquet')
    if (needsCodecs) name = 'hyparquet-compressors'
    const compressors: Compressors = needsCodecs ? (await import('hyparquet-compressors')).compressors : {}
    return { parquetMetadataAsync, parquetReadObjects, compressors }
  } catch (cause) {
    throw notInstalled(name, cause)
  }
}

async function slice(source: ByteSource, start: number, end: number): Promise<ArrayBuffer> {
  const bytes = await source.read(start, Math.min(end, source.byteLength) - start)
  // The constructor makes a copy. `slice` of Node's Buffer would not.
  return new Uint8Array(bytes).buffer
}

const needsCodecs = ({ row_groups }: FileMetaData) =>
  row_groups.some(({ columns }) => columns.some(({ meta_data }) => !OWN_CODECS.includes(meta_data?.codec ?? '')))

/** Turns 64-bit integers into numbers, as in JSON, or into text if a number would round them. */
function withNumbers(value: unknown): unknown {
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : String(value)
  if (Array.isArray(value)) return value.map(withNumbers)
  if (typeof value !== 'object' || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, withNumbers(inner)]))
}

const tooMuch = (source: ByteSource, what: string) => broken(source, `it takes more than ${what}`)

function broken({ name }: ByteSource, message: string, cause?: unknown): DataError {
  return new DataError({ where: name, what: `cannot be read as Parquet (${message})`, cause })
}

function notInstalled(name: string, cause?: unknown): UnsupportedError {
  return new UnsupportedError({
    where: 'Parquet',
    what: `the package ${name} is not installed`,
    hint: `Run npm install ${name}, or write the data as JSONL`,
    cause,
  })
}
