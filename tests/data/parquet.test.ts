// Counts and lengths that a Parquet file claims and cannot hold. Without the checks, hyparquet follows each of them for a very long time.

import { readFileSync } from 'node:fs'
import { snappyUncompress } from 'hyparquet'
import { describe, expect, it } from 'vitest'
import { MemorySource } from '../../src/base/bytes.js'
import { DataError } from '../../src/base/errors.js'
import { checkDeltas, checkRuns } from '../../src/data/parquet/encodings.js'
import { checkPages } from '../../src/data/parquet/pages.js'
import { unpackSnappy } from '../../src/data/parquet/snappy.js'
import { Cursor, readStruct } from '../../src/data/parquet/thrift.js'
import { readRows } from '../../src/data/read-rows.js'
import { goldenPath } from '../golden.js'

const cursor = (...bytes: number[]) => new Cursor(Uint8Array.from(bytes))

async function refusal(bytes: Uint8Array): Promise<DataError> {
  const read = async () => {
    for await (const _ of readRows(new MemorySource(bytes, 'x.parquet')));
  }
  const error = await read().catch((error: unknown) => error)
  expect(error).toBeInstanceOf(DataError)
  return error as DataError
}

/** A file that has nothing but this footer. */
function fileWith(...footer: number[]): Uint8Array {
  return Buffer.concat([
    Buffer.from('PAR1'),
    Buffer.from(footer),
    Buffer.from([footer.length, 0, 0, 0]),
    Buffer.from('PAR1'),
  ])
}

/** A valid file in which these bytes, found once, are others. */
function changed(name: string, from: number[], to: number[]): Uint8Array {
  const bytes = Buffer.from(readFileSync(goldenPath('data', name)))
  const at = bytes.lastIndexOf(Buffer.from(from))
  expect(at).toBeGreaterThan(0)
  bytes.set(to, at)
  return bytes
}

describe('the structures of a Parquet file', () => {
  it.each([
    ['a list of 2147483647 values in 3 bytes', [0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0, 0, 0]],
    ['an integer of more than 10 bytes', [0x16, ...Array(11).fill(0x80), 0]],
    ['an integer of more than 5 bytes', [0x15, ...Array(6).fill(0x80), 0]],
    ['more than 32 structures inside each other', Array(40).fill(0x1c)],
    ['more than 32 lists inside each other', [0x19, ...Array(40).fill(0x19)]],
    ['4294967295 bytes where 1 are left', [0x18, 0xff, 0xff, 0xff, 0xff, 0x0f, 0]],
    ['a value of type 11', [0x1b, 0, 0]],
    ['the bytes end inside a value', [0x15]],
  ])('%s', async (message, footer) => {
    expect(() => readStruct(cursor(...footer))).toThrow(message)
    expect((await refusal(fileWith(...footer))).message).toContain(`cannot be read as Parquet (${message}`)
  })

  it('have as many rows as their columns have values', async () => {
    // The last row group has 30 rows: 60 as Thrift writes it. The bytes before and after belong to its size.
    const { message } = await refusal(changed('plain.parquet', [0x16, 0x3c, 0x26], [0x16, 0x7e, 0x26]))
    expect(message).toContain('30 values for 63 rows')
  })

  it.each([
    [[...Buffer.from('PAR2')], 'the file does not end in PAR1'],
    [[0xff, 0xff, 0, 0, ...Buffer.from('PAR1')], 'a footer of 65535 bytes in a file of'],
  ])('end with %j', async (end, message) => {
    const bytes = Buffer.from(readFileSync(goldenPath('data', 'plain.parquet')))
    bytes.set(end, bytes.length - end.length)
    expect((await refusal(bytes)).message).toContain(message)
  })
})

describe('a page', () => {
  const column = {
    type: 'INT32',
    typeLength: 0,
    isFlat: true,
    maxRepetition: 0,
    maxDefinition: 0,
    unpack: (bytes: Uint8Array) => bytes,
  }
  const budget = () => ({ values: 1000, bytes: 1000 })
  const I32 = 0x15
  /** The header of a data page of `count` values, in the encoding, and no bytes. */
  const dataPage = (count: number, encoding = 0, packed = 0, length = 0) =>
    Uint8Array.from([
      I32,
      0,
      I32,
      length * 2,
      I32,
      packed * 2,
      0x2c,
      I32,
      ...varint(count * 2),
      I32,
      encoding * 2,
      0,
      0,
    ])
  const varint = (value: number): number[] => (value < 128 ? [value] : [(value & 127) | 128, ...varint(value >>> 7)])

  it('may not claim more than a file of its size holds', () => {
    expect(() => checkPages(dataPage(600), column, 600, budget())).not.toThrow()
    expect(() => checkPages(dataPage(1001), column, 1001, budget())).toThrow('more values than')
    const two = Buffer.concat([dataPage(600), dataPage(600)])
    expect(() => checkPages(two, column, 1200, budget())).toThrow('more values than')
    expect(() => checkPages(dataPage(5, 0, 0, 63), column, 5, { values: 9, bytes: 9 })).toThrow('more bytes than')
  })

  it('holds what its header says', () => {
    expect(() => checkPages(dataPage(5, 0, 40), column, 5, budget())).toThrow('40 bytes where')
    expect(() => checkPages(dataPage(5, 4), column, 5, budget())).toThrow('the encoding 4 for values of type INT32')
    expect(() => checkPages(dataPage(5), column, 6, budget())).toThrow('5 values for 6 rows')
  })
})

describe('runs', () => {
  it('count values as they are', () => {
    // Five times 1, then eight packed values of one bit, of which five are left to fill.
    expect(checkRuns(cursor(10, 1, 3, 0b01010101), 1, 10, 1)).toBe(5 + 3)
    // Eight packed values of three bits, 0 to 7: the example of the specification.
    expect(checkRuns(cursor(3, 0x88, 0xc6, 0xfa), 3, 8, 5)).toBe(1)
  })

  it.each([
    ['a run of 1073741823 values where 8 are left', [0xfe, 0xff, 0xff, 0xff, 0x07, 0], 1],
    ['a run of 17179869176 values', [0xff, 0xff, 0xff, 0xff, 0x0f], 1],
    ['an empty run of packed values', [1, 0], 1],
    ['an empty run of packed values', [3], 0],
    ['the bytes end inside a value', [4], 1],
    ['the bytes end inside a value', [], 1],
  ])('%s', (message, bytes, width) => {
    expect(() => checkRuns(cursor(...bytes), width, 8)).toThrow(message)
  })
})

describe('differences', () => {
  it('give their values', () => {
    // The second example of the specification: 7 5 3 1 2 3 4 5, in one block of 128.
    const values: number[] = []
    const packed = Array(8).fill(0)
    for (const [i, difference] of [0, 0, 0, 3, 3, 3, 3].entries()) packed[i >> 2] |= difference << ((i & 3) * 2)
    const bytes = cursor(0x80, 1, 4, 8, 14, 3, 2, 0, 0, 0, ...packed, 9)
    checkDeltas(bytes, 8, (value) => values.push(value))
    expect(values).toEqual([7, 5, 3, 1, 2, 3, 4, 5])
    expect(bytes.left).toBe(1)
  })

  it.each([
    ['blocks of 128 differences in 4294967295 parts', [0x80, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, 8, 14]],
    ['blocks of 0 differences', [0, 4, 8, 14]],
    ['blocks of 128 differences in 0 parts', [0x80, 1, 0, 8, 14]],
    ['differences of 65 bits', [0x80, 1, 4, 8, 14, 3, 65, 0, 0, 0]],
    ['an integer of more than 10 bytes', [0x80, 1, 4, 8, ...Array(11).fill(0x80)]],
  ])('%s', (message, bytes) => {
    expect(() => checkDeltas(cursor(...bytes), 8)).toThrow(message)
  })
})

describe('Snappy', () => {
  it.each([
    ['a long literal', 70, [60 << 2, 69, ...Array(70).keys()]],
    ['a copy that repeats', 8, [1 << 2, 1, 2, (5 << 2) | 2, 2, 0]],
    ['copies that do not', 13, [4 << 2, 1, 2, 3, 4, 5, (3 << 2) | 2, 5, 0, 1, 5]],
  ])('unpacks as hyparquet does: %s', (_, length, input) => {
    const packed = Uint8Array.from([length, ...input])
    const expected = new Uint8Array(length)
    snappyUncompress(packed, expected)
    expect(unpackSnappy(packed, length)).toEqual(expected)
  })

  it.each([
    ['a Snappy block of more than 4 bytes', [4, 63 << 2, 0xf0, 0xff, 0xff, 0xff, 0]],
    ['a Snappy block that does not have 4 bytes', [5, 0, 0]],
    ['copies from before its start', [4, 1, 9]],
    ['a Snappy block of 1 bytes, where the header says 4', [4, 0, 7]],
    ['4 bytes where 1 are left', [4, 3 << 2, 7]],
  ])('%s', (message, input) => {
    expect(() => unpackSnappy(Uint8Array.from(input), 4)).toThrow(message)
  })
})

/** A file of one row with columns of whole numbers, column i holding i. */
function wideFile(columns: number): Uint8Array {
  const varint = (value: number): number[] => (value < 128 ? [value] : [(value & 127) | 128, ...varint(value >>> 7)])
  const i32 = (delta: number, value: number) => [(delta << 4) | 5, ...varint(value * 2)]
  const i64 = (delta: number, value: number) => [(delta << 4) | 6, ...varint(value * 2)]
  const text = (value: string) => [...varint(value.length), ...Buffer.from(value)]
  const list = (delta: number, type: number, items: number[][]) => {
    const size = items.length < 15 ? [(items.length << 4) | type] : [0xf0 | type, ...varint(items.length)]
    return [(delta << 4) | 9, ...size, ...items.flat()]
  }
  const names = Array.from({ length: columns }, (_, i) => `column ${i}`)
  const pages = names.map((_, i) => {
    const header = [
      ...i32(1, 0),
      ...i32(1, 4),
      ...i32(1, 4),
      0x2c,
      ...i32(1, 1),
      ...i32(1, 0),
      ...i32(1, 3),
      ...i32(1, 3),
      0,
      0,
    ]
    return [...header, i & 255, (i >> 8) & 255, (i >> 16) & 255, 0]
  })
  let offset = 4
  const chunks = names.map((name, i) => {
    const size = pages[i].length
    const parts = [
      ...i32(1, 1),
      ...list(1, 5, [[0]]),
      ...list(1, 8, [text(name)]),
      ...i32(1, 0),
      ...i64(1, 1),
      ...i64(1, size),
      ...i64(1, size),
      ...i64(2, offset),
      0,
    ]
    const chunk = [...i64(2, offset), 0x1c, ...parts, 0]
    offset += size
    return chunk
  })
  const root = [0x48, ...text('root'), ...i32(1, columns), 0]
  const schema = [root, ...names.map((name) => [...i32(1, 1), ...i32(2, 0), 0x18, ...text(name), 0])]
  const group = [...list(1, 12, chunks), ...i64(1, offset), ...i64(1, 1), 0]
  const footer = [...i32(1, 1), ...list(1, 12, schema), ...i64(1, 1), ...list(1, 12, [group]), 0]
  const length = Buffer.alloc(4)
  length.writeUInt32LE(footer.length)
  return Buffer.concat([
    Buffer.from('PAR1'),
    Buffer.from(pages.flat()),
    Buffer.from(footer),
    length,
    Buffer.from('PAR1'),
  ])
}

describe('many columns', () => {
  const read = async (columns: number, names?: Record<string, string>) => {
    const rows: unknown[] = []
    const source = new MemorySource(wideFile(columns), 'x.parquet')
    for await (const { row } of readRows(source, { columns: names })) rows.push(row)
    return rows
  }

  it('are read', async () => {
    expect(await read(3)).toEqual([{ 'column 0': 0, 'column 1': 1, 'column 2': 2 }])
  })

  it('take a time that grows with their number', async () => {
    const start = performance.now()
    await expect(read(20_001)).rejects.toThrow(/more columns than are read; expected at most 4096, got 20001/)
    expect(await read(20_001, { a: 'column 7', b: 'column 19999' })).toEqual([{ a: 7, b: 19_999 }])
    expect(performance.now() - start).toBeLessThan(60_000)
  }, 90_000)
})
