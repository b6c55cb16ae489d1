import { describe, expect, it } from 'vitest'
import { type FloatDtype, MemoryDirectory, saveAdapter } from '../../../src/api/node.js'
import { writeFile } from '../../../src/core/base/bytes.js'
import { decodeFloats } from '../../../src/core/base/dtype.js'
import { handles } from '../../files/io/web/fake-folder.js'
import {
  adapter,
  base,
  compareStored,
  expectedWeight,
  mergeCheckpoint,
  readTensors,
  type TensorSketch,
} from '../toolkit.js'

const LLAMA: TensorSketch[] = [
  ['model.embed_tokens.weight', 'bf16', [32, 16]],
  ['model.layers.0.q_proj.weight', 'bf16', [24, 16]],
  ['model.layers.0.norm.weight', 'fp32', [16]],
  ['model.layers.0.up_proj.weight', 'fp32', [7, 16]],
  ['model.layers.0.down_proj.weight', 'fp16', [16, 7]],
  ['model.layers.0.steps', 'I64', [3]],
  ['lm_head.weight', 'bf16', [32, 16]],
]
const Q = 'model.layers.0.q_proj'
const UP = 'model.layers.0.up_proj'
const DOWN = 'model.layers.0.down_proj'

const merged = async (
  ...[from, adapters, options]: [MemoryDirectory, Parameters<typeof mergeCheckpoint>[1], object?]
) => {
  const out = new MemoryDirectory({}, 'out')
  const report = await mergeCheckpoint(from, adapters, out, options ?? {})
  return { out, report, before: await readTensors(from), after: await readTensors(out) }
}

describe('mergeCheckpoint', () => {
  it('changes what the adapter names, in three types, and carries all else over byte for byte', async () => {
    const from = await base(LLAMA, { files: { 'tokenizer.json': '{}' } })
    const lora = adapter({ [Q]: [24, 16], [UP]: [7, 16], [DOWN]: [16, 7] })
    const { out, report, before, after } = await merged(from, lora)
    for (const name of [Q, UP, DOWN]) {
      const tensor = before.get(`${name}.weight`)!
      const expected = expectedWeight(tensor, [[lora, name]])
      expectClose(after.get(`${name}.weight`)!.bytes, expected, tensor.dtype as FloatDtype)
    }
    for (const [name, tensor] of before) {
      if (![Q, UP, DOWN].includes(name.replace('.weight', ''))) expect(after.get(name)).toEqual(tensor)
    }
    const header = (directory: MemoryDirectory) => {
      const bytes = directory.files.get('model.safetensors')!
      return new TextDecoder().decode(bytes.slice(8, 8 + Number(new DataView(bytes.buffer).getBigUint64(0, true))))
    }
    expect(header(out)).toBe(header(from))
    expect([...out.files.keys()].sort()).toEqual(['config.json', 'model.safetensors', 'tokenizer.json'])
    expect(out.files.get('config.json')).toEqual(from.files.get('config.json'))
    expect(report).toMatchObject({ tensors: 7, changed: 3, leftOut: [] })
    const change = report.layers.find(({ name }) => name === Q)!.relativeChange
    const norm = Math.sqrt(expectedNorm(before.get(`${Q}.weight`)!))
    expect(change).toBeCloseTo(lora.layer(Q).normDelta() / norm, 5)
  })

  it('keeps the shards and copies the index', async () => {
    const from = await base(LLAMA, { shards: 3 })
    const lora = adapter({ [Q]: [24, 16], [DOWN]: [16, 7] })
    const { out, after, before } = await merged(from, lora)
    expect([...out.files.keys()].sort()).toEqual([...from.files.keys()].sort())
    expect(out.files.get('model.safetensors.index.json')).toEqual(from.files.get('model.safetensors.index.json'))
    expect([...after.keys()]).toEqual([...before.keys()])
    expect(
      compareStored(after.get(`${Q}.weight`)!.bytes, expectedWeight(before.get(`${Q}.weight`)!, [[lora, Q]]), 'bf16')
        .ulps,
    ).toBeLessThanOrEqual(1)
  })

  it('adds several adapters up with their weights, and rounds once', async () => {
    const from = await base(LLAMA)
    const one = adapter({ [Q]: [24, 16], [UP]: [7, 16] }, { rank: 2, alpha: 5 }, 3)
    const two = adapter({ [Q]: [24, 16] }, { rank: 3, alpha: 1, useRslora: true }, 4)
    const folder = new MemoryDirectory({}, 'two')
    await saveAdapter(two, folder)
    const { before, after } = await merged(from, [
      { adapter: one, weight: 0.5 },
      { adapter: folder, weight: -2 },
    ])
    const q = expectedWeight(before.get(`${Q}.weight`)!, [
      [one, Q, 0.5],
      [two, Q, -2],
    ])
    expect(compareStored(after.get(`${Q}.weight`)!.bytes, q, 'bf16').differing).toBeLessThanOrEqual(1)
    const up = expectedWeight(before.get(`${UP}.weight`)!, [[one, UP, 0.5]])
    expectClose(after.get(`${UP}.weight`)!.bytes, up, 'fp32')
  })

  it.each([true, false])(
    'merges into weights that are stored input-major: their shapes say so, the config %s',
    async (fanInFanOut) => {
      const from = await base([['h.0.c_attn.weight', 'fp32', [8, 24]]])
      const lora = adapter({ 'h.0.c_attn': [24, 8] }, { fanInFanOut })
      const { before, after } = await merged(from, lora)
      const expected = expectedWeight(before.get('h.0.c_attn.weight')!, [[lora, 'h.0.c_attn']])
      expectClose(after.get('h.0.c_attn.weight')!.bytes, expected, 'fp32')
    },
  )
})

/** Expects equal values within a rounding of the type and the error of f32 sums whose terms cancel. */
function expectClose(actual: Uint8Array, expected: Uint8Array, dtype: FloatDtype): void {
  const [a, b] = [decodeFloats(actual, dtype), decodeFloats(expected, dtype)]
  const unit = dtype === 'fp32' ? 2 ** -23 : dtype === 'fp16' ? 2 ** -10 : 2 ** -7
  a.forEach((value, i) => {
    expect(Math.abs(value - b[i])).toBeLessThanOrEqual(unit * Math.abs(b[i]) + 5e-7)
  })
  if (dtype !== 'fp32') expect(compareStored(actual, expected, dtype).differing).toBeLessThanOrEqual(2)
}

function expectedNorm(tensor: Parameters<typeof expectedWeight>[0]): number {
  const bytes = expectedWeight(tensor, [], 'fp32')
  return new Float32Array(bytes.buffer).reduce((sum, value) => sum + value * value, 0)
}

describe('where a browser keeps files', () => {
  it('is left as it was when its quota is too small', async () => {
    const { folder, directory } = handles()
    await writeFile(directory, 'notes.txt', 'mine')
    folder.quota = 700
    const merging = mergeCheckpoint(await base(LLAMA, { shards: 3 }), adapter({ [Q]: [24, 16] }), directory)
    await expect(merging).rejects.toMatchObject({ code: 'FILE', what: expect.stringContaining('no space left') })
    expect(await directory.list()).toEqual(['notes.txt'])
    folder.quota = Number.POSITIVE_INFINITY
    await mergeCheckpoint(await base(LLAMA, { shards: 3 }), adapter({ [Q]: [24, 16] }), directory)
    expect((await directory.list()).filter((name) => name.endsWith('.safetensors'))).toHaveLength(3)
  })
})
