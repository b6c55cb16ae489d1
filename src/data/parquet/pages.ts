// Walks the pages of a column chunk before hyparquet does, and refuses counts and sizes that the bytes cannot hold.
// What the walk takes for the next page is what hyparquet takes for it. Source:
// https://github.com/apache/parquet-format/blob/master/README.md

import { checkDeltas, checkRuns } from './encodings.js'
import { BrokenParquet, Cursor, readStruct, type ThriftStruct } from './thrift.js'

/** The cost that the rest of a file may have. */
export interface Budget {
  /** Entries of columns, empty ones included. */
  values: number
  /** Bytes of pages that are not compressed. */
  bytes: number
}

/** Facts of a column that its pages are read with. */
export interface ColumnKind {
  /** Parquet's physical type, such as BYTE_ARRAY. */
  readonly type: string
  /** Bytes of a value of FIXED_LEN_BYTE_ARRAY. */
  readonly typeLength: number
  readonly isFlat: boolean
  readonly maxRepetition: number
  readonly maxDefinition: number
  /** The page's bytes; throws when they are not as many as the header says. */
  readonly unpack: (bytes: Uint8Array, length: number) => Uint8Array
}

const DATA_PAGE = 0
const DICTIONARY_PAGE = 2
const DATA_PAGE_V2 = 3

const PLAIN = 0
const DICTIONARIES = [2, 8]
const RLE = 3
const DELTA_BINARY_PACKED = 5
const DELTA_LENGTH_BYTE_ARRAY = 6
const DELTA_BYTE_ARRAY = 7
const BYTE_STREAM_SPLIT = 9

const INTEGERS = ['INT32', 'INT64']
const BYTE_STRINGS = ['BYTE_ARRAY', 'FIXED_LEN_BYTE_ARRAY']
const WIDTHS: Record<string, number> = { INT32: 4, INT64: 8, FLOAT: 4, DOUBLE: 8 }

/**
 * @param bytes of the whole chunk
 * @param rows of its row group
 * @throws BrokenParquet
 */
export function checkPages(bytes: Uint8Array, column: ColumnKind, rows: number, budget: Budget): void {
  const cursor = new Cursor(bytes)
  let seen = 0
  while ((column.isFlat ? seen < rows : true) && cursor.left > 1) {
    const header = readStruct(cursor)
    const packed = cursor.take(whole(header, 3, 'bytes'))
    const length = whole(header, 2, 'bytes')
    spend(budget, 'bytes', length)
    const type = header.get(1)
    if (type === DICTIONARY_PAGE) checkDictionary(column.unpack(packed, length).byteLength, struct(header, 7), column)
    else if (type === DATA_PAGE) seen += checkDataPage(column.unpack(packed, length), struct(header, 5), column, budget)
    else if (type === DATA_PAGE_V2) seen += checkDataPageV2(packed, length, struct(header, 8), column, budget)
    else throw new BrokenParquet(`a page of type ${String(type)}`)
  }
  if (seen < rows) throw new BrokenParquet(`${seen} values for ${rows} rows`)
}

/** Takes from what a file may cost. */
export function spend(budget: Budget, what: keyof Budget, count: number): void {
  budget[what] -= count
  if (!(budget[what] >= 0)) throw new BrokenParquet(`more ${what} than a file of its size can hold`)
}

function struct(fields: ThriftStruct, id: number): ThriftStruct {
  const value = fields.get(id)
  if (!(value instanceof Map)) throw new BrokenParquet('a page without its header')
  return value
}

/** A count that is there and not negative. */
function whole(fields: ThriftStruct, id: number, what: string): number {
  const value = fields.get(id)
  if (typeof value !== 'number' || value < 0) throw new BrokenParquet(`a page with ${String(value)} ${what}`)
  return value
}

function checkDictionary(byteLength: number, header: ThriftStruct, { type, typeLength }: ColumnKind): void {
  const count = whole(header, 1, 'values')
  const width = type === 'FIXED_LEN_BYTE_ARRAY' ? typeLength : (WIDTHS[type] ?? 4)
  if (type === 'BOOLEAN' || !(count * width <= byteLength)) {
    throw new BrokenParquet(`a dictionary of ${count} values in ${byteLength} bytes`)
  }
}

/** @returns how many values the page has */
function checkDataPage(bytes: Uint8Array, header: ThriftStruct, column: ColumnKind, budget: Budget): number {
  const cursor = new Cursor(bytes)
  const count = whole(header, 1, 'values')
  spend(budget, 'values', count)
  const levels = () => new Cursor(cursor.take(littleEndian32(cursor)))
  if (column.maxRepetition > 0) checkRuns(levels(), bitWidth(column.maxRepetition), count)
  const { maxDefinition } = column
  const present = maxDefinition > 0 ? checkRuns(levels(), bitWidth(maxDefinition), count, maxDefinition) : count
  checkValues(cursor, header.get(2), present, column, budget)
  return count
}

/** The levels of the second kind of page are before the part that is compressed. */
function checkDataPageV2(
  packed: Uint8Array,
  length: number,
  header: ThriftStruct,
  column: ColumnKind,
  budget: Budget,
): number {
  const cursor = new Cursor(packed)
  const count = whole(header, 1, 'values')
  spend(budget, 'values', count)
  const empty = whole(header, 2, 'empty values')
  const repetitions = new Cursor(cursor.take(whole(header, 6, 'bytes of levels')))
  const definitions = new Cursor(cursor.take(whole(header, 5, 'bytes of levels')))
  const { maxRepetition, maxDefinition, unpack } = column
  if (maxRepetition > 0) checkRuns(repetitions, bitWidth(maxRepetition), count)
  if (maxDefinition > 0) checkRuns(definitions, bitWidth(maxDefinition), count)
  else if (definitions.left > 0) throw new BrokenParquet('levels in a column without empty values')
  if (empty > count) throw new BrokenParquet(`${empty} empty values of ${count}`)
  const rest = packed.subarray(cursor.at)
  const unpacked = length - cursor.at
  const isPacked = header.get(7) !== false && unpacked !== 0
  if (isPacked && unpacked < 0) throw new BrokenParquet(`a page of ${length} bytes with ${cursor.at} bytes of levels`)
  checkValues(new Cursor(isPacked ? unpack(rest, unpacked) : rest), header.get(4), count - empty, column, budget)
  return count
}

function checkValues(cursor: Cursor, encoding: unknown, count: number, column: ColumnKind, budget: Budget): void {
  const { type, typeLength } = column
  const isText = BYTE_STRINGS.includes(type)
  // Each value has its bytes: a reader stops at their end.
  if (encoding === PLAIN) return
  if (DICTIONARIES.includes(encoding as number) && type !== 'BOOLEAN') {
    if (count > 0 || cursor.left > 0) checkPlaces(cursor, count)
  } else if (encoding === RLE && type === 'BOOLEAN') {
    checkRuns(new Cursor(cursor.take(littleEndian32(cursor))), 1, count)
  } else if (encoding === DELTA_BINARY_PACKED && INTEGERS.includes(type)) {
    checkDeltas(cursor, count)
  } else if (encoding === DELTA_LENGTH_BYTE_ARRAY && isText) {
    checkDeltas(cursor, count)
  } else if (encoding === DELTA_BYTE_ARRAY && isText) {
    checkPrefixes(cursor, count, budget)
  } else if (encoding === BYTE_STREAM_SPLIT) {
    cursor.take(count * (WIDTHS[type] ?? typeLength))
  } else {
    throw new BrokenParquet(`the encoding ${String(encoding)} for values of type ${type}`)
  }
}

/** Values that are places in a dictionary. */
function checkPlaces(cursor: Cursor, count: number): void {
  const width = cursor.byte()
  if (width > 32) throw new BrokenParquet(`places of ${width} bits in a dictionary`)
  if (width > 0) checkRuns(cursor, width, count)
}

/** Texts that begin with a part of the text before: each may be as long as the page, so their sum counts. */
function checkPrefixes(cursor: Cursor, count: number, budget: Budget): void {
  const prefixes: number[] = []
  checkDeltas(cursor, count, (value) => prefixes.push(value))
  let i = 0
  let before = 0
  checkDeltas(cursor, count, (suffix) => {
    const prefix = prefixes[i++]
    if (!(prefix >= 0 && prefix <= before && suffix >= 0)) {
      throw new BrokenParquet(`a text with ${prefix} characters of one with ${before}`)
    }
    before = prefix + suffix
    spend(budget, 'bytes', before)
  })
}

function littleEndian32(cursor: Cursor): number {
  const [a, b, c, d] = cursor.take(4)
  return a + b * 2 ** 8 + c * 2 ** 16 + d * 2 ** 24
}

/** Bits that levels up to `max` need. */
function bitWidth(max: number): number {
  return 32 - Math.clz32(max)
}
