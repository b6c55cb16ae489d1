// Parquet files with false counts and lengths. hyparquet would work on many of them for minutes, or until memory runs
// out. Each must give a DataError in bounded time.

import { readFileSync } from 'node:fs'
import { describe, expect, it, vi } from 'vitest'
import { DataError } from '../../../src/api/node.js'
import { MemorySource } from '../../../src/core/base/bytes.js'
import { readParquet } from '../../../src/files/data/parquet.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { goldenPath } from '../../golden.js'
import { some, THOROUGH } from '../../thorough.js'

/** Small limits, so that a file without an end gives a short test. */
const LIMITS = { ms: 1000, memoryBytes: 2 ** 28, values: 2 ** 22, pageBytes: 2 ** 26 }

async function refusal(bytes: Uint8Array, limits = LIMITS): Promise<DataError> {
  const read = async () => {
    for await (const _ of readParquet(new MemorySource(bytes, 'x.parquet'), undefined, limits));
  }
  const error = await read().catch((error: unknown) => error)
  expect(error).toBeInstanceOf(DataError)
  expect((error as DataError).message).toContain('x.parquet: cannot be read as Parquet')
  return error as DataError
}

/** Makes a file with this footer. */
function fileWith(footer: readonly number[], content: readonly number[] = []): Uint8Array {
  const length = Buffer.alloc(4)
  length.writeUInt32LE(footer.length)
  const parts = [Buffer.from('PAR1'), Buffer.from(content), Buffer.from(footer), length, Buffer.from('PAR1')]
  return new Uint8Array(Buffer.concat(parts))
}

/** Reads a valid file and replaces a sequence of bytes that occurs once. */
function changed(name: string, from: number[], to: number[]): Uint8Array {
  const bytes = Buffer.from(readFileSync(goldenPath('data', name)))
  const at = bytes.lastIndexOf(Buffer.from(from))
  expect(at).toBeGreaterThan(0)
  bytes.set(to, at)
  return bytes
}

const HUGE = [0xff, 0xff, 0xff, 0xff, 0x07]
const varint = (value: number): number[] =>
  value < 128 ? [value] : [(value % 128) | 128, ...varint(Math.floor(value / 128))]
const i32 = (delta: number, value: number) => [(delta << 4) | 5, ...varint(value * 2)]
const i64 = (delta: number, value: number) => [(delta << 4) | 6, ...varint(value * 2)]
const text = (value: string) => [...varint(value.length), ...Buffer.from(value)]
const list = (delta: number, type: number, items: number[][]) => {
  const size = items.length < 15 ? [(items.length << 4) | type] : [0xf0 | type, ...varint(items.length)]
  return [(delta << 4) | 9, ...size, ...items.flat()]
}
const u32 = (value: number) => [value & 255, (value >> 8) & 255, (value >> 16) & 255, value >>> 24]

const PLAIN = 0
const DICTIONARY = 8
const DELTA_BINARY_PACKED = 5
const DELTA_BYTE_ARRAY = 7
const INT32 = 1
const INT64 = 2
const BYTE_ARRAY = 6
const SNAPPY = 1
const REQUIRED = 0
const OPTIONAL = 1

interface Page {
  content: number[]
  encoding?: number
  /** A false count for the page's header. */
  count?: number
  packed?: number
  unpacked?: number
  isDictionary?: boolean
}

interface Columns {
  pages: Page[]
  type?: number
  codec?: number
  repetition?: number
  rows?: number
  /** The number of values that the footer claims. */
  values?: number
  unpacked?: number
}

function pageBytes({ content, encoding = PLAIN, count = 1, isDictionary = false, ...page }: Page): number[] {
  const { packed = content.length, unpacked = content.length } = page
  const own = isDictionary
    ? [0x4c, ...i32(1, count), ...i32(1, encoding), 0]
    : [0x2c, ...i32(1, count), ...i32(1, encoding), ...i32(1, 3), ...i32(1, 3), 0]
  return [...i32(1, isDictionary ? 2 : 0), ...i32(1, unpacked), ...i32(1, packed), ...own, 0, ...content]
}

/** Makes a file with one row group. */
function fileOf(columns: Columns[]): Uint8Array {
  let offset = 4
  const content: number[][] = []
  const chunks = columns.map(({ pages, type = INT32, codec = 0, rows = 1, values = rows, unpacked }, i) => {
    const bytes = pages.flatMap(pageBytes)
    content.push(bytes)
    const parts = [
      ...i32(1, type),
      ...list(1, 5, [[0]]),
      ...list(1, 8, [text(`column ${i}`)]),
      ...i32(1, codec),
      ...i64(1, values),
      ...i64(1, unpacked ?? bytes.length),
      ...i64(1, bytes.length),
      ...i64(2, offset),
      0,
    ]
    const chunk = [...i64(2, offset), 0x1c, ...parts, 0]
    offset += bytes.length
    return chunk
  })
  const { rows = 1 } = columns[0]
  const root = [0x48, ...text('root'), ...i32(1, columns.length), 0]
  const leaves = columns.map(({ type = INT32, repetition = REQUIRED }, i) => [
    ...i32(1, type),
    ...i32(2, repetition),
    0x18,
    ...text(`column ${i}`),
    0,
  ])
  const group = [...list(1, 12, chunks), ...i64(1, offset), ...i64(1, rows), 0]
  return fileWith(
    [...i32(1, 1), ...list(1, 12, [root, ...leaves]), ...i64(1, rows), ...list(1, 12, [group]), 0],
    content.flat(),
  )
}

/** Makes a file with one column. */
const column = (options: Omit<Columns, 'pages'>, ...pages: Page[]) => fileOf([{ ...options, pages }])

it('gives integers that a number would round as text, which JSON can hold', async () => {
  const rows: unknown[] = []
  const page = { content: [3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x40], count: 2 }
  for await (const { row } of readParquet(new MemorySource(column({ type: INT64, rows: 2 }, page), 'x.parquet'))) {
    rows.push(row)
  }
  expect(rows).toEqual([{ 'column 0': 3 }, { 'column 0': `${2n ** 62n + 1n}` }])
})

describe('a footer', () => {
  it.each([
    ['a list of 2147483647 values in 3 bytes', [0x19, 0xfc, ...HUGE, 0, 0, 0]],
    ['a list of 2147483647 booleans', [0x19, 0xf1, ...HUGE, 0, 0, 0]],
    ['an integer of more than 10 bytes', [0x16, ...Array(11).fill(0x80), 0]],
    ['structures inside each other', Array(100_000).fill(0x1c)],
    ['lists inside each other', [0x19, ...Array(100_000).fill(0x19)]],
    ['4294967295 bytes where 1 are left', [0x18, 0xff, 0xff, 0xff, 0xff, 0x0f, 0]],
    ['a value of type 11', [0x1b, 0, 0]],
    ['bytes that end inside a value', [0x15]],
    ['nothing', []],
  ])('of %s', async (_, footer) => {
    await refusal(fileWith(footer))
  })

  it('has as many rows as its columns have values', async () => {
    // The last row group has 30 rows, which Thrift writes as 60. The bytes around it make the match unique.
    const { message } = await refusal(changed('plain.parquet', [0x16, 0x3c, 0x26], [0x16, 0x7e, 0x26]))
    expect(message).toContain('30 values for 63 rows')
  })

  it.each([[[...Buffer.from('PAR2')]], [[0xff, 0xff, 0, 0, ...Buffer.from('PAR1')]]])('ends with %j', async (end) => {
    const bytes = Buffer.from(readFileSync(goldenPath('data', 'plain.parquet')))
    bytes.set(end, bytes.length - end.length)
    await refusal(bytes)
  })

  it('may not claim more than a file of its size holds', async () => {
    const page = { content: [1, 0, 0, 0] }
    const many = await refusal(column({ rows: 2 ** 22 + 1 }, page))
    expect(many.message).toContain('more values than a file of its size can hold')
    const large = await refusal(column({ unpacked: 2 ** 26 + 1 }, page))
    expect(large.message).toContain('more bytes than a file of its size can hold')
  })
})

const BLOCKS = [...varint(128), 4]
/** Equal texts of 65,536 bytes. The file holds the text only once. */
const COUNT = 100_000
const ALL_BLOCKS = Array(Math.ceil((COUNT - 1) / 128) - 1).fill([0, 0, 0, 0, 0])
const PREFIXES = [
  ...[...BLOCKS, ...varint(COUNT), 0],
  ...[0, 32, 0, 0, 0, ...u32(65_536), ...Array(31 * 4).fill(0)],
  ...ALL_BLOCKS.flat(),
]
const SUFFIXES = [
  ...[...BLOCKS, ...varint(COUNT), ...varint(131_072)],
  ...[...varint(131_071), 32, 32, 32, 32, 0, 0, 0, 0, ...Array(127).fill(u32(65_536)).flat()],
  ...ALL_BLOCKS.flat(),
]
const REPEATS: Page = {
  encoding: DELTA_BYTE_ARRAY,
  count: COUNT,
  content: [...PREFIXES, ...SUFFIXES, ...Array(65_536).fill(97)],
}

describe('a page', () => {
  it.each(
    some<[string, Uint8Array]>(
      [
        ['of 40 bytes where 4 are', column({}, { content: [1, 0, 0, 0], packed: 40 })],
        ['of an encoding that there is not', column({}, { content: [1, 0, 0, 0], encoding: 77 })],
        ['of 1 value for 6 rows', column({ rows: 6 }, { content: [1, 0, 0, 0] })],
        ['of empty pages', column({ rows: 6 }, ...Array(9).fill({ content: [], count: 0 }))],
        ['of 2147483647 values', column({}, { content: [1, 0, 0, 0], count: 2 ** 31 - 1 })],
        [
          'with a run of 1073741823 levels',
          column({ repetition: OPTIONAL, rows: 8 }, { content: [6, 0, 0, 0, 0xfe, ...HUGE.slice(1), 1] }),
        ],
        [
          'with a dictionary of 2147483647 values',
          column({}, { content: [1, 0, 0, 0], isDictionary: true, count: 2 ** 31 - 1 }, { content: [1, 2, 0] }),
        ],
        [
          'with a run of 2147483647 places in a dictionary',
          column(
            { rows: 8 },
            { content: [1, 0, 0, 0], isDictionary: true },
            { content: [1, 0xfe, 0xff, 0xff, 0xff, 0x0f, 0], encoding: DICTIONARY, count: 8, packed: 8 },
          ),
        ],
        [
          'of differences in 4294967295 parts',
          column(
            { rows: 8 },
            { encoding: DELTA_BINARY_PACKED, count: 8, content: [0x80, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, 8, 14] },
          ),
        ],
        [
          'of differences in blocks of 0',
          column({ rows: 8 }, { encoding: DELTA_BINARY_PACKED, count: 8, content: [0, 4, 8, 14] }),
        ],
        [
          'of differences in 0 parts',
          column({ rows: 8 }, { encoding: DELTA_BINARY_PACKED, count: 8, content: [0x80, 1, 0, 8, 14] }),
        ],
        [
          'of Snappy with a negative length',
          column({ codec: SNAPPY }, { content: [4, 63 << 2, 0xf0, 0xff, 0xff, 0xff, 0], unpacked: 4 }),
        ],
        ['of Snappy that copies from before its start', column({ codec: SNAPPY }, { content: [4, 1, 9], unpacked: 4 })],
        ['of Snappy that is shorter', column({ codec: SNAPPY }, { content: [4, 0, 7], unpacked: 4 })],
        ['of texts of 6 GB', column({ type: BYTE_ARRAY, rows: COUNT }, REPEATS)],
      ],
      2,
    ),
  )('%s', async (_, bytes) => {
    const start = performance.now()
    await refusal(bytes, { ...LIMITS, ms: 300 })
    expect(performance.now() - start).toBeLessThan(30_000)
  })

  it('ends when it takes too much time, and when it takes too much memory', async () => {
    const snappy = column({ codec: SNAPPY }, { content: [4, 63 << 2, 0xf0, 0xff, 0xff, 0xff, 0], unpacked: 4 })
    expect((await refusal(snappy, { ...LIMITS, ms: 500 })).message).toContain('it takes more than 1 s')
    const texts = column({ type: BYTE_ARRAY, rows: COUNT }, REPEATS)
    expect((await refusal(texts, { ...LIMITS, ms: 60_000 })).message).toMatch(/memory/)
  })
})

describe('in browsers, which have no threads of Node', () => {
  const all = async (name: string) => {
    const rows: unknown[] = []
    const bytes = readFileSync(goldenPath('data', name))
    for await (const { row } of readRows(new MemorySource(bytes, name))) rows.push(row)
    return rows
  }

  it('files are read and refused in the same way', async () => {
    const inThreads = [await all('zstd.parquet'), await all('nested.parquet'), await all('pages.parquet')]
    const threads = vi.spyOn(process, 'getBuiltinModule').mockReturnValue(undefined as never)
    try {
      expect([await all('zstd.parquet'), await all('nested.parquet'), await all('pages.parquet')]).toEqual(inThreads)
      expect(threads).toHaveBeenCalledWith('worker_threads')
      await refusal(column({ codec: SNAPPY }, { content: [4, 1, 9], unpacked: 4 }))
      await refusal(fileWith([0x15]))
      // The time limit is checked between pages.
      const pages = Array(20_000).fill({ content: [0, 0, 0, 0] })
      const { message } = await refusal(column({ rows: 20_000 }, ...pages), { ...LIMITS, ms: 1 })
      expect(message).toContain('it takes more than')
    } finally {
      threads.mockRestore()
    }
  })
})

describe('many columns', () => {
  const wide = (count: number) => fileOf(Array.from({ length: count }, (_, i) => ({ pages: [{ content: u32(i) }] })))
  const read = async (columns: number, names?: Record<string, string>) => {
    const rows: unknown[] = []
    const source = new MemorySource(wide(columns), 'x.parquet')
    for await (const { row } of readRows(source, { columns: names })) rows.push(row)
    return rows
  }

  it('are read', async () => {
    expect(await read(3)).toEqual([{ 'column 0': 0, 'column 1': 1, 'column 2': 2 }])
  })

  it('take a time that grows with their number', async () => {
    const start = performance.now()
    const count = THOROUGH ? 20_001 : 4097
    const last = count - 1
    await expect(read(count)).rejects.toThrow(`more columns than are read; expected at most 4096, got ${count}`)
    expect(await read(count, { a: 'column 7', b: `column ${last}` })).toEqual([{ a: 7, b: last }])
    expect(performance.now() - start).toBeLessThan(60_000)
  }, 90_000)
})
