// Adapters of every kind, merged into checkpoints, give the results of PEFT's merge_and_unload (tests/golden/kinds).

import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import {
  type FloatDtype,
  LoraAdapter,
  loadAdapter,
  MemoryDirectory,
  MismatchError,
  type Tensor,
  UnsupportedError,
} from '../../../src/api/node.js'
import { decodeFloats, encodeFloats } from '../../../src/core/base/dtype.js'
import { Random } from '../../../src/core/base/random.js'
import { transpose } from '../../../src/core/base/tensor.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { saveSafetensors } from '../../../src/files/safetensors.js'
import { checkpointOf, expectClose, goldenCases, goldenPath, tensorsIn, tensorsOf, type Values } from '../../golden.js'
import { cases, some } from '../../thorough.js'
import { mergeFiles } from '../node/disk.js'
import { mergeCheckpoint, unmergeCheckpoint } from '../toolkit.js'

const golden = goldenCases<{ base: string }>('kinds')
const [grouped, names] = [true, false].map((is) =>
  golden.flatMap(({ name }) => (name.startsWith('convolution-groups') === is ? name : [])),
)
const folderOf = (name: string) => new NodeDirectory(goldenPath('kinds', name))
const baseOf = (name: string) => golden.find((each) => each.name === name)!.expected.base

/** Makes a folder of the base in a given type. */
async function base(name: string, dtype: FloatDtype = 'fp32'): Promise<MemoryDirectory> {
  return checkpointOf(
    await tensorsOf(goldenPath('kinds', `${name}.safetensors`)),
    '{"tie_word_embeddings": false}',
    dtype,
  )
}

/** Returns the values of PEFT's merged model: the base with the changed tensors. */
async function expectedValues(name: string, original: Values): Promise<Values> {
  const result = new Map(original)
  for (const [key, values] of await tensorsIn(folderOf(name), 'tensors.safetensors')) {
    if (key.startsWith('merged.')) result.set(key.slice('merged.'.length), values)
  }
  return result
}

const scratch = await mkdtemp(path.join(tmpdir(), 'lowrank-kinds-'))
afterAll(() => rm(scratch, { recursive: true }))

describe.each(some(names, 2))('%s', (name) => {
  test('merged as PEFT merges it; what PEFT leaves alone stays bit for bit', async () => {
    const from = await base(baseOf(name))
    const out = new MemoryDirectory({}, 'out')
    const report = await mergeCheckpoint(from, folderOf(name), out)
    const original = await tensorsIn(from)
    const expected = await expectedValues(name, original)
    const got = await tensorsIn(out)
    expectClose(got, expected, 1e-6)
    for (const [key, values] of original) if (expected.get(key) === values) expect(got.get(key)).toEqual(values)
    expect(report.changed).toBeGreaterThan(0)
  })

  if (!some(names).includes(name)) return
  test('the same from an adapter in memory, in Node with threads, and over shards', async () => {
    const from = await base(baseOf(name))
    const out = new MemoryDirectory({}, 'out')
    await mergeCheckpoint(from, folderOf(name), out)
    const expected = await tensorsIn(out)
    const again = new MemoryDirectory({}, 'again')
    await mergeCheckpoint(from, await loadAdapter(folderOf(name)), again)
    expect(await tensorsIn(again)).toEqual(expected)
    const [input, output] = [path.join(scratch, `${name}-in`), path.join(scratch, `${name}-out`)]
    const onDisk = new NodeDirectory(input)
    for (const [file, bytes] of from.files) {
      const sink = await onDisk.create(file)
      await sink.write(bytes)
      await sink.commit()
    }
    await mergeFiles(input, [goldenPath('kinds', name)], output, { threads: 1 })
    expect(await tensorsIn(new NodeDirectory(output))).toEqual(expected)
    const sharded = new MemoryDirectory({}, 'sharded')
    await mergeCheckpoint(from, folderOf(name), sharded, { maxShardBytes: 4000 })
    const all: Values = new Map()
    for (const file of await sharded.list()) {
      if (!file.endsWith('.safetensors')) continue
      for (const [key, values] of await tensorsIn(sharded, file)) all.set(key, values)
    }
    expectClose(all, expected, Number.MIN_VALUE)
  })

  test('into bf16: one rounding of the result', async () => {
    const wide = await base(baseOf(name), 'bf16')
    const out = new MemoryDirectory({}, 'out')
    await mergeCheckpoint(wide, folderOf(name), out)
    const exact = new MemoryDirectory({}, 'exact')
    await mergeCheckpoint(wide, folderOf(name), exact, { outDtype: 'fp32' })
    const got = await tensorsIn(out)
    for (const [key, { data }] of await tensorsIn(exact)) {
      expect(got.get(key)!.data).toEqual(decodeFloats(encodeFloats(data, 'bf16'), 'bf16'))
    }
  })
})

test.each(grouped)('%s cannot be merged, as in PEFT', async (name) => {
  const out = new MemoryDirectory()
  for (const adapter of [folderOf(name), await loadAdapter(folderOf(name))]) {
    const merging = mergeCheckpoint(await base(baseOf(name)), adapter, out)
    await expect(merging).rejects.toThrow(UnsupportedError)
    await expect(merging).rejects.toThrow(/depthwise: an adapted convolution of 4 groups cannot be merged, as in PEFT/)
  }
  expect(out.files.size).toBe(0)
})

test.each(['convolution', 'convolution-lora-bias', 'embedding'])('%s is taken out again', async (name) => {
  const from = await base(baseOf(name))
  const [merged, out] = [new MemoryDirectory({}, 'merged'), new MemoryDirectory({}, 'out')]
  await mergeCheckpoint(from, folderOf(name), merged)
  await unmergeCheckpoint(merged, folderOf(name), out)
  expectClose(await tensorsIn(out), await tensorsIn(from), 1e-6)
})

const unweighted = ['dora', 'embedding-dora', 'convolution-dora', 'modules-to-save', 'tokens']
test.each(unweighted)('%s cannot be weighted or taken out again', async (name) => {
  const merging = mergeCheckpoint(
    await base(baseOf(name)),
    { adapter: folderOf(name), weight: 0.5 },
    new MemoryDirectory(),
  )
  await expect(merging).rejects.toThrow(UnsupportedError)
  await expect(merging).rejects.toThrow(/cannot be merged with a weight, or unmerged; expected weight 1, got 0\.5/)
})

test('two adapters on one weight are refused where one is DoRA, and two replacements of one tensor', async () => {
  const out = new MemoryDirectory()
  const both = (a: string, b: string) => async () =>
    mergeCheckpoint(await base('qwen2'), [folderOf(a), folderOf(b)], out)
  await expect(both('dora', 'linear')()).rejects.toThrow(/_proj\.weight: a DoRA layer and another adapter’s layer/)
  await expect(both('modules-to-save', 'all-together')()).rejects.toThrow(UnsupportedError)
  expect(out.files.size).toBe(0)
})

test('what replaces a tensor must fit the base', async () => {
  const out = new MemoryDirectory()
  await expect(mergeCheckpoint(await base('gpt2'), folderOf('modules-to-save'), out)).rejects.toThrow(MismatchError)
  const adapter = await loadAdapter(folderOf('modules-to-save'))
  const { dtype, data } = adapter.get('lm_head.weight', 'replacement')!
  adapter.remove('lm_head.weight')
  adapter.addReplacement('lm_head.weight', { dtype: dtype, data, shape: [16, 24] })
  await expect(mergeCheckpoint(await base('qwen2'), adapter, out)).rejects.toThrow(
    /^lm_head\.weight: .*of another shape; expected \(32, 12\), got \(16, 24\)/,
  )
  const rows = await loadAdapter(folderOf('tokens'))
  const stored = rows.get('model.embed_tokens[tokens]', 'token-rows')!
  rows.remove(stored.name)
  rows.addTokenRows('model.embed_tokens', [31, 2, 32], stored)
  await expect(mergeCheckpoint(await base('qwen2'), rows, out)).rejects.toThrow(
    /no row 32 to replace; expected below 32/,
  )
  expect(out.files.size).toBe(0)
})

test.each([
  ['modules-to-save', 'lm_head.weight'],
  ['tokens', 'model.embed_tokens'],
])('what replaces values is finite: %s', async (name, tensor) => {
  const adapter = await loadAdapter(folderOf(name))
  const [{ data, dtype }] = adapter
    .parts('replacement', 'token-rows')
    .filter((part) => [part.name, part.module].includes(tensor))
  expect(dtype).toBe('fp32')
  const file = new MemoryDirectory({}, 'adapter')
  for (const part of ['adapter_config.json', 'adapter_model.safetensors']) {
    file.files.set(part, await readFile(goldenPath('kinds', name, part)))
  }
  const bytes = file.files.get('adapter_model.safetensors')!
  const at = Buffer.from(bytes).indexOf(data)
  for (const values of [data, bytes.subarray(at, at + data.length)]) {
    new DataView(values.buffer, values.byteOffset).setFloat32(values.length - 4, Number.NaN, true)
  }
  const out = new MemoryDirectory()
  for (const input of [adapter, file]) {
    const merging = mergeCheckpoint(await base('qwen2'), input, out)
    await expect(merging).rejects.toThrow(new RegExp(`${tensor}.*: holds a value that is not finite`))
  }
  expect(out.files.size).toBe(0)
})

test('a bias of B needs a bias of the base', async () => {
  const adapter = await loadAdapter(folderOf('lora-bias'))
  adapter.addFactors(
    'model.layers.0.self_attn.o_proj',
    { data: new Float32Array(36), shape: [3, 12] },
    { data: new Float32Array(36), shape: [12, 3] },
    { biasB: new Float32Array(12) },
  )
  await expect(mergeCheckpoint(await base('qwen2'), adapter, new MemoryDirectory())).rejects.toThrow(
    /o_proj\.bias: the adapter has a bias of B \(lora_bias\)/,
  )
})

test.each(cases([true], [false]))(
  'a DoRA weight of several blocks and chunks, stored as (k, d): %s',
  async (fanInFanOut) => {
    const random = new Random(5, 'dora')
    const values = (rows: number, columns: number) => {
      const data = Float32Array.from({ length: rows * columns }, () => random.normal())
      return { data, shape: [rows, columns] as const }
    }
    const [d, k] = [1100, 1300]
    const adapter = new LoraAdapter({ rank: 2, alpha: 1, useDora: true, fanInFanOut, targetModules: ['q'] })
    const magnitude = Float32Array.from({ length: d }, (_, i) => 1 + (i % 7))
    const layer = adapter.addFactors('q', values(2, k), values(d, 2), { magnitude })
    const weight = values(d, k)
    const stored = fanInFanOut ? transpose(weight) : weight
    const from = new MemoryDirectory({}, 'base')
    const data = encodeFloats(stored.data as Float32Array, 'fp32')
    await saveSafetensors(from, 'model.safetensors', [{ name: 'q.weight', dtype: 'fp32', shape: stored.shape, data }])
    const out = new MemoryDirectory({}, 'out')
    const report = await mergeCheckpoint(from, adapter, out)
    const effective = layer.attachBase(weight).effectiveWeight()
    const expected = (fanInFanOut ? transpose(effective) : effective) as Tensor
    expectClose(await tensorsIn(out), new Map([['q.weight', expected]]), 1e-6)
    let [change, size] = [0, 0]
    weight.data.forEach((value, i) => {
      change += (effective.data[i] - value) ** 2
      size += value ** 2
    })
    expect(report.layers[0].relativeChange).toBeCloseTo(Math.sqrt(change / size), 5)
  },
)
