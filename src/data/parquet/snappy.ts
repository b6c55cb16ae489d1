// Snappy's raw format. hyparquet's own decoder follows a negative length backwards and then never ends.
// Source: https://github.com/google/snappy/blob/main/format_description.txt

import { BrokenParquet, Cursor } from './thrift.js'

/**
 * @param length of the result in bytes, from the page's header
 * @throws BrokenParquet when the input does not give exactly so many bytes
 */
export function unpackSnappy(input: Uint8Array, length: number): Uint8Array {
  const cursor = new Cursor(input)
  const output = new Uint8Array(length)
  if (cursor.varint() !== length) throw new BrokenParquet(`a Snappy block that does not have ${length} bytes`)
  let end = 0
  while (cursor.left > 0) {
    const tag = cursor.byte()
    const kind = tag & 3
    const isLiteral = kind === 0
    const count = isLiteral ? literalLength(cursor, tag >> 2) : kind === 1 ? ((tag >> 2) & 7) + 4 : (tag >> 2) + 1
    if (count > length - end) throw new BrokenParquet(`a Snappy block of more than ${length} bytes`)
    if (isLiteral) output.set(cursor.take(count), end)
    else {
      const distance = kind === 1 ? ((tag >> 5) << 8) | cursor.byte() : littleEndian(cursor, kind === 2 ? 2 : 4)
      if (distance === 0 || distance > end) throw new BrokenParquet('a Snappy block that copies from before its start')
      // A copy may overlap itself: then its bytes repeat.
      if (distance >= count) output.copyWithin(end, end - distance, end - distance + count)
      else for (let i = end; i < end + count; i++) output[i] = output[i - distance]
    }
    end += count
  }
  if (end !== length) throw new BrokenParquet(`a Snappy block of ${end} bytes, where the header says ${length}`)
  return output
}

function literalLength(cursor: Cursor, code: number): number {
  return (code < 60 ? code : littleEndian(cursor, code - 59)) + 1
}

function littleEndian(cursor: Cursor, byteLength: number): number {
  let value = 0
  for (let i = 0; i < byteLength; i++) value += cursor.byte() * 2 ** (8 * i)
  return value
}
