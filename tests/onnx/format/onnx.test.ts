import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { FileError, FormatError, LowrankError, MemoryDirectory, type OnnxModel } from '../../../src/api/node.js'
import { concatBytes } from '../../../src/core/base/bytes.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { sessionModel } from '../../../src/model/session-model.js'
import {
  AttributeProto_AttributeType as AttributeType,
  TensorProto_DataType as DataType,
  ModelProtoSchema,
  TensorProtoSchema,
} from '../../../src/onnx/format/gen/onnx_pb.js'
import { loadOnnx, serializeModel } from '../../../src/onnx/format/model.js'
import { create, toBinary } from '../../../src/onnx/format/protobuf.js'
import { byteLengthOf, floatsOf, integersOf, isExternal } from '../../../src/onnx/format/tensors.js'
import { loadNodeRuntime } from '../../../src/onnx/runtime/node/runtime.js'
import { runs, THOROUGH } from '../../thorough.js'
import { counting, linearModel, linkedTensor, rawTensor, readWeight, weightOf, weights } from './onnx-models.js'
import { writeOnnx } from './write-onnx.js'

const W = weights(16 * 256, 1)
const V = weights(256 * 16, 2)
const model = linearModel(rawTensor('w', W, [16, 256]), rawTensor('v', V, [256, 16]))
const bytes = serializeModel(model)
const x = { type: 'float32' as const, data: weights(32, 3), dims: [2, 16] }

function bytesOf(array: Float32Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength)
}

function load(content: Uint8Array | string, files: Record<string, Uint8Array> = {}): Promise<OnnxModel> {
  return loadOnnx(new MemoryDirectory({ 'm.onnx': content, ...files }), 'm.onnx')
}

async function run(onnx: OnnxModel): Promise<number[]> {
  const runtime = await loadNodeRuntime()
  const session = await runtime.createSession(await sessionModel(onnx, onnx.proto))
  try {
    return [...((await session.run({ x })).y.data as Float32Array)]
  } finally {
    await session.dispose()
  }
}

describe('loading', () => {
  it('keeps a fact about a model, and none about another', async () => {
    const [first, second] = [await load(bytes), await load(bytes)]
    let made = 0
    const countOf = (onnx: OnnxModel) => onnx.once('count', () => ++made)
    expect([first, first, second].map(countOf)).toEqual([1, 1, 2])
    first.once('nothing', () => undefined)
    expect(first.once('nothing', () => 1)).toBeUndefined()
  })

  it('leaves large contents in the file and reads them on demand', async () => {
    const { directory, ranges } = counting(new MemoryDirectory({ 'dir/m.onnx': bytes }))
    const onnx = await loadOnnx(directory, 'dir/m.onnx')
    const range = weightOf(onnx, 'w')
    expect(range).toMatchObject({ location: 'm.onnx', byteLength: W.byteLength, dims: [16, 256] })
    expect(weightOf(onnx, 'c')).toBeUndefined()
    expect(onnx.proto.graph?.node[0].attribute[0].t).toSatisfy(isExternal)
    expect(await readWeight(onnx, 'w')).toEqual(bytesOf(W))
    expect(await readWeight(onnx, 'c')).toEqual(bytesOf(Float32Array.of(0.5)))
    expect(ranges.at(-1)).toEqual([range?.offset, W.byteLength])
  })

  it('skips the weights of a large file', async () => {
    const large = weights(4 << 20)
    const file = serializeModel(linearModel(rawTensor('w', large, [4096, 1024]), rawTensor('v', V, [256, 16])))
    const { directory, ranges } = counting(new MemoryDirectory({ 'm.onnx': file }))
    await loadOnnx(directory, 'm.onnx')
    expect(ranges.reduce((sum, [, length]) => sum + length, 0)).toBeLessThan(file.byteLength / 50)
  })

  it('takes packed float_data for what it is', async () => {
    const tensor = create(TensorProtoSchema, {
      name: 'w',
      dataType: DataType.FLOAT,
      dims: [16n, 256n],
      floatData: [...W],
    })
    const onnx = await load(serializeModel(linearModel(tensor, rawTensor('v', V, [256, 16]))))
    expect(weightOf(onnx, 'w')).toBeDefined()
    expect(await readWeight(onnx, 'w')).toEqual(bytesOf(W))
  })

  // The thorough run nests more deeply than a call stack could.
  const COUNT = THOROUGH ? 50_000 : 10_000
  it('finds very many tensors', async () => {
    const raw = new Float32Array(256)
    const many = linearModel(rawTensor('w', W, [16, 256]), rawTensor('v', V, [256, 16]))
    for (let i = 0; i < COUNT; i++) many.graph?.initializer.push(rawTensor(`w${i}`, raw, [256]))
    const onnx = await load(serializeModel(many))
    expect(weightOf(onnx, `w${COUNT - 1}`)).toMatchObject({ byteLength: 1024 })
  })

  it('finds tensors in sub-graphs', async () => {
    const inner = linearModel(rawTensor('w', W, [16, 256]), rawTensor('v', V, [256, 16])).graph
    const outer = create(ModelProtoSchema, {
      graph: {
        node: [{ opType: 'If', attribute: [{ name: 'then_branch', type: AttributeType.GRAPH, g: inner }] }],
      },
    })
    const onnx = await load(serializeModel(outer))
    const branch = onnx.proto.graph?.node[0].attribute[0].g
    const tensor = branch?.initializer[0]
    expect(tensor).toSatisfy(isExternal)
    expect(await onnx.readTensor(tensor!)).toEqual(bytesOf(W))
    expect(await onnx.readTensor(branch!.node[0].attribute[0].t!)).toEqual(bytesOf(V))
  })

  it('keeps fields that the schema does not know', async () => {
    const unknown = Uint8Array.of(0xfa, 0x7f, 3, 7, 8, 9) // field 2047: 3 bytes
    const onnx = await load(concatBytes([bytes, unknown]))
    const written = serializeModel(onnx.proto)
    expect(written.join()).toContain(unknown.join())
  })

  it('runs without weights in JavaScript memory, and with them where there is no file', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'onnx-'))
    try {
      await writeFile(join(folder, 'm.onnx'), bytes)
      const onFile = await loadOnnx(new NodeDirectory(folder), 'm.onnx')
      const { graph, weightsFolder, weights: content } = await sessionModel(onFile, onFile.proto)
      expect(graph.byteLength).toBeLessThan(1500)
      expect(weightsFolder).toBeDefined()
      expect(content).toBeUndefined()
      expect(await run(onFile)).toEqual(await run(await load(bytes)))
      await onFile.close()
    } finally {
      await rm(folder, { recursive: true })
    }
  })
})

it('knows the size of each type that has one', () => {
  const sizes = Object.entries(DataType).map(([name, type]) => [name, byteLengthOf(type, [8])] as const)
  expect(sizes.filter(([, size]) => size === undefined).map(([name]) => name)).toEqual(['UNDEFINED', 'STRING'])
  expect(Object.fromEntries(sizes)).toMatchObject({
    ...{ FLOAT: 32, DOUBLE: 64, BOOL: 8, INT64: 64, BFLOAT16: 16, COMPLEX128: 128 },
    ...{ FLOAT8E4M3FNUZ: 8, FLOAT6E2M3: 6, FLOAT4E2M1: 4, UINT4: 4, INT2: 2 },
  })
  expect(byteLengthOf(DataType.INT4, [3])).toBe(2)
})

describe('external data', () => {
  const file = concatBytes([new Uint8Array(5), bytesOf(W), bytesOf(V)])
  const linked = (entries: Record<string, string>) =>
    serializeModel(linearModel(linkedTensor('w', [16, 256], entries), rawTensor('v', V, [256, 16])))
  const good = { location: 'm.onnx_data', offset: '5', length: `${W.byteLength}` }

  it('is followed, at any offset', async () => {
    const onnx = await load(linked(good), { 'm.onnx_data': file })
    expect(weightOf(onnx, 'w')).toMatchObject({ location: 'm.onnx_data', offset: 5 })
    expect(await run(onnx)).toEqual(await run(await load(bytes)))
  })

  it('without a length is as long as its shape says', async () => {
    const { length: _, ...rest } = good
    const onnx = await load(linked(rest), { 'm.onnx_data': file })
    expect(weightOf(onnx, 'w')?.byteLength).toBe(W.byteLength)
  })

  it.each<[string, Record<string, string>, unknown, RegExp]>([
    ['is not there', { ...good, location: 'other' }, FileError, /its weights are in other, which is not there/],
    ['reaches outside the folder', { ...good, location: '../m.onnx_data' }, FormatError, /outside its folder/],
    ['reaches outside by a detour', { ...good, location: 'a/../../m.onnx_data' }, FormatError, /outside its folder/],
    ['is absolute', { ...good, location: '/etc/passwd' }, FormatError, /outside its folder/],
    ['is absolute on Windows', { ...good, location: 'C:\\weights' }, FormatError, /outside its folder/],
    ['has no location', { offset: '0' }, FormatError, /names no file/],
    [
      'has a negative offset',
      { ...good, offset: '-1' },
      FormatError,
      /external offset of tensor "w" is not a number of bytes/,
    ],
    [
      'has an offset in hexadecimal',
      { ...good, offset: '0x5' },
      FormatError,
      /offset of tensor "w" is not a number of bytes/,
    ],
    [
      'has no number for a length',
      { ...good, length: '1e9x' },
      FormatError,
      /length of tensor "w" is not a number of bytes/,
    ],
    [
      'has a length that is not its shape',
      { ...good, length: '12' },
      FormatError,
      /expected 16,384 bytes, got 12 bytes/,
    ],
    ['ends behind its file', { ...good, offset: '30000' }, FileError, /read past the end/],
  ])('that %s is refused', async (_, entries, type, message) => {
    const result = load(linked(entries), { 'm.onnx_data': file })
    await expect(result).rejects.toThrow(type as typeof FormatError)
    await expect(result).rejects.toThrow(message)
  })

  describe('behind symbolic links, as in the cache of Hugging Face', () => {
    let folder = ''
    beforeAll(async () => {
      folder = await mkdtemp(join(tmpdir(), 'hub-'))
      await mkdir(join(folder, 'blobs'))
      await mkdir(join(folder, 'snapshots', 'main', 'onnx'), { recursive: true })
      await writeFile(join(folder, 'blobs', 'aaa'), linked(good))
      await writeFile(join(folder, 'blobs', 'bbb'), file)
      await symlink('../../../blobs/aaa', join(folder, 'snapshots', 'main', 'onnx', 'm.onnx'))
      await symlink('../../../blobs/bbb', join(folder, 'snapshots', 'main', 'onnx', 'm.onnx_data'))
    })
    afterAll(() => rm(folder, { recursive: true }))

    it('runs', async () => {
      const onnx = await loadOnnx(new NodeDirectory(join(folder, 'snapshots', 'main')), 'onnx/m.onnx')
      expect(await run(onnx)).toEqual(await run(await load(bytes)))
      await onnx.close()
    })

    it('runs from blobs in several folders', async () => {
      await mkdir(join(folder, 'blobs', 'deep'))
      await rename(join(folder, 'blobs', 'bbb'), join(folder, 'blobs', 'deep', 'bbb'))
      await rm(join(folder, 'snapshots', 'main', 'onnx', 'm.onnx_data'))
      await symlink('../../../blobs/deep/bbb', join(folder, 'snapshots', 'main', 'onnx', 'm.onnx_data'))
      const onnx = await loadOnnx(new NodeDirectory(join(folder, 'snapshots', 'main')), 'onnx/m.onnx')
      expect(await run(onnx)).toEqual(await run(await load(bytes)))
      await onnx.close()
    })
  })
})

describe('what is no ONNX model', () => {
  it.each<[string, Uint8Array | string]>([
    ['an empty file', ''],
    ['a text', 'Not a model at all, but a text that someone saved under the wrong name.'],
    ['a Git LFS pointer', 'version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 12345\n'],
    ['a page of HTML', '<!DOCTYPE html><html><body>404</body></html>'],
    ['zeros', new Uint8Array(100)],
    ['a file cut short in a weight', bytes.subarray(0, 9000)],
    ['a file cut short at its end', bytes.subarray(0, bytes.byteLength - 3)],
    ['a message without a graph', toBinary(ModelProtoSchema, create(ModelProtoSchema, { irVersion: 8n }))],
  ])('%s', async (_, content) => {
    await expect(load(content)).rejects.toThrow(/not an ONNX model/)
    await expect(load(content)).rejects.toThrow(FormatError)
  })

  it('a weight whose content is not its shape', async () => {
    const wrong = linearModel(rawTensor('w', W, [16, 255]), rawTensor('v', V, [256, 16]))
    await expect(load(serializeModel(wrong))).rejects.toThrow(/tensor "w".*expected 16,320 bytes, got 16,384 bytes/)
  })

  it('a shape whose negative dimensions make up for each other', async () => {
    const wrong = linearModel(rawTensor('w', W, [-16, -256]), rawTensor('v', V, [256, 16]))
    await expect(load(serializeModel(wrong))).rejects.toThrow(/tensor "w" has a negative dimension; got \(-16, -256\)/)
  })

  it('sub-graphs nested without end', async () => {
    let graph = linearModel(rawTensor('w', W, [16, 256]), rawTensor('v', V, [256, 16])).graph
    for (let i = 0; i < 60; i++) {
      graph = create(ModelProtoSchema, {
        graph: { node: [{ opType: 'If', attribute: [{ name: 'b', type: AttributeType.GRAPH, g: graph }] }] },
      }).graph
    }
    const deep = create(ModelProtoSchema, graph === undefined ? {} : { graph })
    await expect(load(serializeModel(deep))).rejects.toThrow(/nested more than 100 deep/)
  })

  it('any damage is one of our errors, or a model', async () => {
    const damage = fc.array(fc.tuple(fc.nat(bytes.byteLength - 1), fc.integer({ min: 0, max: 255 })), { minLength: 1 })
    await fc.assert(
      fc.asyncProperty(damage, fc.boolean(), async (changes, nearStart) => {
        const copy = bytes.slice()
        // Most bytes are weights, where damage has no effect, so half of the runs aim at the structure around them.
        for (const [at, value] of changes) copy[nearStart ? at % 60 : copy.byteLength - 1 - (at % 700)] = value
        try {
          await load(copy)
        } catch (error) {
          if (!(error instanceof LowrankError)) throw error
        }
      }),
      { numRuns: runs(1500) },
    )
  })
})

describe('writing', () => {
  const external = async () => {
    const entries = { location: 'm.onnx.data', length: `${W.byteLength}` }
    const small = linkedTensor('w', [16, 256], entries)
    return load(serializeModel(linearModel(small, rawTensor('v', V, [256, 16]))), { 'm.onnx.data': bytesOf(W) })
  }

  it('gives the same model', async () => {
    const onnx = await load(bytes)
    const out = new MemoryDirectory()
    await writeOnnx(onnx, onnx.proto, out, 'copy.onnx')
    expect([...out.files.keys()]).toEqual(['copy.onnx'])
    const copy = await loadOnnx(out, 'copy.onnx')
    expect(await readWeight(copy, 'w')).toEqual(bytesOf(W))
    expect(copy.proto.producerName).toBe('tests')
    expect(await run(copy)).toEqual(await run(onnx))
  })

  it('replaces weights', async () => {
    const onnx = await load(bytes)
    const doubled = W.map((value) => 2 * value)
    const out = new MemoryDirectory()
    const contents = new Map([
      ['w', bytesOf(doubled)],
      ['c', bytesOf(Float32Array.of(1))],
    ])
    await writeOnnx(onnx, onnx.proto, out, 'copy.onnx', { contents })
    const copy = await loadOnnx(out, 'copy.onnx')
    expect(await readWeight(copy, 'w')).toEqual(bytesOf(doubled))
    expect(await readWeight(copy, 'c')).toEqual(bytesOf(Float32Array.of(1)))
    const outputs = await run(copy)
    ;(await run(onnx)).forEach((value, i) => void expect(outputs[i]).toBeCloseTo(2 * value, 3))
  })

  it('keeps weights in a file of their own where they were, on page boundaries', async () => {
    const onnx = await external()
    const out = new MemoryDirectory()
    await writeOnnx(onnx, onnx.proto, out, 'onnx/copy.onnx')
    expect([...out.files.keys()].sort()).toEqual(['onnx/copy.onnx', 'onnx/copy.onnx.data'])
    const copy = await loadOnnx(out, 'onnx/copy.onnx')
    expect((weightOf(copy, 'w')?.offset ?? 1) % 4096).toBe(0)
    expect(await run(copy)).toEqual(await run(onnx))
  })

  it('knows every weight that it replaces', async () => {
    const onnx = await load(bytes)
    const contents = new Map([['nothing', new Uint8Array(4)]])
    await expect(writeOnnx(onnx, onnx.proto, new MemoryDirectory(), 'copy.onnx', { contents })).rejects.toThrow(
      /"nothing"/,
    )
  })
})

it('reads numbers out of a Buffer that is a part of a larger one', () => {
  const part = (bytes: Uint8Array) => {
    const whole = Buffer.alloc(bytes.length + 24, 7)
    whole.set(bytes, 16)
    return whole.subarray(16, 16 + bytes.length)
  }
  const of = (dataType: DataType, values: ArrayBufferView, count: number) => {
    const rawData = part(new Uint8Array(values.buffer)) as never
    return create(TensorProtoSchema, { name: 't', dataType, dims: [BigInt(count)], rawData })
  }
  expect(integersOf(of(DataType.INT64, BigInt64Array.of(1n, -2n), 2))).toEqual([1, -2])
  expect(integersOf(of(DataType.INT32, Int32Array.of(3, -4), 2))).toEqual([3, -4])
  expect(integersOf(of(DataType.BOOL, Uint8Array.of(1, 0, 1), 3))).toEqual([1, 0, 1])
  expect(floatsOf(of(DataType.FLOAT, Float32Array.of(1.5, -2), 2))).toEqual([1.5, -2])
  expect(floatsOf(of(DataType.DOUBLE, Float64Array.of(0.1), 1))).toEqual([0.1])
})
