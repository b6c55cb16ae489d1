import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { FormatError, MemoryDirectory, ShapeError, UnsupportedError } from '../../src/api/node.js'
import { MemorySource, readAll } from '../../src/core/base/bytes.js'
import { encodeFloats } from '../../src/core/base/dtype.js'
import {
  parseSafetensorsHeader,
  planSafetensors,
  readTensorF32,
  saveSafetensors,
  type TensorBytes,
} from '../../src/files/safetensors.js'

async function write(tensors: TensorBytes[], metadata?: Record<string, string>): Promise<Uint8Array> {
  const directory = new MemoryDirectory()
  await saveSafetensors(directory, 'x.safetensors', tensors, metadata)
  return readAll(await directory.open('x.safetensors'))
}

const parse = (bytes: Uint8Array) => parseSafetensorsHeader(new MemorySource(bytes, 'x.safetensors'))

function floats(name: string, values: number[], shape = [values.length]): TensorBytes {
  return { name, dtype: 'fp32', shape, data: encodeFloats(Float32Array.from(values), 'fp32') }
}

describe('writing', () => {
  // The bytes of safetensors 0.8.0: save({'b': f32 (2, 2), 'a': f16 (3), 'é': i64 (0), 'z\n\x7f': u8 ()}, {'format':
  // 'pt'})
  test('gives the bytes of the reference implementation', async () => {
    const bytes = await write(
      [
        { name: 'z\n\x7f', dtype: 'U8', shape: [], data: new Uint8Array(1) },
        { name: 'a', dtype: 'fp16', shape: [3], data: new Uint8Array(6) },
        { name: 'b', dtype: 'fp32', shape: [2, 2], data: new Uint8Array(16) },
        { name: 'é', dtype: 'I64', shape: [0], data: new Uint8Array(0) },
      ],
      { format: 'pt' },
    )
    const json =
      '{"__metadata__":{"format":"pt"},"é":{"dtype":"I64","shape":[0],"data_offsets":[0,0]},' +
      '"b":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"a":{"dtype":"F16","shape":[3],"data_offsets":[16,22]},' +
      '"z\\n\x7f":{"dtype":"U8","shape":[],"data_offsets":[22,23]}}'
    const header = new TextEncoder().encode(json)
    const padded = Math.ceil(header.byteLength / 8) * 8
    expect(Number(new DataView(bytes.buffer).getBigUint64(0, true))).toBe(padded)
    expect(new TextDecoder().decode(bytes.subarray(8, 8 + padded))).toBe(
      json.padEnd(json.length + padded - header.byteLength),
    )
    expect(bytes.byteLength).toBe(8 + padded + 23)
  })

  test('sorts names by code point within a dtype', () => {
    const spec = (name: string) => ({ name, dtype: 'fp32' as const, shape: [1] })
    const { tensors } = planSafetensors(['\u{1f600}', '\uffee', 'a', 'ab', 'B'].map(spec))
    expect(tensors.map(({ name }) => name)).toEqual(['B', 'a', 'ab', '\uffee', '\u{1f600}'])
  })

  test('the plan tells every offset before a byte is written', async () => {
    const plan = planSafetensors([floats('a', [1, 2]), floats('b', [3])])
    const file = await parse(await write([floats('a', [1, 2]), floats('b', [3])]))
    expect([...file.tensors.values()]).toEqual(plan.tensors)
    expect(plan.header.byteLength % 8).toBe(0)
  })

  test.each<[string, TensorBytes[], new (...args: never[]) => Error]>([
    ['two tensors of one name', [floats('a', [1]), floats('a', [2])], FormatError],
    ['a tensor named __metadata__', [floats('__metadata__', [1])], FormatError],
    ['half a surrogate pair in a name', [floats('\ud800', [1])], FormatError],
    ['data that do not fill the shape', [floats('a', [1, 2], [3])], ShapeError],
    ['a shape with a fraction', [floats('a', [1], [0.5])], ShapeError],
    ['half bytes', [{ name: 'a', dtype: 'F4', shape: [3], data: new Uint8Array(2) }], ShapeError],
  ])('refuses %s and leaves no file', async (_, tensors, type) => {
    const directory = new MemoryDirectory()
    await expect(saveSafetensors(directory, 'x', tensors)).rejects.toThrow(type)
    expect(await directory.list()).toEqual([])
  })
})

describe('reading', () => {
  test('keeps metadata, order and values', async () => {
    const file = await parse(
      await write([floats('b', [1, 2, 3, 4], [2, 2]), floats('a', [5])], { format: 'pt', é: '1' }),
    )
    expect(file.metadata).toEqual({ format: 'pt', é: '1' })
    expect([...file.tensors.keys()]).toEqual(['a', 'b'])
    expect(await readTensorF32(file, 'b')).toEqual({ data: Float32Array.of(1, 2, 3, 4), shape: [2, 2] })
  })

  test('widens f16 and bf16', async () => {
    const values = Float32Array.of(1, -0.5, 3)
    const file = await parse(
      await write([
        { name: 'half', dtype: 'fp16', shape: [3], data: encodeFloats(values, 'fp16') },
        { name: 'brain', dtype: 'bf16', shape: [3], data: encodeFloats(values, 'bf16') },
      ]),
    )
    expect((await readTensorF32(file, 'half')).data).toEqual(values)
    expect((await readTensorF32(file, 'brain')).data).toEqual(values)
  })

  test('a file without tensors, and tensors without elements', async () => {
    expect((await parse(await write([]))).tensors.size).toBe(0)
    const file = await parse(await write([floats('a', [], [0, 7]), floats('b', [1]), floats('c', [], [3, 0])]))
    expect((await readTensorF32(file, 'c')).shape).toEqual([3, 0])
  })

  test('other dtypes are named, and so are near misses', async () => {
    const file = await parse(await write([{ name: 'ids', dtype: 'I64', shape: [1], data: new Uint8Array(8) }]))
    await expect(readTensorF32(file, 'ids')).rejects.toThrow(UnsupportedError)
    await expect(readTensorF32(file, 'ids')).rejects.toThrow(/x\.safetensors: ids: .*got I64/)
    await expect(readTensorF32(file, 'idx')).rejects.toThrow(/no tensor named idx.*Did you mean ids/)
  })

  test('reads a tensor and nothing else', async () => {
    const source = new MemorySource(await write([floats('a', [1, 2]), floats('b', [3])]), 'x')
    const reads: [number, number][] = []
    const counting = {
      name: 'x',
      byteLength: source.byteLength,
      read: (offset: number, byteLength: number) => {
        reads.push([offset, byteLength])
        return source.read(offset, byteLength)
      },
      close: async () => {},
    }
    const file = await parseSafetensorsHeader(counting)
    await readTensorF32(file, 'b')
    const { offset, byteLength } = file.tensors.get('b')!
    const headerBytes = Number(new DataView((await source.read(0, 8)).slice().buffer).getBigUint64(0, true))
    expect(reads).toEqual([
      [0, 8],
      [8, headerBytes],
      [offset, byteLength],
    ])
  })
})

const dtypes = fc.constantFrom('BOOL', 'U8', 'bf16', 'fp16', 'I32', 'fp32', 'fp64', 'I64', 'C64', 'F8_E4M3' as const)
const SIZES = { BOOL: 1, U8: 1, bf16: 2, fp16: 2, I32: 4, fp32: 4, fp64: 8, I64: 8, C64: 8, F8_E4M3: 1 }

const tensorsArbitrary = fc.uniqueArray(
  fc.record({
    name: fc.string({ unit: 'binary', maxLength: 8 }).filter((name) => name !== '__metadata__'),
    dtype: dtypes,
    shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 3 }),
    seed: fc.integer({ min: 0, max: 255 }),
  }),
  { selector: ({ name }) => name, maxLength: 6 },
)

test('whatever is written is read back, byte for byte', async () => {
  await fc.assert(
    fc.asyncProperty(
      tensorsArbitrary,
      fc.dictionary(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' })),
      async (specs, metadata) => {
        const tensors = specs.map(({ name, dtype, shape, seed }) => {
          const byteLength = shape.reduce((product, dim) => product * dim, SIZES[dtype as keyof typeof SIZES])
          return { name, dtype, shape, data: new Uint8Array(byteLength).map((_, i) => seed + i) } as TensorBytes
        })
        const bytes = await write(tensors, metadata)
        const file = await parse(bytes)
        expect({ ...file.metadata }).toEqual({ ...metadata })
        expect(file.tensors.size).toBe(tensors.length)
        for (const { name, dtype, shape, data } of tensors) {
          const info = file.tensors.get(name)!
          expect(info).toMatchObject({ name, dtype, shape })
          expect(bytes.subarray(info.offset, info.offset + info.byteLength)).toEqual(data)
        }
      },
    ),
    { numRuns: 200 },
  )
})
