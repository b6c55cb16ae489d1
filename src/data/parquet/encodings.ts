// The encodings inside a page whose counts a reader believes: runs of repeated or packed values, and differences.
// Source: https://github.com/apache/parquet-format/blob/master/Encodings.md

import { BrokenParquet, type Cursor } from './thrift.js'

/** Writers fill the last packed run up to a whole block of values. */
const PADDING = 1024

/**
 * Checks runs of levels or of places in a dictionary, until they give `count` values.
 *
 * @param width bits a value
 * @param wanted which value to count
 * @returns how often `wanted` occurs among the first `count` values
 * @throws BrokenParquet when a run is longer than what is left to fill, or the bytes end before
 */
export function checkRuns(cursor: Cursor, width: number, count: number, wanted = -1): number {
  let seen = 0
  let found = 0
  while (seen < count) {
    const header = cursor.varint()
    const length = header & 1 ? (header >>> 1) * 8 : header >>> 1
    if (length > count - seen + PADDING) {
      throw new BrokenParquet(`a run of ${length} values where ${count - seen} are left`)
    }
    // hyparquet reads a byte even for packed values that have none.
    if (header & 1 && length * width === 0) throw new BrokenParquet('an empty run of packed values')
    const counted = Math.min(length, count - seen)
    if (header & 1) {
      const packed = cursor.take((header >>> 1) * width)
      if (wanted >= 0) for (let i = 0; i < counted; i++) if (packedValue(packed, i, width) === wanted) found++
    } else {
      let value = 0
      for (let shift = 0; shift < width; shift += 8) value |= cursor.byte() << shift
      if (value === wanted) found += counted
    }
    seen += length
  }
  return found
}

/** Value i of packed ones, of at most 16 bits. */
function packedValue(packed: Uint8Array, i: number, width: number): number {
  const bit = i * width
  const at = bit >> 3
  const bits = packed[at] | ((packed[at + 1] ?? 0) << 8) | ((packed[at + 2] ?? 0) << 16)
  return (bits >>> (bit & 7)) & ((1 << width) - 1)
}

/**
 * Checks differences, DELTA_BINARY_PACKED, and leaves the cursor behind them.
 *
 * @param onValue gets each value's low 32 bits
 * @throws BrokenParquet when blocks have sizes that no writer uses, or the bytes end before
 */
export function checkDeltas(cursor: Cursor, count: number, onValue?: (value: number) => void): void {
  const blockSize = cursor.varint()
  const blocks = cursor.varint()
  const size = blockSize / blocks
  if (!(blockSize > 0 && blockSize % 128 === 0 && size % 32 === 0)) {
    throw new BrokenParquet(`blocks of ${blockSize} differences in ${blocks} parts`)
  }
  cursor.varint()
  let value = cursor.zigzag(10)
  if (count > 0) onValue?.(value)
  for (let seen = 1; seen < count; ) {
    const least = cursor.zigzag(10)
    const widths = cursor.take(blocks)
    for (let block = 0; block < blocks && seen < count; block++) {
      if (widths[block] > 64) throw new BrokenParquet(`differences of ${widths[block]} bits`)
      const packed = cursor.take((size * widths[block]) / 8)
      for (let i = 0; i < size && seen < count; i++, seen++) {
        if (onValue === undefined) continue
        value = (value + least + lowBits(packed, i * widths[block], widths[block])) | 0
        onValue(value)
      }
    }
  }
}

/** The low 32 of `width` bits that begin at a bit. */
function lowBits(packed: Uint8Array, bit: number, width: number): number {
  let value = 0
  for (let i = 0; i < Math.min(width, 32); i++) value |= ((packed[(bit + i) >> 3] >> ((bit + i) & 7)) & 1) << i
  return value
}
