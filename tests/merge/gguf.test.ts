// Merges into GGUF files, against gguf-py's values (scripts/golden/gguf_merge.py).

import { createHash } from 'node:crypto'
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, it } from 'vitest'
import {
  LoraAdapter,
  LowrankError,
  MemoryDirectory,
  type MergeOptions,
  merge,
  planMerge,
  unmerge,
} from '../../src/api/node.js'
import { MemorySource } from '../../src/core/base/bytes.js'
import { decodeStored } from '../../src/files/gguf/blocks.js'
import { GGML_TYPES, readGguf } from '../../src/files/gguf/read.js'
import { goldenPath } from '../golden.js'

const base = goldenPath('gguf-merge', 'base.gguf')
const union = fileURLToPath(new URL('../../models/union-3m', import.meta.url))
const adapters = goldenPath('gguf-merge', 'adapter')
const expected = JSON.parse(readFileSync(goldenPath('gguf-merge', 'expected.json'), 'utf8')) as Record<
  string,
  [type: string, shape: number[], bytes: number, sha256: string]
>
const NUMBERS: Record<string, number> = {
  F32: 0,
  F16: 1,
  Q4_0: 2,
  Q4_1: 3,
  Q5_0: 6,
  Q5_1: 7,
  Q8_0: 8,
  Q2_K: 10,
  Q4_K: 12,
  Q6_K: 14,
  IQ4_NL: 20,
  BF16: 30,
}
const folder = mkdtempSync(join(tmpdir(), 'lowrank-gguf-merge-'))
afterAll(() => rmSync(folder, { recursive: true }))

async function opened(bytes: Uint8Array) {
  const file = await readGguf(new MemorySource(bytes))
  const tensors = new Map(
    file.tensors.map((tensor) => [
      tensor.name,
      { ...tensor, bytes: bytes.subarray(tensor.offset, tensor.offset + tensor.byteLength) },
    ]),
  )
  return { ...file, tensors }
}
const fileOf = (path: string) => opened(new Uint8Array(readFileSync(path)))

async function merged(options: Partial<MergeOptions> = {}) {
  const out = join(folder, `${Math.random()}.gguf`)
  const report = await merge({ base, adapters, out, on: {}, ...options })
  return { report, out, file: await fileOf(out) }
}

describe('a merge into a GGUF file', () => {
  it('has the bytes of gguf-py in each tensor, and the metadata and the alignment of the base', async () => {
    const { file, report } = await merged()
    const before = await fileOf(base)
    const got = [...file.tensors].map(([name, { type, shape, bytes }]) => {
      const length = expected[name]?.[2]
      return [name, [type, [...shape], length, createHash('sha256').update(bytes.subarray(0, length)).digest('hex')]]
    })
    const wanted = Object.entries(expected).map(([name, [type, ...rest]]) => [name, [NUMBERS[type], ...rest]])
    expect(Object.fromEntries(got)).toEqual(Object.fromEntries(wanted))
    expect(file.metadata).toEqual(before.metadata)
    expect(file.alignment).toBe(64)
    expect(report.format).toBe('gguf')
    expect(report.added).toEqual(['output.weight'])
    expect(report.warnings).toContainEqual(
      expect.stringMatching(/^q4_k becomes q8_0: 1 tensor \(blk\.0\.attn_q\.weight\)/),
    )
  })

  it('is the same without threads, into a folder in memory', async () => {
    const out = new MemoryDirectory()
    await merge({ base, adapters, out, on: {} })
    const { out: path } = await merged()
    expect([...out.files.keys()]).toEqual(['base.gguf'])
    expect(Buffer.compare(out.files.get('base.gguf')!, readFileSync(path))).toBe(0)
  })

  it('says its size before it is written', async () => {
    const plan = await planMerge({ base, adapters, out: join(folder, 'plan.gguf') })
    const { out } = await merged()
    expect(plan.bytes).toBe(readFileSync(out).byteLength)
  })

  it('keeps the tie if it is told to', async () => {
    const { file } = await merged({ tied: 'keep' })
    expect(file.tensors.has('output.weight')).toBe(false)
    const before = await fileOf(base)
    expect(file.tensors.get('token_embd.weight')!.bytes).not.toEqual(before.tensors.get('token_embd.weight')!.bytes)
  })

  it.each(['fp32', 'fp16', 'bf16', 'q8_0', 'q4_0'] as const)('writes changed tensors as %s', async (outDtype) => {
    const { file } = await merged({ outDtype })
    const types = (name: string) => GGML_TYPES.get(file.tensors.get(name)!.type)
    expect(types('blk.0.attn_q.weight')).toBe(outDtype)
    // Rows of 8 values fill no block.
    expect(types('blk.0.attn_output.weight')).toBe(outDtype.startsWith('q') ? 'fp16' : outDtype)
    expect(types('output_norm.weight')).toBe('fp32')
  })

  it('refuses to keep a type that cannot be written', async () => {
    const wrong = merged({ outDtype: 'keep' })
    await expect(wrong).rejects.toThrow(/blk\.0\.attn_q\.weight: .*can be read, but not written.*got q4_k/)
    const other = planMerge({ base: union, format: 'safetensors', adapters, out: 'x', outDtype: 'q8_0' })
    await expect(other).rejects.toThrow(/outDtype: only a \.gguf file can have q8_0/)
  })

  it('is taken out again', async () => {
    const { out } = await merged({ outDtype: 'fp32', tied: 'keep' })
    const back = join(folder, 'back.gguf')
    await unmerge({ merged: out, adapters, out: back, on: {} })
    const [before, after] = [await fileOf(base), await fileOf(back)]
    for (const [name, tensor] of before.tensors) {
      const dtype = GGML_TYPES.get(tensor.type)
      if (dtype === undefined) continue
      const got = after.tensors.get(name)!
      const values = decodeStored(got.bytes, GGML_TYPES.get(got.type)!)
      const wanted = decodeStored(tensor.bytes, dtype)
      const most = Math.max(...values.map((value, i) => Math.abs(value - wanted[i])))
      expect(most, name).toBeLessThan(1e-5)
    }
  })
})

it('joins a model in two files, with DoRA, a single expert and a replaced head', async () => {
  const parts = (...names: string[]) => goldenPath('gguf-merge', 'parts', ...names)
  const wanted = JSON.parse(readFileSync(parts('expected.json'), 'utf8')) as Record<string, unknown[]>
  const { file } = await merged({
    base: parts('base-00001-of-00002.gguf'),
    adapters: [parts('adapter'), parts('experts')],
  })
  expect([...file.tensors.keys()].sort()).toEqual(Object.keys(wanted).sort())
  expect([...file.metadata.keys()].filter((key) => key.startsWith('split.'))).toEqual([])
  for (const [name, [type, shape, ...rest]] of Object.entries(wanted)) {
    const tensor = file.tensors.get(name)!
    expect([tensor.type, tensor.shape], name).toEqual([NUMBERS[type as string], shape])
    if (rest.length === 2) {
      expect([tensor.byteLength, createHash('sha256').update(tensor.bytes).digest('hex')], name).toEqual(rest)
      continue
    }
    const values = decodeStored(tensor.bytes, 'fp32')
    const most = Math.max(...(rest[0] as number[][]).flat().map((value, i) => Math.abs(value - values[i])))
    expect(most, name).toBeLessThan(1e-6)
  }
})

it('copies the embedding to the head if only the embedding changes, in the type that it has', async () => {
  const adapter = new LoraAdapter({ rank: 1, targetModules: ['embed_tokens'] })
  const ones = (count: number) => new Float32Array(count).fill(1)
  const [a, b] = [
    { data: ones(12), shape: [1, 12] as const },
    { data: ones(256), shape: [256, 1] as const },
  ]
  adapter.addEmbedding('model.embed_tokens', a, b)
  const { file } = await merged({ adapters: adapter, outDtype: 'fp16' })
  const before = (await fileOf(base)).tensors.get('token_embd.weight')!
  const head = file.tensors.get('output.weight')!
  expect([head.type, head.bytes]).toEqual([before.type, before.bytes])
  expect(GGML_TYPES.get(file.tensors.get('token_embd.weight')!.type)).toBe('fp16')
})

describe('what does not fit', () => {
  const bytes = readFileSync(base)
  const damaged = (name: string, content: Uint8Array) => {
    const path = join(folder, name)
    writeFileSync(path, content)
    return path
  }
  const filesBefore = () => readdirSync(folder).sort()

  it.each([
    [
      'is no GGUF file',
      damaged('a.gguf', Buffer.concat([Buffer.from('PK'), bytes.subarray(2)])),
      /does not begin with GGUF/,
    ],
    [
      'is cut in its values',
      damaged('b.gguf', bytes.subarray(0, bytes.byteLength - 4000)),
      /the file ends within its values.*download it again/i,
    ],
    ['is cut in its header', damaged('c.gguf', bytes.subarray(0, 300)), /ends within its header/],
    [
      'has another version',
      damaged('d.gguf', Buffer.concat([bytes.subarray(0, 4), Buffer.from([9, 0, 0, 0]), bytes.subarray(8)])),
      /version of GGUF.*got 9/,
    ],
  ])('is said if the base %s, and nothing is written', async (_, path, message) => {
    const before = filesBefore()
    await expect(merged({ base: path })).rejects.toThrow(message)
    expect(filesBefore()).toEqual(before)
  })

  it('names the part of a model in several files that is missing', async () => {
    const first = join(folder, 'm-00001-of-00002.gguf')
    copyFileSync(base, first)
    await expect(merged({ base: first })).rejects.toThrow(/m-00002-of-00002\.gguf: missing: the model has 2 files/)
  })

  it('names what the base has not, and what is of a type that cannot be read', async () => {
    const layer = (module: string, d: number, k: number) => {
      const adapter = new LoraAdapter({ rank: 1, targetModules: 'all-linear' })
      const ones = (count: number) => new Float32Array(count).fill(1)
      adapter.addFactors(module, { data: ones(k), shape: [1, k] }, { data: ones(d), shape: [d, 1] })
      return adapter
    }
    const wrong = (adapter: LoraAdapter) => merged({ adapters: adapter })
    await expect(wrong(layer('model.layers.7.self_attn.q_proj', 8, 256))).rejects.toThrow(
      /model\.layers\.7\.self_attn\.q_proj/,
    )
    await expect(wrong(layer('model.layers.0.self_attn.q_proj', 8, 128))).rejects.toThrow(
      /another shape.*\(8, 128\).*\(8, 256\)/,
    )
    await expect(wrong(layer('model.layers.1.self_attn.k_proj', 4, 256))).rejects.toThrow(
      /blk\.1\.attn_k\.weight: .*type cannot be read.*got type 10 of ggml/,
    )
  })

  it('is not the embedding if no adapter needs it, whatever its type', async () => {
    const name = Buffer.from('token_embd.weight')
    const changed = Buffer.from(bytes)
    // After the name: the number of dimensions, two sizes, and the type. 10 is Q2_K, which is not read.
    changed.writeUInt32LE(10, bytes.indexOf(name) + name.byteLength + 4 + 16)
    const adapter = new LoraAdapter({ rank: 1, targetModules: 'all-linear' })
    const ones = (count: number) => new Float32Array(count).fill(1)
    adapter.addFactors(
      'model.layers.0.self_attn.q_proj',
      { data: ones(256), shape: [1, 256] },
      { data: ones(8), shape: [8, 1] },
    )
    const { file } = await merged({ base: damaged('q2.gguf', changed), adapters: adapter })
    expect(file.tensors.get('token_embd.weight')!.type).toBe(10)
  })

  it('is an error of lowrank however the header is damaged', async () => {
    const header = (await fileOf(base)).tensors.get('token_embd.weight')!.offset
    let state = 7
    const next = (below: number) => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0
      return (state >>> 8) % below
    }
    let refused = 0
    for (let i = 0; i < 2000; i++) {
      const broken = Uint8Array.from(bytes)
      for (let j = 0; j <= next(3); j++) broken[next(header)] = next(4) === 0 ? 255 : next(256)
      const error = await readGguf(new MemorySource(broken)).catch((reason) => reason)
      if (!(error instanceof Error)) continue
      expect(error).toBeInstanceOf(LowrankError)
      refused++
    }
    expect(refused).toBeGreaterThan(100)
  })

  it('is a base without a GGUF file', async () => {
    const out = join(folder, 'x.gguf')
    await expect(merge({ base: goldenPath('gguf-merge'), adapters, out })).rejects.toThrow(
      /only be made from a GGUF file/,
    )
  })
})
