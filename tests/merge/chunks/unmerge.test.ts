// Subtracting adapters from merged models.

import { describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../../src/api/node.js'
import {
  adapter,
  base,
  floats,
  mergeCheckpoint,
  readTensors,
  type TensorSketch,
  unmergeCheckpoint,
} from '../toolkit.js'

const SKETCHES: TensorSketch[] = [
  ['model.embed_tokens.weight', 'bf16', [32, 16]],
  ['model.q_proj.weight', 'bf16', [24, 16]],
  ['model.norm.weight', 'fp32', [16]],
]

/** The largest difference, over all tensors, of values stored in the types of SKETCHES. */
async function distance(one: MemoryDirectory, other: MemoryDirectory): Promise<number> {
  const [a, b] = [await readTensors(one), await readTensors(other)]
  const differences = SKETCHES.flatMap(([name]) => {
    const [x, y] = [floats(a.get(name)!), floats(b.get(name)!)]
    return [...x].map((value, i) => Math.abs(value - y[i]))
  })
  return Math.max(...differences)
}

describe('unmergeCheckpoint', () => {
  it('takes out what was merged, with its weight', async () => {
    const original = await base(SKETCHES)
    const lora = { adapter: adapter({ 'model.q_proj': [24, 16] }), weight: 0.5 }
    const [merged, out] = [new MemoryDirectory(), new MemoryDirectory()]
    await mergeCheckpoint(original, lora, merged)
    await unmergeCheckpoint(merged, lora, out)
    const name = 'model.q_proj.weight'
    const [before, after] = [await readTensors(original), await readTensors(out)]
    const differing = [...before.keys()].filter((each) => {
      return Buffer.compare(before.get(each)!.bytes, after.get(each)!.bytes) !== 0
    })
    expect(differing).toEqual([name])
    // The error that remains is far smaller than the change by the merge.
    expect(await distance(out, original)).toBeLessThan((await distance(merged, original)) / 50)
  })

  it('takes an adapter out of tied embeddings that the merge kept tied', async () => {
    const config = { model_type: 'llama', tie_word_embeddings: true }
    const original = await base(SKETCHES, { config })
    const lora = adapter({ lm_head: [32, 16] })
    const [merged, out] = [new MemoryDirectory(), new MemoryDirectory()]
    await mergeCheckpoint(original, lora, merged, { tied: 'keep' })
    await unmergeCheckpoint(merged, lora, out)
    expect(await distance(out, original)).toBeLessThan((await distance(merged, original)) / 50)
  })
})
