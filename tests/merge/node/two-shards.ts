// A base of two shards in a folder of its own, merged while something else happens to the folder.

import { expect } from 'vitest'
import { MemoryDirectory } from '../../../src/base/bytes.js'
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

/** A signal that does something once, when a merge looks at it: before its first write. */
export function interfering(interfere: () => void): AbortSignal {
  const { signal } = new AbortController()
  let isDone = false
  signal.throwIfAborted = () => {
    if (!isDone) interfere()
    isDone = true
  }
  return signal
}
