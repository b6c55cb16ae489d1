import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type ByteSink, MemoryDirectory, readAll } from '../../src/base/bytes.js'
import { decodeFloats, encodeFloats, type FloatDtype } from '../../src/base/dtype.js'
import { FileError, FormatError, MismatchError, NumericError, UnsupportedError } from '../../src/base/errors.js'
import { Random } from '../../src/base/random.js'
import { parseSafetensorsHeader, saveSafetensors, type TensorBytes } from '../../src/formats/safetensors.js'
import { NodeDirectory } from '../../src/io/node-files.js'
import { LoraAdapter } from '../../src/lora/adapter.js'
import type { LoraConfigInput } from '../../src/lora/config.js'
import { loadAdapter } from '../../src/lora/peft.js'
import { mergeCheckpoint } from '../../src/merge/merge-checkpoint.js'
import { directoryOf } from '../infer/models.js'

const FILE = 'model.safetensors'

let temporary: string
beforeAll(async () => {
  temporary = await mkdtemp(path.join(tmpdir(), 'lowrank-'))
})
afterAll(() => rm(temporary, { recursive: true }))

const random = new Random(3, 'test')
const values = (length: number) => Float32Array.from({ length }, () => random.normal())

function tensor(name: string, dtype: FloatDtype, shape: readonly number[]): TensorBytes {
  const length = shape.reduce((a, b) => a * b, 1)
  return { name, dtype, shape, data: encodeFloats(values(length), dtype).slice() }
}

/** A folder with one checkpoint. */
async function folderOf(tensors: TensorBytes[], files: Record<string, string> = {}) {
  const folder = new MemoryDirectory(files, 'base')
  await saveSafetensors(folder, FILE, tensors, { format: 'pt', note: 'ö' })
  return folder
}

function adapterOf(
  layers: Record<string, readonly [d: number, k: number]>,
  config: LoraConfigInput = {},
  value?: number,
) {
  const adapter = new LoraAdapter({ rank: 2, alpha: 3, ...config })
  const { rank } = adapter.config
  const matrix = (rows: number, columns: number) => ({
    data: value === undefined ? values(rows * columns) : new Float32Array(rows * columns).fill(value),
    shape: [rows, columns] as const,
  })
  for (const [name, [d, k]] of Object.entries(layers)) adapter.addFactors(name, matrix(rank, k), matrix(d, rank))
  return adapter
}

/** W + s·B·A of a stored weight (d, k), in its type. */
function effective(adapter: LoraAdapter, name: string, stored: Uint8Array, dtype: FloatDtype): Uint8Array {
  const { weightA, weightB, config, d, k } = adapter.layer(name)
  const copy = new LoraAdapter({ rank: config.rank, alpha: config.alpha, useRslora: config.useRslora })
  const layer = copy.addFactors(name, weightA, weightB)
  layer.attachBase({ data: decodeFloats(stored, dtype), shape: [d, k] })
  return encodeFloats(layer.effectiveWeight().data as Float32Array, dtype)
}

async function tensorsOf(folder: MemoryDirectory, file = FILE): Promise<Map<string, Uint8Array>> {
  const { source, tensors } = await parseSafetensorsHeader(await folder.open(file))
  const entries = [...tensors.values()].map(async ({ name, offset, byteLength }) => {
    return [name, await source.read(offset, byteLength)] as const
  })
  return new Map(await Promise.all(entries))
}

const bytesOf = (folder: MemoryDirectory, file = FILE) => folder.files.get(file) as Uint8Array

describe('merging', () => {
  it('into the bundled model: PEFT’s adapter, tensor by tensor', async () => {
    const base = directoryOf('models/union-3m')
    const adapter = await loadAdapter(directoryOf('tests/golden/peft/patterns-rslora'))
    const out = new MemoryDirectory({}, 'out')
    const progress: number[] = []
    const report = await mergeCheckpoint(base, adapter, out, {
      onProgress: ({ writtenBytes, totalBytes }) => progress.push(writtenBytes / totalBytes),
    })
    const source = await base.open(FILE)
    const before = await parseSafetensorsHeader(source)
    const after = await tensorsOf(out)
    for (const [name, { offset, byteLength }] of before.tensors) {
      const stored = await source.read(offset, byteLength)
      const layer = name.slice(0, -'.weight'.length)
      const expected = adapter.has(layer) ? effective(adapter, layer, stored, 'F32') : stored
      expect(Buffer.compare(after.get(name) as Uint8Array, expected), name).toBe(0)
    }
    expect(report).toMatchObject({ out: `out/${FILE}`, tensors: 56, changed: adapter.size })
    expect(report.layers.map(({ name }) => name)).toEqual(adapter.names())
    for (const { relativeChange } of report.layers) expect(relativeChange).toBeGreaterThan(0.01)
    const kept = ['README.md', 'config.json', 'generation_config.json', 'reference.json', 'tokenizer.json']
    expect([...out.files.keys()].sort()).toEqual([...kept, 'tokenizer_config.json', 'train_base.py', FILE].sort())
    expect(report.bytes).toBe([...out.files.values()].reduce((sum, { byteLength }) => sum + byteLength, 0))
    expect(progress.at(-1)).toBeGreaterThanOrEqual(1)
    await source.close()
  })

  it('keeps types, names, order, metadata and every other byte', async () => {
    const base = await folderOf([
      tensor('a.q.weight', 'F32', [6, 4]),
      tensor('b.q.weight', 'BF16', [6, 4]),
      tensor('c.q.weight', 'F16', [6, 4]),
      tensor('norm.weight', 'BF16', [7]),
      { name: 'steps', dtype: 'I64', shape: [1], data: new Uint8Array(8).fill(9) },
      { name: 'empty', dtype: 'F32', shape: [0, 3], data: new Uint8Array() },
    ])
    const adapter = adapterOf({ 'a.q': [6, 4], 'b.q': [6, 4], 'c.q': [6, 4] })
    const out = new MemoryDirectory()
    const report = await mergeCheckpoint(base, adapter, out)
    const [before, after] = [bytesOf(base), bytesOf(out)]
    expect(after.byteLength).toBe(before.byteLength)
    const dataStart = 8 + Number(new DataView(before.buffer, before.byteOffset).getBigUint64(0, true))
    expect(Buffer.compare(after.subarray(0, dataStart), before.subarray(0, dataStart))).toBe(0)
    const [stored, merged] = [await tensorsOf(base), await tensorsOf(out)]
    for (const [name, bytes] of stored) {
      const dtype = ({ a: 'F32', b: 'BF16', c: 'F16' } as const)[name[0]]
      const isAdapted = name.includes('.q.') && dtype !== undefined
      const expected = isAdapted ? effective(adapter, name.slice(0, 3), bytes, dtype) : bytes
      expect(Buffer.compare(merged.get(name) as Uint8Array, expected), name).toBe(0)
    }
    expect(report).toMatchObject({ tensors: 6, changed: 3 })
  })

  it('into weights stored (k, d)', async () => {
    const base = await folderOf([tensor('h.0.attn.c_attn.weight', 'F32', [3, 5])])
    const adapter = adapterOf({ 'h.0.attn.c_attn': [5, 3] }, { fanInFanOut: true })
    const out = new MemoryDirectory()
    await mergeCheckpoint(base, adapter, out)
    const stored = decodeFloats((await tensorsOf(base)).get('h.0.attn.c_attn.weight') as Uint8Array, 'F32')
    const merged = decodeFloats((await tensorsOf(out)).get('h.0.attn.c_attn.weight') as Uint8Array, 'F32')
    const delta = adapter.layer('h.0.attn.c_attn').delta().data
    merged.forEach((value, i) => {
      expect(value).toBeCloseTo(stored[i] + delta[(i % 5) * 3 + Math.floor(i / 5)], 5)
    })
  })

  it('of one file leaves the files beside it alone', async () => {
    const base = await folderOf([tensor('q.weight', 'F32', [4, 4])], { 'config.json': '{}' })
    base.files.set('other.safetensors', bytesOf(base))
    const out = new MemoryDirectory({}, 'out')
    const report = await mergeCheckpoint(base, adapterOf({ q: [4, 4] }), out, {
      basePath: 'other.safetensors',
      path: 'merged.safetensors',
    })
    expect([...out.files.keys()]).toEqual(['merged.safetensors'])
    expect(report.out).toBe('out/merged.safetensors')
  })
})

describe('what does not fit', () => {
  const names = ['model.layers.0.self_attn.q_proj', 'model.layers.0.self_attn.v_proj', 'model.embed_tokens']
  const tensors = () => [
    tensor(`${names[0]}.weight`, 'BF16', [4, 6]),
    tensor(`${names[1]}.weight`, 'BF16', [2, 6]),
    tensor(`${names[2]}.weight`, 'BF16', [9, 6]),
    { name: 'packed.weight', dtype: 'U8', shape: [4, 3], data: new Uint8Array(12) } as const,
    tensor('conv.weight', 'F32', [4, 6, 1]),
  ]

  it.each<[string, Record<string, [number, number]>, string, new (...args: never[]) => Error, RegExp]>([
    ['another shape', { [names[0]]: [4, 8] }, '{}', MismatchError, /q_proj\.weight: .*expected \(4, 8\), got \(4, 6\)/],
    ['a transposed weight', { [names[0]]: [6, 4] }, '{}', MismatchError, /expected \(6, 4\), got \(4, 6\)/],
    ['a convolution', { conv: [4, 6] }, '{}', MismatchError, /conv\.weight: .*got \(4, 6, 1\)/],
    [
      'a layer without a weight, beside one that has it',
      { [names[0]]: [4, 6], 'model.layers.0.self_attn.qq_proj': [4, 6], 'x.y': [1, 1] },
      '{}',
      MismatchError,
      /no weight for model\.layers\.0\.self_attn\.qq_proj, x\.y; .*Nearest.*self_attn\.q_proj/,
    ],
    ['an adapter without layers', {}, '{}', MismatchError, /no layers/],
    ['a quantised weight', { packed: [4, 3] }, '{}', UnsupportedError, /packed\.weight: .*got U8/],
    ['a head that is not stored', { lm_head: [9, 6] }, '{}', MismatchError, /no lm_head\.weight: input and output/],
    [
      'a tied embedding',
      { [names[2]]: [9, 6] },
      '{"tie_word_embeddings": true}',
      MismatchError,
      /^model\.embed_tokens: .*ties.*tie_word_embeddings false/,
    ],
    ['another vocabulary', { [names[2]]: [10, 6] }, '{}', MismatchError, /expected \(10, 6\).*another vocabulary/],
  ])('%s: nothing is written', async (_, layers, config, kind, message) => {
    const base = await folderOf(tensors(), { 'config.json': config })
    const out = new MemoryDirectory()
    const adapter = adapterOf(layers, { rank: 1 })
    const error = await mergeCheckpoint(base, adapter, out).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(kind)
    expect((error as Error).message).toMatch(message)
    expect(out.files.size).toBe(0)
  })

  it('an untied head is merged', async () => {
    const base = await folderOf([...tensors(), tensor('lm_head.weight', 'BF16', [9, 6])], {
      'config.json': '{"tie_word_embeddings": false}',
    })
    expect(await mergeCheckpoint(base, adapterOf({ lm_head: [9, 6] }), new MemoryDirectory())).toMatchObject({
      changed: 1,
    })
  })

  it.each<[string, Record<string, string>, new (...args: never[]) => Error, RegExp]>([
    ['shards', { 'model.safetensors.index.json': '{}' }, UnsupportedError, /index\.json: .*several shards/],
    ['a pickle', { 'pytorch_model.bin': '' }, UnsupportedError, /pytorch_model\.bin: a pickle/],
    ['nothing', { 'config.json': '{}' }, FileError, /^base: no checkpoint.*expected model\.safetensors/],
    ['no safetensors', { [FILE]: 'hello, this is something else' }, FormatError, /^base\/model\.safetensors: /],
  ])('a folder with %s', async (_, files, kind, message) => {
    const merging = mergeCheckpoint(new MemoryDirectory(files, 'base'), adapterOf({ q: [1, 1] }), new MemoryDirectory())
    await expect(merging).rejects.toThrow(kind)
    await expect(merging).rejects.toThrow(message)
  })
})

describe('nothing half-written', () => {
  const base = () =>
    folderOf([tensor('a.weight', 'F16', [4, 4]), tensor('b.weight', 'F16', [4, 4])], { 'config.json': '{}' })
  const good = { a: [4, 4], b: [4, 4] } as const

  it('a result that is not finite names its tensor and leaves no folder', async () => {
    const folder = path.join(temporary, 'none')
    const merging = mergeCheckpoint(await base(), adapterOf(good, {}, 300), new NodeDirectory(folder))
    await expect(merging).rejects.toThrow(NumericError)
    await expect(merging).rejects.toThrow(/^a\.weight: .*not finite in F16/)
    expect(await readdir(temporary)).toEqual([])
  })

  it('a signal ends it with its reason', async () => {
    const controller = new AbortController()
    const out = new MemoryDirectory()
    const merging = mergeCheckpoint(await base(), adapterOf(good), out, {
      signal: controller.signal,
      onProgress: () => controller.abort(new Error('enough')),
    })
    await expect(merging).rejects.toThrow('enough')
    expect(out.files.size).toBe(0)
  })

  it('a disk that fails at the last name takes the first ones back', async () => {
    class FailingDirectory extends MemoryDirectory {
      override async create(file: string): Promise<ByteSink> {
        const sink = await super.create(file)
        if (file !== FILE) return sink
        return {
          name: sink.name,
          write: (bytes) => sink.write(bytes),
          abort: () => sink.abort(),
          commit: async () => {
            throw new FileError({ where: file, what: 'no space' })
          },
        }
      }
    }
    const out = new FailingDirectory()
    await expect(mergeCheckpoint(await base(), adapterOf(good), out)).rejects.toThrow('no space')
    expect(out.files.size).toBe(0)
  })

  it('the base is never the output', async () => {
    const folder = new NodeDirectory(path.join(temporary, 'base'))
    await saveSafetensors(folder, FILE, [tensor('a.weight', 'F32', [2, 2])])
    const before = await folder.open(FILE).then(readAll)
    await expect(mergeCheckpoint(folder, adapterOf({ a: [2, 2] }), folder)).rejects.toThrow(/output is the base itself/)
    expect(await folder.open(FILE).then(readAll)).toEqual(before)
  })
})
