// Taking adapters out again, and counting what differs.

import { describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../../src/base/bytes.js'
import type { TensorDtype } from '../../../src/base/dtype.js'
import { compareCheckpoints } from '../../../src/merge/compare.js'
import {
  adapter,
  base,
  compareStored,
  mergeCheckpoint,
  readTensors,
  safetensors,
  type TensorSketch,
  unmergeCheckpoint,
} from '../toolkit.js'

const SKETCHES: TensorSketch[] = [
  ['model.embed_tokens.weight', 'bf16', [32, 16]],
  ['model.q_proj.weight', 'bf16', [24, 16]],
  ['model.norm.weight', 'fp32', [16]],
]

async function checkpoint(dtype: TensorDtype, data: Uint8Array, name = 'x'): Promise<MemoryDirectory> {
  const shape = [data.byteLength / ({ fp32: 4, I64: 8 }[dtype as string] ?? 2)]
  return new MemoryDirectory({ 'model.safetensors': await safetensors([{ name, dtype, shape, data }]) })
}

const halves = (...bits: number[]) => new Uint8Array(Uint16Array.from(bits).buffer)

describe('compareCheckpoints', () => {
  it('counts values, with the largest difference and the steps of the type between them', async () => {
    // 1, 2, −0, the smallest above 0, −1
    const one = await checkpoint('bf16', halves(0x3f80, 0x4000, 0x8000, 0x0001, 0xbf80))
    // 1 and 3 steps, 2, 0, the smallest below 0, −1
    const other = await checkpoint('bf16', halves(0x3f83, 0x4000, 0x0000, 0x8001, 0xbf80))
    const differences = await compareCheckpoints({ directory: one }, { directory: other })
    expect(differences).toEqual({
      differing: 3,
      values: 5,
      largest: 3 * 2 ** -7,
      steps: 3,
      tensors: [{ name: 'x', differing: 3, values: 5, largest: 3 * 2 ** -7, steps: 3 }],
    })
  })

  it('takes f32, what is not finite, and whole numbers', async () => {
    const f32 = (...values: number[]) => checkpoint('fp32', new Uint8Array(Float32Array.from(values).buffer))
    expect(
      await compareCheckpoints({ directory: await f32(1, 2) }, { directory: await f32(1 + 2 ** -23, 2) }),
    ).toMatchObject({
      differing: 1,
      largest: 2 ** -23,
      steps: 1,
    })
    expect(
      await compareCheckpoints({ directory: await f32(1, Number.NaN) }, { directory: await f32(1, 2) }),
    ).toMatchObject({
      differing: 1,
      largest: Number.POSITIVE_INFINITY,
    })
    expect(
      await compareCheckpoints({ directory: await f32(Number.NaN) }, { directory: await f32(Number.NaN) }),
    ).toMatchObject({ differing: 0 })
    const longs = (value: bigint) => checkpoint('I64', new Uint8Array(BigInt64Array.of(7n, value).buffer))
    expect(await compareCheckpoints({ directory: await longs(1n) }, { directory: await longs(-1n) })).toMatchObject({
      differing: 1,
      values: 2,
    })
  })

  it('refuses checkpoints of other tensors', async () => {
    const one = await checkpoint('bf16', halves(1, 2))
    for (const other of [
      await checkpoint('fp16', halves(1, 2)),
      await checkpoint('bf16', halves(1, 2, 3)),
      await checkpoint('bf16', halves(1, 2), 'y'),
    ]) {
      await expect(compareCheckpoints({ directory: one }, { directory: other })).rejects.toMatchObject({
        code: 'MISMATCH',
        where: 'x',
      })
    }
  })
})

describe('unmergeCheckpoint', () => {
  it('takes out what was merged, with its weight, and counts as a comparison of the bytes does', async () => {
    const original = await base(SKETCHES)
    const lora = { adapter: adapter({ 'model.q_proj': [24, 16] }), weight: 0.5 }
    const [merged, out] = [new MemoryDirectory(), new MemoryDirectory()]
    await mergeCheckpoint(original, lora, merged)
    const { differences } = await unmergeCheckpoint(merged, lora, out, { original })
    const name = 'model.q_proj.weight'
    const [before, after] = [await readTensors(original), await readTensors(out)]
    const { differing, ulps } = compareStored(after.get(name)!.bytes, before.get(name)!.bytes, 'bf16')
    expect(differing).toBeGreaterThan(0)
    expect(differences).toMatchObject({ differing, steps: ulps, values: 32 * 16 + 24 * 16 + 16 })
    expect(differences?.tensors.map((tensor) => tensor.name)).toEqual([name])
    // What the merge changes is far larger than what it cannot give back.
    const change = await compareCheckpoints({ directory: merged }, { directory: original })
    expect(differences!.largest).toBeLessThan(change.largest / 50)
  })

  it('takes an adapter out of tied embeddings that the merge kept tied', async () => {
    const config = { model_type: 'llama', tie_word_embeddings: true }
    const original = await base(SKETCHES, { config })
    const lora = adapter({ lm_head: [32, 16] })
    const [merged, out] = [new MemoryDirectory(), new MemoryDirectory()]
    await mergeCheckpoint(original, lora, merged, { tied: 'keep' })
    await expect(unmergeCheckpoint(merged, lora, out)).rejects.toMatchObject({ code: 'MISMATCH' })
    const { differences } = await unmergeCheckpoint(merged, lora, out, { tied: 'keep', original })
    const change = await compareCheckpoints({ directory: merged }, { directory: original })
    expect(change.differing).toBeGreaterThan(400)
    expect(differences!.largest).toBeLessThan(change.largest / 50)
  })
})
