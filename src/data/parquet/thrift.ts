// Thrift's compact protocol, in which Parquet writes its footer and the header of each page. Every length is checked
// against the bytes that are left, so that time and memory stay in proportion to the bytes. Source:
// https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md

/** The content of a field. 64-bit integers are skipped: no check needs them. */
export type ThriftValue = boolean | number | undefined | Uint8Array | readonly ThriftValue[] | ThriftStruct
export type ThriftStruct = ReadonlyMap<number, ThriftValue>

/** Parquet's own structures nest up to 8 deep. */
const MAX_DEPTH = 32
const MAX_BYTES_32 = 5
const MAX_BYTES_64 = 10

/** Why bytes are no Parquet; the reader of the file adds its name. */
export class BrokenParquet extends Error {}

/** A place in bytes that moves forward, never past the end. */
export class Cursor {
  readonly bytes: Uint8Array
  at: number

  constructor(bytes: Uint8Array, at = 0) {
    this.bytes = bytes
    this.at = at
  }

  get left(): number {
    return this.bytes.byteLength - this.at
  }

  byte(): number {
    if (this.left < 1) throw new BrokenParquet('the bytes end inside a value')
    return this.bytes[this.at++]
  }

  /** The next bytes, not copied. */
  take(length: number): Uint8Array {
    if (!(length >= 0 && length <= this.left)) throw new BrokenParquet(`${length} bytes where ${this.left} are left`)
    this.at += length
    return this.bytes.subarray(this.at - length, this.at)
  }

  /** An unsigned integer of 7 bits a byte; bits from 32 on are dropped. */
  varint(maxBytes = MAX_BYTES_32): number {
    let value = 0
    for (let i = 0; i < maxBytes; i++) {
      const byte = this.byte()
      if (i < MAX_BYTES_32) value |= (byte & 0x7f) << (7 * i)
      if (byte < 0x80) return value >>> 0
    }
    throw new BrokenParquet(`an integer of more than ${maxBytes} bytes`)
  }

  /** A signed integer as Thrift writes it, of 32 bits. */
  zigzag(maxBytes = MAX_BYTES_32): number {
    const value = this.varint(maxBytes)
    return (value >>> 1) ^ -(value & 1)
  }

  skipInteger64(): void {
    this.varint(MAX_BYTES_64)
  }
}

/** One structure, from the cursor to behind its end. Throws BrokenParquet. */
export function readStruct(cursor: Cursor, depth = 0): ThriftStruct {
  if (depth > MAX_DEPTH) throw new BrokenParquet(`more than ${MAX_DEPTH} structures inside each other`)
  const fields = new Map<number, ThriftValue>()
  let id = 0
  while (true) {
    const byte = cursor.byte()
    const type = byte & 0x0f
    if (type === 0) return fields
    id = byte >> 4 === 0 ? cursor.zigzag() : id + (byte >> 4)
    fields.set(id, readValue(cursor, type, depth))
  }
}

function readValue(cursor: Cursor, type: number, depth: number): ThriftValue {
  switch (type) {
    case 1:
      return true
    case 2:
      return false
    case 3:
      return (cursor.byte() << 24) >> 24
    case 4:
    case 5:
      return cursor.zigzag()
    case 6:
      cursor.skipInteger64()
      return undefined
    case 7:
      cursor.take(8)
      return undefined
    case 8:
      return cursor.take(cursor.varint())
    case 9:
      return readList(cursor, depth)
    case 12:
      return readStruct(cursor, depth + 1)
    default:
      throw new BrokenParquet(`a value of type ${type}, which Parquet does not have`)
  }
}

function readList(cursor: Cursor, depth: number): ThriftValue[] {
  if (depth > MAX_DEPTH) throw new BrokenParquet(`more than ${MAX_DEPTH} lists inside each other`)
  const byte = cursor.byte()
  const type = byte & 0x0f
  const length = byte >> 4 === 15 ? cursor.varint() : byte >> 4
  if (length > cursor.left) throw new BrokenParquet(`a list of ${length} values in ${cursor.left} bytes`)
  const values: ThriftValue[] = []
  for (let i = 0; i < length; i++) values.push(type <= 2 ? cursor.byte() === 1 : readValue(cursor, type, depth + 1))
  return values
}
