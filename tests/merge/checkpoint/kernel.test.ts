import { describe, expect, it } from 'vitest'
import { decodeFloats, encodeFloats, type FloatDtype } from '../../../src/base/dtype.js'
import { Random } from '../../../src/base/random.js'
import { supports } from '../../../src/kernels/module.js'
import { type MergeKernel, referenceKernel } from '../../../src/merge/checkpoint/kernel.js'
import { createWasmKernel } from '../../../src/merge/checkpoint/wasm-kernel.js'
import { compareStored, normals } from './toolkit.js'

const BYTES = 1 << 18
const builds = (['plain', 'relaxed'] as const).filter(supports)

interface Case {
  dtype: FloatDtype
  rows: number
  columns: number
  rank: number
  column?: number
  base?: Float32Array
  scale?: number
}

function run(kernel: MergeKernel, { dtype, rows, columns, rank, column = 0, base, scale = 0.7 }: Case) {
  const random = new Random(rows * 1000 + columns, 'kernel')
  const width = column + columns
  kernel.loadRight(normals(random, rank * width), rank, width)
  const left = normals(random, rows * rank)
  const weight = encodeFloats(base ?? normals(random, rows * columns), dtype)
  kernel.chunk.set(weight)
  const result = kernel.merge({ dtype, rows, column, columns, left, scale })
  return { ...result, bytes: kernel.chunk.slice(0, weight.byteLength), after: kernel.chunk[weight.byteLength] }
}

it('has at least one build to test', () => expect(builds.length).toBeGreaterThan(0))

describe.each(builds)('merge kernel, %s', (build) => {
  const shapes: [rows: number, columns: number, rank: number][] = [
    [1, 1, 1],
    [1, 8, 3],
    [6, 8, 16],
    [7, 9, 5],
    [13, 264, 2],
    [11, 519, 8],
    [3, 5003, 64],
    [25, 31, 40],
  ]
  it.each((['F32', 'F16', 'BF16'] as const).flatMap((dtype) => shapes.map((shape) => [dtype, ...shape] as const)))(
    'agrees with the plain loops: %s (%i, %i), rank %i',
    (dtype, rows, columns, rank) => {
      const kernel = createWasmKernel(BYTES, build)!
      const fast = run(kernel, { dtype, rows, columns, rank })
      const slow = run(referenceKernel(BYTES), { dtype, rows, columns, rank })
      const a = decodeFloats(fast.bytes, dtype)
      const b = decodeFloats(slow.bytes, dtype)
      const unit = dtype === 'F32' ? 2 ** -22 : dtype === 'F16' ? 2 ** -10 : 2 ** -7
      a.forEach((value, i) => {
        expect(Math.abs(value - b[i])).toBeLessThanOrEqual(unit * Math.max(Math.abs(b[i]), rank))
      })
      if (dtype !== 'F32') expect(compareStored(fast.bytes, slow.bytes, dtype).differing / a.length).toBeLessThan(0.004)
      expect(fast.baseSquares / slow.baseSquares).toBeCloseTo(1, 4)
      expect(fast.deltaSquares / slow.deltaSquares).toBeCloseTo(1, 4)
      expect(fast.isFinite).toBe(true)
      expect(fast.after).toBe(0)
    },
  )

  it('works on a part of one row', () => {
    const job: Case = { dtype: 'BF16', rows: 1, columns: 100, rank: 4, column: 1024 }
    const fast = run(createWasmKernel(BYTES, build)!, job)
    expect(compareStored(fast.bytes, run(referenceKernel(BYTES), job).bytes, 'BF16').ulps).toBeLessThanOrEqual(1)
  })

  it('rounds as the conversions do, on every half float and on special values', () => {
    for (const dtype of ['F16', 'BF16'] as const) {
      const words = Uint16Array.from({ length: 65536 }, (_, i) => i)
      const base = decodeFloats(new Uint8Array(words.buffer), dtype)
      const job: Case = { dtype, rows: 16, columns: 4096, rank: 1, base, scale: 2 ** -20 }
      const fast = run(createWasmKernel(BYTES, build)!, job)
      const slow = run(referenceKernel(BYTES), job)
      const [a, b] = [decodeFloats(fast.bytes, dtype), decodeFloats(slow.bytes, dtype)]
      expect(a.findIndex((value, i) => Number.isNaN(value) !== Number.isNaN(b[i]))).toBe(-1)
      const { differing, ulps } = compareStored(
        encodeFloats(a.map(nanless), dtype),
        encodeFloats(b.map(nanless), dtype),
        dtype,
      )
      expect(ulps).toBeLessThanOrEqual(1)
      expect(differing).toBeLessThan(20)
      expect(fast.isFinite).toBe(false)
    }
  })

  it('keeps values bit for bit, −0 and subnormals too, where the change is zero', () => {
    for (const dtype of ['F32', 'F16', 'BF16'] as const) {
      const base = Float32Array.from([0, 1, -1, 2 ** -24, -(2 ** -15), 3 * 2 ** -24, 65504, 1e-3, 5.9e-8])
      const job: Case = { dtype, rows: 1, columns: base.length, rank: 2, base, scale: 0 }
      expect(run(createWasmKernel(BYTES, build)!, job).bytes).toEqual(encodeFloats(base, dtype))
    }
  })

  it('sees overflow in the stored type', () => {
    const base = new Float32Array(16).fill(65504)
    const job: Case = { dtype: 'F16', rows: 2, columns: 8, rank: 1, base, scale: 1e5 }
    expect(run(createWasmKernel(BYTES, build)!, job).isFinite).toBe(false)
    expect(run(createWasmKernel(BYTES, build)!, { ...job, dtype: 'F32' }).isFinite).toBe(true)
  })

  it('takes factors of any size after one another', () => {
    const kernel = createWasmKernel(BYTES, build)!
    for (const rank of [1, 64, 2, 128]) {
      const job: Case = { dtype: 'BF16', rows: 9, columns: 2000, rank }
      expect(
        compareStored(run(kernel, job).bytes, run(referenceKernel(BYTES), job).bytes, 'BF16').differing,
      ).toBeLessThan(20)
    }
  })
})

function nanless(value: number): number {
  return Number.isNaN(value) ? 0 : value
}
