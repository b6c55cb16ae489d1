// Weights in F64, alone and among other types. Their merges are computed in f64. Other types are not, even with F64
// adapters.

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { LoraAdapter, MemoryDirectory } from '../../../src/api/node.js'
import { decodeWeights, encodeWeights } from '../../../src/core/base/dtype.js'
import { Random } from '../../../src/core/base/random.js'
import { fromDisk, mergeFiles, toDisk } from '../node/disk.js'
import {
  base,
  expectedWeight,
  floats,
  mergeCheckpoint,
  readTensors,
  safetensors,
  type TensorSketch,
  unmergeCheckpoint,
} from '../toolkit.js'

const SKETCHES: TensorSketch[] = [
  ['a_proj.weight', 'fp64', [40, 24]],
  ['b_proj.weight', 'fp32', [40, 24]],
  ['c_proj.weight', 'bf16', [24, 40]],
  ['embed.weight', 'fp64', [10, 24]],
]
const SHAPES = { a_proj: [40, 24], b_proj: [40, 24], c_proj: [24, 40] } as const

/** Makes an adapter with f64 factors that f32 cannot hold exactly. */
function wide(seed: number, shapes: Partial<typeof SHAPES> = SHAPES): LoraAdapter {
  const rank = 3
  const random = new Random(seed, 'wide')
  const result = new LoraAdapter({ rank, alpha: 5, targetModules: 'all-linear' })
  const normals = (count: number) => Float64Array.from({ length: count }, () => random.normal())
  for (const [name, [d, k]] of Object.entries(shapes)) {
    result.addFactors(
      name,
      { data: normals(rank * k), shape: [rank, k] },
      { data: normals(d * rank), shape: [d, rank] },
    )
  }
  return result
}

/** Makes a folder as PEFT writes it for an adapter that was trained in f64. */
async function folderOf(adapter: LoraAdapter): Promise<MemoryDirectory> {
  const tensors = adapter.parts('linear').flatMap(({ name, weightA, weightB }) =>
    [['A', weightA] as const, ['B', weightB] as const].map(([factor, { data, shape }]) => ({
      name: `base_model.model.${name}.lora_${factor}.weight`,
      dtype: 'fp64' as const,
      shape,
      data: encodeWeights(data, 'fp64'),
    })),
  )
  const config = { peft_type: 'LORA', r: 3, lora_alpha: 5, target_modules: Object.keys(SHAPES) }
  return new MemoryDirectory({
    'adapter_config.json': JSON.stringify(config),
    'adapter_model.safetensors': await safetensors(tensors),
  })
}

/** Returns the largest |x − y|, relative to the largest |y|. */
function errorOf(x: ArrayLike<number>, y: ArrayLike<number>): number {
  let [error, largest] = [0, 0]
  for (let i = 0; i < y.length; i++) {
    error = Math.max(error, Math.abs(x[i] - y[i]))
    largest = Math.max(largest, Math.abs(y[i]))
  }
  return error / largest
}

const scratch = await mkdtemp(path.join(tmpdir(), 'lowrank-f64-'))
afterAll(() => rm(scratch, { recursive: true }))

describe('fp64', () => {
  it('is merged in f64, beside weights of other types', async () => {
    const [from, out] = [await base(SKETCHES), new MemoryDirectory()]
    const adapter = wide(1)
    const report = await mergeCheckpoint(from, await folderOf(adapter), out)
    expect(report.changed).toBe(3)
    const [before, after] = [await readTensors(from), await readTensors(out)]
    for (const [name, tolerance] of [
      ['a_proj', 1e-15],
      ['b_proj', 1e-6],
      ['c_proj', 2 ** -8],
    ] as const) {
      const expected = expectedWeight(before.get(`${name}.weight`)!, [[adapter, name]], 'fp64')
      const got = after.get(`${name}.weight`)!
      expect(errorOf(floats(got), decodeWeights(expected, 'fp64')), name).toBeLessThan(tolerance)
    }
    expect(after.get('embed.weight')).toEqual(before.get('embed.weight'))
    for (const { relativeChange } of report.layers) expect(relativeChange).toBeGreaterThan(1)
  })

  it('is the same from memory, with several adapters, over new shards, and in Node with threads', async () => {
    const from = await base(SKETCHES)
    const adapters = [{ adapter: wide(1), weight: 0.3 }, { adapter: wide(2) }]
    const out = new MemoryDirectory()
    await mergeCheckpoint(from, adapters, out)
    const [before, after] = [await readTensors(from), await readTensors(out)]
    const sum = [[adapters[0].adapter, 'a_proj', 0.3] as const, [adapters[1].adapter, 'a_proj'] as const]
    const expected = expectedWeight(before.get('a_proj.weight')!, sum)
    expect(errorOf(floats(after.get('a_proj.weight')!), decodeWeights(expected, 'fp64'))).toBeLessThan(1e-15)
    const sharded = new MemoryDirectory()
    await mergeCheckpoint(from, adapters, sharded, { maxShardBytes: 4000 })
    expect(sharded.files.size).toBeGreaterThan(3)
    expect(await readTensors(sharded)).toEqual(after)
    const input = await toDisk(from, path.join(scratch, 'base'))
    await mergeFiles(input, adapters, path.join(scratch, 'out'), { threads: 1 })
    const onDisk = await fromDisk(path.join(scratch, 'out'))
    expect(Buffer.compare(onDisk.files.get('model.safetensors')!, out.files.get('model.safetensors')!)).toBe(0)
  })

  it('is merged where it is stored input-major, in chunks of part of a row, and with DoRA magnitudes', async () => {
    const [d, k, rank] = [150_000, 2, 2]
    const from = await base([['h.c_attn.weight', 'fp64', [k, d]]])
    const random = new Random(3, 'conv')
    const normals = (count: number) => Float64Array.from({ length: count }, () => random.normal())
    const parts = [normals(rank * k), normals(d * rank), normals(d).map((x) => 1 + x * x)] as const
    const adapter = new LoraAdapter({ rank, alpha: 2, targetModules: 'all-linear', fanInFanOut: true })
    adapter.addFactors('h.c_attn', { data: parts[0], shape: [rank, k] }, { data: parts[1], shape: [d, rank] })
    const out = new MemoryDirectory()
    await mergeCheckpoint(from, adapter, out)
    const before = (await readTensors(from)).get('h.c_attn.weight')!
    const sum = decodeWeights(expectedWeight(before, [[adapter, 'h.c_attn']]), 'fp64')
    expect(errorOf(floats((await readTensors(out)).get('h.c_attn.weight')!), sum)).toBeLessThan(1e-15)
    const dora = new LoraAdapter({ ...adapter.config, useDora: true })
    const magnitude = Float32Array.from(parts[2])
    dora.addFactors(
      'h.c_attn',
      { data: parts[0], shape: [rank, k] },
      { data: parts[1], shape: [d, rank] },
      { magnitude },
    )
    await mergeCheckpoint(from, dora, out)
    const expected = sum.map((value, at) => (value * magnitude[at % d]) / Math.hypot(sum[at % d], sum[d + (at % d)]))
    expect(errorOf(floats((await readTensors(out)).get('h.c_attn.weight')!), expected)).toBeLessThan(1e-14)
  })

  it('is converted with one rounding', async () => {
    // In f32 this is a tie between two bf16 values, and the even value is farther away.
    const value = 1 + 2 ** -8 + 2 ** -40
    const data = encodeWeights(Float64Array.of(value, -value, 1e-310, 2, 0.1), 'fp64')
    const from = new MemoryDirectory({
      'model.safetensors': await safetensors([
        { name: 'x', dtype: 'fp64', shape: [5], data },
        { name: 'a_proj.weight', dtype: 'fp64', shape: [40, 24], data: new Uint8Array(40 * 24 * 8) },
      ]),
    })
    const adapter = wide(4, { a_proj: SHAPES.a_proj })
    const out = new MemoryDirectory()
    await mergeCheckpoint(from, adapter, out, { outDtype: 'bf16' })
    const after = await readTensors(out)
    expect([...floats(after.get('x')!)]).toEqual([1 + 2 ** -7, -1 - 2 ** -7, 0, 2, 0.10009765625])
    const sum = expectedWeight((await readTensors(from)).get('a_proj.weight')!, [[adapter, 'a_proj']], 'bf16')
    expect(Buffer.compare(after.get('a_proj.weight')!.bytes, sum)).toBe(0)
    await expect(
      mergeCheckpoint(
        new MemoryDirectory({
          'model.safetensors': await safetensors([
            {
              name: 'a_proj.weight',
              dtype: 'fp64',
              shape: [40, 24],
              data: encodeWeights(new Float64Array(960).fill(1e300), 'fp64'),
            },
          ]),
        }),
        adapter,
        out,
        { outDtype: 'fp32' },
      ),
    ).rejects.toMatchObject({ code: 'NUMERIC', where: 'a_proj.weight' })
  })

  it('comes back from a merge up to its last digits', async () => {
    const original = await base(SKETCHES)
    const [merged, out] = [new MemoryDirectory(), new MemoryDirectory()]
    await mergeCheckpoint(original, wide(1), merged)
    await unmergeCheckpoint(merged, wide(1), out)
    const [before, after] = [await readTensors(original), await readTensors(out)].map((tensors) => {
      return floats(tensors.get('a_proj.weight')!)
    })
    expect(after.length).toBe(960)
    const largest = Math.max(...[...after].map((value, i) => Math.abs(value - before[i])))
    expect(largest).toBeGreaterThan(0)
    expect(largest).toBeLessThan(1e-14)
  })

  it('takes replaced values of other float types', async () => {
    const from = await base(SKETCHES)
    const adapter = wide(1)
    const data = Float32Array.from({ length: 24 }, (_, i) => i + 0.1)
    adapter.addTokenRows('embed', [7], { data, shape: [1, 24] })
    const out = new MemoryDirectory()
    await mergeCheckpoint(from, adapter, out)
    const [before, after] = [await readTensors(from), await readTensors(out)]
    const expected = floats(before.get('embed.weight')!)
    expected.set(data, 7 * 24)
    expect(floats(after.get('embed.weight')!)).toEqual(expected)
  })
})
