import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ShapeError } from '../../../src/api/node.js'
import {
  bf16ToF32,
  decodeFloats,
  decodeWeights,
  encodeFloats,
  encodeWeights,
  f16ToF32,
  f32ToBf16,
  f32ToF16,
} from '../../../src/core/base/dtype.js'
import { runs } from '../../thorough.js'

const ALL_HALVES = Uint16Array.from({ length: 65536 }, (_, i) => i)

/** The value of a binary16 number by definition: (−1)^sign · 2^(exponent − 15) · 1.mantissa. */
function halfValue(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const mantissa = bits & 1023
  if (exponent === 31) return mantissa === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
  return exponent === 0 ? sign * mantissa * 2 ** -24 : sign * (1 + mantissa / 1024) * 2 ** (exponent - 15)
}

/** Rounds by searching all values of a 16-bit type, ties to even: slow, but clearly right. */
function nearest(value: number, finite: { bits: number; value: number }[], limit: number): number {
  const sign = Object.is(Math.sign(value), -0) || value < 0 ? 0x8000 : 0
  const magnitude = Math.abs(value)
  if (magnitude >= limit) return sign | finite.length
  let low = 0
  let high = finite.length - 1
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if (finite[middle].value <= magnitude) low = middle
    else high = middle
  }
  const down = magnitude - finite[low].value
  const up = finite[high].value - magnitude
  return sign | (down < up || (down === up && low % 2 === 0) ? low : high)
}

const FINITE_F16 = Array.from({ length: 0x7c00 }, (_, bits) => ({ bits, value: halfValue(bits) }))
const FINITE_BF16 = Array.from({ length: 0x7f80 }, (_, bits) => ({
  bits,
  value: new Float32Array(new Uint32Array([bits << 16]).buffer)[0],
}))

const anyFloat32 = fc.oneof(
  fc.float(),
  fc.float({ min: Math.fround(-70000), max: Math.fround(70000) }),
  fc.float({ min: Math.fround(-1e-4), max: Math.fround(1e-4) }),
  fc.integer({ min: 0, max: 0xffffffff }).map((bits) => new Float32Array(new Uint32Array([bits]).buffer)[0]),
)

describe('f16', () => {
  test('every pattern has the value of its definition', () => {
    const values = f16ToF32(ALL_HALVES)
    for (let bits = 0; bits < 65536; bits++) {
      if (!Object.is(values[bits], halfValue(bits)))
        expect(values[bits], `0x${bits.toString(16)}`).toBe(halfValue(bits))
    }
  })

  test('every pattern survives the way to f32 and back, NaN as some NaN of its sign', () => {
    const back = f32ToF16(f16ToF32(ALL_HALVES))
    for (let bits = 0; bits < 65536; bits++) {
      const nan = (bits & 0x7fff) > 0x7c00
      if (nan) expect((back[bits] & 0x7fff) > 0x7c00 && (back[bits] & 0x8000) === (bits & 0x8000)).toBe(true)
      else if (back[bits] !== bits) expect(back[bits]).toBe(bits)
    }
  })

  test('narrowing gives the nearest value, ties to even', () => {
    fc.assert(
      fc.property(anyFloat32, (value) => {
        const got = f32ToF16(Float32Array.of(value))[0]
        if (Number.isNaN(value)) expect(got & 0x7fff).toBeGreaterThan(0x7c00)
        else expect(got).toBe(nearest(value, FINITE_F16, 65520))
      }),
      { numRuns: runs(2000) },
    )
  })

  test.each([
    [65504, 0x7bff],
    [65519.996, 0x7bff],
    [65520, 0x7c00],
    [2 ** -24, 1],
    [2 ** -25, 0],
    [1.5 * 2 ** -24, 2],
    [2 ** -14 - 2 ** -26, 0x0400],
    [-0, 0x8000],
    [Number.NEGATIVE_INFINITY, 0xfc00],
  ])('%f → %i at the edges', (value, bits) => {
    expect(f32ToF16(Float32Array.of(value))[0]).toBe(bits)
  })
})

describe('bf16', () => {
  test('every pattern survives the way to f32 and back', () => {
    const back = f32ToBf16(bf16ToF32(ALL_HALVES))
    for (let bits = 0; bits < 65536; bits++) {
      const nan = (bits & 0x7fff) > 0x7f80
      if (back[bits] !== (nan ? bits | 0x40 : bits)) expect(back[bits]).toBe(bits)
    }
  })

  test('narrowing gives the nearest value, ties to even', () => {
    const limit = 2 ** 128 - 2 ** 119
    fc.assert(
      fc.property(anyFloat32, (value) => {
        const got = f32ToBf16(Float32Array.of(value))[0]
        if (Number.isNaN(value)) expect(got & 0x7fff).toBeGreaterThan(0x7f80)
        else expect(got).toBe(nearest(value, FINITE_BF16, limit))
      }),
      { numRuns: runs(2000) },
    )
  })

  test('a NaN whose mantissa is all in the lower half stays NaN', () => {
    const nan = new Float32Array(new Uint32Array([0x7f800001, 0xffffffff]).buffer)
    expect([...bf16ToF32(f32ToBf16(nan))].every(Number.isNaN)).toBe(true)
  })
})

describe('f64', () => {
  // Numbers next to a tie of the half types. Rounding to f32 first would turn them into the tie.
  const nearTies = fc
    .tuple(fc.integer({ min: 0, max: 0x7bff }), fc.integer({ min: -60, max: -25 }), fc.boolean(), fc.boolean())
    .map(([bits, small, isUp, isBf16]) => {
      const values = isBf16 ? FINITE_BF16 : FINITE_F16
      const [low, high] = [values[bits].value, values[bits + 1]?.value ?? 65536]
      const tie = low + (high - low) / 2
      return tie + (isUp ? 1 : -1) * (high - low) * 2 ** small
    })
  const anyDouble = fc.oneof(fc.double(), anyFloat32, nearTies, fc.constantFrom(2 ** 128, 1e300, 1e-320, 2 ** -150))

  test('narrowing to a half type rounds once, to nearest, ties to even', () => {
    const half = (value: number, dtype: 'fp16' | 'bf16') =>
      new Uint16Array(encodeWeights(Float64Array.of(value), dtype).buffer)[0]
    fc.assert(
      fc.property(anyDouble, (value) => {
        if (Number.isNaN(value)) {
          expect(half(value, 'fp16') & 0x7fff).toBeGreaterThan(0x7c00)
          return
        }
        expect(half(value, 'fp16')).toBe(nearest(value, FINITE_F16, 65520))
        expect(half(value, 'bf16')).toBe(nearest(value, FINITE_BF16, 2 ** 128 - 2 ** 119))
        expect(half(-value, 'bf16')).toBe(nearest(-value, FINITE_BF16, 2 ** 128 - 2 ** 119))
      }),
      { numRuns: runs(5000) },
    )
  })

  test('to f32 and f64 and back', () => {
    const values = Float64Array.of(1 / 3, -1e300, 0)
    expect(decodeWeights(encodeWeights(values, 'fp64'), 'fp64')).toEqual(values)
    expect(decodeWeights(encodeWeights(values, 'fp32'), 'fp32')).toEqual(Float32Array.from(values))
    const narrow = Float32Array.of(0.1, -2)
    expect(decodeWeights(encodeWeights(narrow, 'fp64'), 'fp64')).toEqual(Float64Array.from(narrow))
    expect(decodeWeights(encodeWeights(narrow, 'bf16'), 'bf16')).toEqual(Float32Array.of(0.10009765625, -2))
  })
})

describe('bytes', () => {
  test('unaligned bytes decode, into memory of their own', () => {
    const bytes = new Uint8Array(9)
    bytes.set(encodeFloats(Float32Array.of(1.5, -2), 'fp32'), 1)
    const values = decodeFloats(bytes.subarray(1), 'fp32')
    bytes.fill(0)
    expect([...values]).toEqual([1.5, -2])
  })

  test('little-endian', () => {
    expect([...encodeFloats(Float32Array.of(1), 'fp32')]).toEqual([0, 0, 0x80, 0x3f])
    expect([...encodeFloats(Float32Array.of(1), 'fp16')]).toEqual([0, 0x3c])
    expect([...encodeFloats(Float32Array.of(1), 'bf16')]).toEqual([0x80, 0x3f])
  })

  test('half an element is an error', () => {
    expect(() => decodeFloats(new Uint8Array(3), 'fp16')).toThrow(ShapeError)
    expect(() => decodeWeights(new Uint8Array(12), 'fp64')).toThrow(ShapeError)
  })
})
