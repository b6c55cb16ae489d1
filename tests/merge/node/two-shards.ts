// Merges a base of two shards while something else changes its folder.

import { expect } from 'vitest'
import { MemoryDirectory } from '../../../src/api/node.js'
import { mergeCheckpoint } from '../toolkit.js'
import { fromDisk, layOutFiles, type MergeFilesOptions, mergeFiles, type PathAdapter } from './disk.js'

/** The name of a shard of the base and of the result. */
export const nameOf = (shard: number) => `model-0000${shard}-of-00002.safetensors`

export async function layOutShards(folder: string) {
  const setup = await layOutFiles(
    folder,
    [
      ['a_proj.weight', 'fp32', [300, 256]],
      ['b_proj.weight', 'fp16', [300, 256]],
    ],
    { shards: 2, files: { 'tokenizer.json': '{}' } },
  )
  return {
    ...setup,
    merge: (options: MergeFilesOptions = {}, out = setup.out, adapter: PathAdapter = setup.adapter) =>
      mergeFiles(setup.base, [adapter], out, { threads: 1, ...options }),
    async expectWhole(out = setup.out, options = {}) {
      const [fresh, written] = [new MemoryDirectory(), await fromDisk(out)]
      await mergeCheckpoint(setup.memory, setup.lora, fresh, options)
      expect([...written.files.keys()].sort()).toEqual([...fresh.files.keys(), 'lowrank-merge.json'].sort())
      for (const [name, bytes] of fresh.files) expect(Buffer.compare(written.files.get(name)!, bytes), name).toBe(0)
    },
  }
}

/** Makes a signal that acts once, when the merge checks it before its first write. */
export function interfering(interfere: () => void): AbortSignal {
  const { signal } = new AbortController()
  let isDone = false
  signal.throwIfAborted = () => {
    if (!isDone) interfere()
    isDone = true
  }
  return signal
}
