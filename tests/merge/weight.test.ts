import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  type ByteSource,
  type FloatDtype,
  type LayerChange,
  LoraAdapter,
  LoraLayer,
  NumericError,
} from '../../src/api/node.js'
import { concatBytes, MemorySource } from '../../src/core/base/bytes.js'
import { decodeFloats, encodeFloats } from '../../src/core/base/dtype.js'
import { Random } from '../../src/core/base/random.js'
import { ChangeSums } from '../../src/merge/merge-report.js'
import { addLayer, type Edit, replaceRows, replaceTensor } from '../../src/merge/onnx/edits.js'
import { openAdapters } from '../../src/merge/plan/adapters.js'
import { chunksOf, segmentsOf } from '../../src/merge/plan/layout.js'
import { ChunkMerger, computeScales } from '../../src/merge/weight.js'
import { NodeProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { create } from '../../src/onnx/format/protobuf.js'
import { cases } from '../thorough.js'

function randomMatrix(rows: number, columns: number, seed: number) {
  const random = new Random(seed, 'test')
  const data = Float32Array.from({ length: rows * columns }, () => random.normal())
  return { data, shape: [rows, columns] as const }
}

function makeLayer(d: number, k: number, rank: number, seed: number): LoraLayer {
  return LoraLayer.fromFactors(randomMatrix(rank, k, seed), randomMatrix(d, rank, seed + 1), { rank, alpha: 3 })
}

/** A layer, its first output in the weight, and the strength with which it is merged. */
interface Part {
  readonly name: string
  readonly layer: LoraLayer
  readonly start: number
  readonly weight: number
}

function partOf(name: string, layer: LoraLayer, start = 0, weight = 1): Part {
  return { name, layer, start, weight }
}

function adapterOf({ name, layer }: Part): LoraAdapter {
  const { weightA, weightB, magnitude, rank, scaling } = layer
  const adapter = new LoraAdapter({ rank, alpha: scaling * rank, useDora: magnitude !== undefined })
  adapter.addFactors(name, weightA, weightB, { magnitude })
  return adapter
}

/** New values for the whole weight, possibly transposed, or for some rows or columns. */
interface Values {
  readonly tensor: { readonly dtype: FloatDtype; readonly shape: readonly number[]; readonly data: Uint8Array }
  readonly isTransposed?: boolean
  readonly lines?: { readonly axis: 0 | 1; readonly indices: readonly number[] }
}

function transposed(data: Float32Array, rows: number, columns: number): Float32Array {
  return data.map((_, i) => data[(i % rows) * columns + Math.floor(i / rows)])
}

/** A stored weight, and the layers and values to merge into it. */
interface Target {
  readonly name: string
  readonly dtype: FloatDtype
  /** As stored: (d, k), or (k, d) when `isInputMajor`. */
  readonly shape: readonly [rows: number, columns: number]
  readonly isInputMajor: boolean
  readonly values?: Values | undefined
  readonly parts: readonly Part[]
}

/** Merges into a weight. */
async function merged({ name, dtype, shape, isInputMajor, parts, values }: Target, weight: Uint8Array) {
  const sources: ByteSource[] = [new MemorySource(weight, name)]
  const inputs = parts.map((part) => ({ adapter: adapterOf(part), weight: part.weight }))
  const { layers, magnitudes } =
    parts.length === 0 ? { layers: [], magnitudes: [] } : await openAdapters(inputs, 1, {}, sources)
  const info = { name, dtype, shape, offset: 0, byteLength: weight.byteLength }
  const base = { name, dtype, base: info, source: 0, layers: [], isReplaced: false, rows: [] }
  const node = create(NodeProtoSchema, { name: 'node' })
  const edit: Edit = { node, input: 1, name, weight: name, base, layers: [], placed: undefined, keys: [] }
  layers.forEach((layer, i) => void addLayer(edit, { ...layer, isInputMajor }, parts[i].start, ''))
  if (values !== undefined) {
    const { tensor, isTransposed = false, lines } = values
    const { data, ...stored } = tensor
    const own = { ...stored, name, offset: 0, byteLength: data.byteLength }
    const source = sources.push(new MemorySource(data, name)) - 1
    const replacement = { adapter: 0, tensor: name, source, info: own, rows: lines?.indices, isTied: false }
    if (lines === undefined) replaceTensor(edit, sources, replacement, isTransposed, '')
    else replaceRows(edit, replacement, lines.axis === 1, '')
  }
  const segments = segmentsOf({ ...edit.base, layers: edit.layers, ...edit.placed }, 0)
  await computeScales([{ segments }], sources, magnitudes)
  const reads: number[] = []
  const [stored] = sources
  sources[0] = {
    name,
    byteLength: stored.byteLength,
    close: () => stored.close(),
    read: (offset, byteLength) => {
      reads.push(offset, byteLength)
      return stored.read(offset, byteLength)
    },
  }
  const merger = new ChunkMerger(sources)
  const sums = new ChangeSums()
  const chunks: Uint8Array[] = []
  for (const segment of segments) {
    const all = chunksOf(segment)
    for (let i = 0; i < all.count; i++) {
      if (segment.weight === undefined) {
        chunks.push(await sources[segment.source].read(all.at(i).baseOffset, all.at(i).baseBytes))
        continue
      }
      const { bytes, changes } = await merger.merge(all.at(i))
      chunks.push(bytes.slice())
      for (const change of changes) sums.add(change)
    }
  }
  const names = new Set(parts.map((part) => part.name))
  const changes = [...names].map((own): LayerChange => ({ name: own, relativeChange: sums.relativeChange(own) }))
  return { bytes: concatBytes(chunks), changes, reads }
}

/** Computes W + s·B·A with plain f32 loops, rounded once to the type. */
function expected({ weightA, weightB, scaling, rank, d, k }: LoraLayer, weight: Float32Array, dtype: FloatDtype) {
  const round = Math.fround
  const result = weight.map((value, at) => {
    let sum = 0
    for (let r = 0; r < rank; r++) {
      const [b, a] = [weightB.data[Math.floor(at / k) * rank + r], weightA.data[r * k + (at % k)]]
      sum = round(sum + round(b * a))
    }
    return value + round(round(scaling) * sum)
  })
  expect(result).toHaveLength(d * k)
  return encodeFloats(result, dtype)
}

const norm = (values: Float32Array) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0))

describe('a merged weight', () => {
  it('is W + s·B·A in plain loops, bit for bit, in every type and layout', async () => {
    const dims = fc.record({ d: fc.integer({ min: 1, max: 9 }), k: fc.integer({ min: 1, max: 9 }) })
    await fc.assert(
      fc.asyncProperty(
        dims,
        fc.integer({ min: 1, max: 4 }),
        fc.constantFrom<FloatDtype>('fp32', 'fp16', 'bf16'),
        fc.boolean(),
        fc.nat(1000),
        async ({ d, k }, rank, dtype, isInputMajor, seed) => {
          const layer = makeLayer(d, k, rank, seed)
          const stored = encodeFloats(randomMatrix(d, k, seed + 2).data, dtype).slice()
          const weight = decodeFloats(stored, dtype)
          const parts = [partOf('q', layer)]
          const shape = isInputMajor ? ([k, d] as const) : ([d, k] as const)
          const input = isInputMajor ? encodeFloats(transposed(weight, d, k), dtype) : stored
          const { bytes, changes } = await merged({ name: 'w', dtype, shape, isInputMajor, parts }, input)
          const values = decodeFloats(bytes, dtype)
          const result = isInputMajor ? transposed(values, k, d) : values
          expect(encodeFloats(result, dtype)).toEqual(expected(layer, weight, dtype))
          expect(changes).toEqual([{ name: 'q', relativeChange: expect.closeTo(layer.normDelta() / norm(weight), 5) }])
        },
      ),
    )
  })

  it.each(cases([true], [false]))(
    'reads and writes a large weight in blocks, each byte once (input-major %s)',
    async (isInputMajor) => {
      const [d, k] = [1500, 1501]
      const layer = makeLayer(d, k, 2, 5)
      const weight = randomMatrix(d, k, 6).data
      const input = encodeFloats(isInputMajor ? transposed(weight, d, k) : weight, 'fp32')
      const shape = isInputMajor ? ([k, d] as const) : ([d, k] as const)
      const parts = [partOf('q', layer)]
      const { bytes, reads } = await merged({ name: 'w', dtype: 'fp32', shape, isInputMajor, parts }, input)
      expect(reads.length / 2).toBeGreaterThan(2)
      let at = 0
      for (let i = 0; i < reads.length; i += 2) {
        expect(reads[i]).toBe(at)
        at += reads[i + 1]
      }
      expect(at).toBe(input.byteLength)
      const values = decodeFloats(bytes, 'fp32')
      const result = isInputMajor ? transposed(values, k, d) : values
      expect(Buffer.compare(encodeFloats(result, 'fp32'), expected(layer, weight, 'fp32'))).toBe(0)
    },
  )

  it.each([false, true])(
    'gives each of several layers its own features and leaves the others (input-major %s)',
    async (isInputMajor) => {
      const k = 5
      const layers = [makeLayer(4, k, 2, 1), makeLayer(3, k, 1, 11)]
      const parts: Part[] = [partOf('q', layers[0]), partOf('v', layers[1], 6)]
      const weight = randomMatrix(9, k, 20).data // q: rows 0 to 3, then two of nobody, v: 6 to 8
      const input = encodeFloats(isInputMajor ? transposed(weight, 9, k) : weight, 'fp32')
      const shape = isInputMajor ? ([k, 9] as const) : ([9, k] as const)
      const { bytes, changes } = await merged({ name: 'w', dtype: 'fp32', shape, isInputMajor, parts }, input)
      const values = decodeFloats(bytes, 'fp32')
      const result = isInputMajor ? transposed(values, k, 9) : values
      const rows = (from: number, to: number, of: Float32Array) => of.slice(from * k, to * k)
      const exactly = (layer: LoraLayer, from: number, to: number) =>
        decodeFloats(expected(layer, rows(from, to, weight), 'fp32'), 'fp32')
      expect(rows(0, 4, result)).toEqual(exactly(layers[0], 0, 4))
      expect(rows(4, 6, result)).toEqual(rows(4, 6, weight))
      expect(rows(6, 9, result)).toEqual(exactly(layers[1], 6, 9))
      expect(changes).toEqual([
        { name: 'q', relativeChange: expect.closeTo(layers[0].normDelta() / norm(rows(0, 4, weight)), 5) },
        { name: 'v', relativeChange: expect.closeTo(layers[1].normDelta() / norm(rows(6, 9, weight)), 5) },
      ])
    },
  )

  it.each<FloatDtype>(['fp32', 'bf16'])('merges a layer whose row is larger than a chunk, in %s', async (dtype) => {
    // Stored as (k, d), beside another layer: 1 MiB holds 262,144 columns of fp32, and 524,288 of bf16.
    const [k, wide] = [2, dtype === 'fp32' ? 262_144 + 5 : 524_288 + 5]
    const [narrow, layer] = [makeLayer(3, k, 1, 1), makeLayer(wide, k, 2, 11)]
    const parts = [partOf('q', narrow), partOf('v', layer, 3)]
    const weight = decodeFloats(encodeFloats(randomMatrix(3 + wide, k, 20).data, dtype), dtype)
    const input = encodeFloats(transposed(weight, 3 + wide, k), dtype)
    const { bytes, changes } = await merged(
      { name: 'w', dtype, shape: [k, 3 + wide], isInputMajor: true, parts },
      input,
    )
    const result = encodeFloats(transposed(decodeFloats(bytes, dtype), k, 3 + wide), dtype)
    const [before, after] = [weight.slice(0, 3 * k), weight.slice(3 * k)]
    const wanted = concatBytes([expected(narrow, before, dtype), expected(layer, after, dtype)])
    expect(Buffer.compare(result, wanted)).toBe(0)
    expect(changes[1]).toEqual({ name: 'v', relativeChange: expect.closeTo(layer.normDelta() / norm(after), 5) })
  })

  it('rounds once: the delta is not narrowed before it is added', async () => {
    // 1 + 2⁻⁸ is halfway between two bf16 neighbors of 1; a delta a little above tips it upwards, but bf16 of the delta
    // alone is 2⁻⁸ again, and the tie goes to the even neighbor, 1.
    const delta = 2 ** -8 + 2 ** -17
    const layer = LoraLayer.fromFactors([[1]], [[delta]], { rank: 1, alpha: 1 })
    const target = {
      name: 'w',
      dtype: 'bf16',
      shape: [1, 1],
      isInputMajor: false,
      parts: [partOf('q', layer)],
    } as const
    const { bytes } = await merged(target, encodeFloats(Float32Array.of(1), 'bf16'))
    expect(decodeFloats(bytes, 'bf16')).toEqual(Float32Array.of(1 + 2 ** -7))
  })

  it.each<[FloatDtype, number, number]>([
    ['fp16', 65000, 600],
    ['bf16', 3.3e38, 1e37],
    ['fp32', 3.4e38, 1e37],
    ['fp32', 1, Number.NaN],
  ])('%s: %d + %d is a NumericError that names the weight', async (dtype, base, delta) => {
    const layer = LoraLayer.fromFactors([[1]], [[delta]], { rank: 1, alpha: 1 })
    const parts = [partOf('q', layer)]
    const input = encodeFloats(Float32Array.of(base), dtype)
    const result = merged({ name: 'q.weight', dtype, shape: [1, 1], isInputMajor: false, parts }, input)
    await expect(result).rejects.toThrow(NumericError)
    await expect(result).rejects.toThrow(/^q\.weight/)
  })

  it('a change of nothing is none, of a zero weight by something is infinite', async () => {
    const change = async (b: number) => {
      const layer = LoraLayer.fromFactors([[1]], [[b]], { rank: 1, alpha: 1 })
      const parts = [partOf('q', layer)]
      const target = { name: 'w', dtype: 'fp32', shape: [1, 1], isInputMajor: false, parts } as const
      return (await merged(target, new Uint8Array(4))).changes[0].relativeChange
    }
    expect(await change(0)).toBe(0)
    expect(await change(1)).toBe(Number.POSITIVE_INFINITY)
  })

  it.each(cases([true], [false]))(
    'adds up layers of several adapters before it rounds, and reports one change (input-major %s)',
    async (isInputMajor) => {
      const [d, k] = [700, 1600] // two blocks
      const [one, other] = [makeLayer(d, k, 2, 1), makeLayer(d, k, 3, 7)]
      const weight = randomMatrix(d, k, 20).data
      const input = encodeFloats(isInputMajor ? transposed(weight, d, k) : weight, 'bf16')
      const base = decodeFloats(input, 'bf16')
      const shape = isInputMajor ? ([k, d] as const) : ([d, k] as const)
      const parts = [partOf('q', one, 0, 0.5), partOf('q', other, 0, -2)]
      const { bytes, changes } = await merged({ name: 'w', dtype: 'bf16', shape, isInputMajor, parts }, input)
      const [a, b] = [one.delta().data, other.delta().data]
      const delta = Float32Array.from(a, (value, i) => 0.5 * value - 2 * b[i])
      const stored = isInputMajor ? transposed(delta, d, k) : delta
      const sum = base.map((value, i) => value + stored[i])
      const off = decodeFloats(bytes, 'bf16').filter(
        (value, i) => Math.abs(value - sum[i]) > 1e-5 + 2 ** -8 * Math.abs(sum[i]),
      )
      expect(off).toHaveLength(0)
      const norms = [delta, base].map((values) => Math.sqrt(values.reduce((total, value) => total + value * value, 0)))
      expect(changes).toEqual([{ name: 'q', relativeChange: expect.closeTo(norms[0] / norms[1], 4) }])
    },
  )

  it.each(cases([true], [false]))('multiplies by DoRA’s scales in blocks (input-major %s)', async (isInputMajor) => {
    const [d, k] = [1100, 1200]
    const plain = makeLayer(d, k, 2, 3)
    const magnitude = randomMatrix(1, d, 9).data.map((value) => 30 + value)
    const config = { rank: 2, alpha: 3, useDora: true }
    const layer = LoraLayer.fromFactors(plain.weightA, plain.weightB, config, '', { magnitude })
    const weight = randomMatrix(d, k, 6).data
    layer.attachBase({ data: weight, shape: [d, k] })
    const want = layer.effectiveWeight().data as Float32Array
    const input = encodeFloats(isInputMajor ? transposed(weight, d, k) : weight, 'fp32')
    const shape = isInputMajor ? ([k, d] as const) : ([d, k] as const)
    const target = { name: 'w', dtype: 'fp32', shape, isInputMajor, parts: [partOf('q', layer)] } as const
    const { bytes, changes } = await merged(target, input)
    const values = decodeFloats(bytes, 'fp32')
    const result = isInputMajor ? transposed(values, k, d) : values
    expect(result.findIndex((value, i) => Math.abs(value - want[i]) > 1e-6 * (1 + Math.abs(want[i])))).toBe(-1)
    const squares = (array: Float32Array) => array.reduce((total, value) => total + value * value, 0)
    const relative = Math.sqrt(squares(want.map((value, i) => value - weight[i])) / squares(weight))
    expect(changes).toEqual([{ name: 'q', relativeChange: expect.closeTo(relative, 4) }])
  })

  it('puts new values in place of the base’s, whole or by line, before layers are added', async () => {
    const base = Float32Array.of(1, 2, 3, 4, 5, 6) // (2, 3)
    const run = async (values: Target['values'], parts: Part[] = []) => {
      const target = { name: 'w', dtype: 'fp32', shape: [2, 3], isInputMajor: false, parts, values } as const
      return [...decodeFloats((await merged(target, encodeFloats(base, 'fp32'))).bytes, 'fp32')]
    }
    const tensor = (shape: number[], ...values: number[]) => {
      return { dtype: 'fp16' as const, shape, data: encodeFloats(Float32Array.from(values), 'fp16').slice() }
    }
    const lines = (axis: 0 | 1, ...indices: number[]) => ({ lines: { axis, indices } })
    expect(await run({ tensor: tensor([2, 3], 9, 8, 7, 6, 5, 4) })).toEqual([9, 8, 7, 6, 5, 4])
    const turned = { tensor: tensor([3, 2], 9, 6, 8, 5, 7, 4), isTransposed: true }
    expect(await run(turned)).toEqual([9, 8, 7, 6, 5, 4])
    expect(await run({ ...lines(0, 1), tensor: tensor([1, 3], 7, 8, 9) })).toEqual([1, 2, 3, 7, 8, 9])
    expect(await run({ ...lines(1, 2, 0), tensor: tensor([2, 2], 10, 20, 30, 40) })).toEqual([30, 2, 10, 40, 5, 20])
    const layer = LoraLayer.fromFactors([[1, 0, 0]], [[1], [2]], { rank: 1, alpha: 1 })
    expect(await run(turned, [partOf('q', layer)])).toEqual([10, 8, 7, 8, 5, 4])
  })
})
