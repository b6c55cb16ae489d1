// Vectors with fewer bits, as quantize_embeddings of sentence-transformers makes them: a bit for each number, or a byte
// between the least and the highest value that the number has in some texts.

import { ConfigError } from '../../core/base/errors.js'
import { kind } from '../../core/base/options.js'
import type { Precision, Ranges } from './options.js'

const isNumbers = (value: unknown): value is readonly number[] => Array.isArray(value) && value.every(Number.isFinite)

export const RANGES = kind('[least values, highest values], as `calibrate` gives them', (value) => {
  return Array.isArray(value) && value.length === 2 && value.every(isNumbers) && value[0].length === value[1].length
})

/** The least and the highest value of each number of the vectors. */
export function rangesOf(vectors: readonly Float32Array[]): Ranges {
  const [first] = vectors
  const most = (pick: (...values: number[]) => number) =>
    Array.from(first, (_, i) => vectors.reduce((found, vector) => pick(found, vector[i]), first[i]))
  return [most(Math.min), most(Math.max)]
}

export function checkRanges(precision: Precision, ranges: Ranges | undefined): void {
  if (!precision.endsWith('int8') || ranges !== undefined) return
  throw new ConfigError({
    where: 'ranges',
    what: `${precision} needs the values that a byte stands for, which one text does not have`,
    hint: 'Take `await session.calibrate(texts)` of many documents, and save it beside the index',
  })
}

export function quantized(
  vector: Float32Array,
  precision: Exclude<Precision, 'float32'>,
  ranges: Ranges | undefined,
): Int8Array | Uint8Array {
  if (precision === 'binary' || precision === 'ubinary') {
    const bits = new Uint8Array(Math.ceil(vector.length / 8))
    for (const [i, value] of vector.entries()) if (value > 0) bits[i >> 3] |= 0x80 >> (i & 7)
    return precision === 'ubinary' ? bits : Int8Array.from(bits, (byte) => byte - 128)
  }
  const [least, most] = ranges!
  if (least.length !== vector.length) {
    const [expected, got] = [`${vector.length} numbers`, `${least.length}`]
    throw new ConfigError({ where: 'ranges', what: 'of vectors of another size', expected, got })
  }
  const { fround, floor, min, max } = Math
  const bytes = Array.from(vector, (value, i) => {
    const step = fround(fround(most[i] - least[i]) / 255) || 1
    return min(255, max(0, floor(fround(fround(value - least[i]) / step))))
  })
  return precision === 'uint8' ? Uint8Array.from(bytes) : Int8Array.from(bytes, (byte) => byte - 128)
}

/** The values that a quantized vector stands for: the middle of each byte's range, and 1 or −1 for a bit. */
export function restored(
  vector: Int8Array | Uint8Array,
  precision: Exclude<Precision, 'float32'>,
  { ranges, size }: { readonly ranges: Ranges; readonly size: number },
): Float32Array {
  const offset = vector instanceof Int8Array ? 128 : 0
  if (precision === 'binary' || precision === 'ubinary') {
    return Float32Array.from({ length: size }, (_, i) => (((vector[i >> 3] + offset) << (i & 7)) & 0x80 ? 1 : -1))
  }
  const [least, most] = ranges
  return Float32Array.from(vector, (byte, i) => least[i] + ((byte + offset + 0.5) * (most[i] - least[i])) / 255)
}
