// What an interrupted merge keeps: files that are whole, of the same adapters and options, and of what the base holds now.

import { cp, mkdtemp, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../../src/base/bytes.js'
import type { TensorSketch } from '../toolkit.js'
import { mergeCheckpoint } from '../toolkit.js'
import { fromDisk, layOutFiles, type MergeFilesOptions, mergeFiles, partialOf, partialShard } from './disk.js'

const SKETCHES: TensorSketch[] = [
  ['a_proj.weight', 'bf16', [300, 256]],
  ['b_proj.weight', 'fp32', [40, 24]],
  ['copied.weight', 'bf16', [500, 24]],
]
const here = { threads: 1, fsync: false }
const nameOf = (shard: number) => `model-0000${shard}-of-00003.safetensors`

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'merge-resume-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

/** All three files are made, but the output is not finished. */
async function interrupted() {
  const setup = await layOutFiles(folder, SKETCHES, { shards: 3 })
  await mergeFiles(setup.base, [setup.adapter], setup.out, { ...here, share: { index: 0, count: 1 } })
  const times = await Promise.all(
    [1, 2, 3].map(async (shard) => (await stat(await partialShard(setup.out, nameOf(shard)))).mtimeMs),
  )
  return {
    ...setup,
    partial: await partialOf(setup.out),
    run: (options: MergeFilesOptions, base = setup.base, adapters: never[] = [setup.adapter as never]) =>
      mergeFiles(base, adapters, setup.out, { ...here, ...options }),
    /** Which of the files were not made again. */
    async kept() {
      const isKept = async (shard: number) =>
        (await stat(path.join(setup.out, nameOf(shard)))).mtimeMs === times[shard - 1]
      return (await Promise.all([1, 2, 3].map(async (shard) => ((await isKept(shard)) ? [shard] : [])))).flat()
    },
    /** The weights are those of a merge of what the base holds now. */
    async expectFresh(base = setup.base) {
      const [fresh, out] = [new MemoryDirectory(), await fromDisk(setup.out)]
      await mergeCheckpoint(await fromDisk(base), setup.lora, fresh)
      for (const [name, bytes] of fresh.files) expect(Buffer.compare(out.files.get(name)!, bytes), name).toBe(0)
    },
  }
}

/** Flips a bit of a value, and leaves size and time of writing as they were. */
async function flip(file: string, fromEnd: number): Promise<void> {
  const { atime, mtime } = await stat(file)
  const bytes = await readFile(file)
  bytes[bytes.length - fromEnd] ^= 1
  await writeFile(file, bytes)
  await utimes(file, atime, mtime)
}

describe('resuming', () => {
  it('keeps all that is finished', async () => {
    const merge = await interrupted()
    const report = await merge.run({ resume: true })
    expect(await merge.kept()).toEqual([1, 2, 3])
    expect(report.layers.map(({ relativeChange }) => relativeChange > 0)).toEqual([true, true])
    await merge.expectFresh()
  })

  it.each([
    ['merged', 1],
    ['copied', 3],
  ])('makes a %s file again when its base has changed behind an old time, and no other', async (_, shard) => {
    const merge = await interrupted()
    // Far from the ends: a few samples of the file would miss it.
    await flip(path.join(merge.base, nameOf(shard)), 12_346)
    await merge.run({ resume: true })
    expect(await merge.kept()).toEqual([1, 2, 3].filter((other) => other !== shard))
    await merge.expectFresh()
  })

  it('keeps what was made from other copies of base and adapter', async () => {
    const merge = await interrupted()
    const copy = path.join(folder, 'copy')
    const adapter = path.join(folder, 'copied-adapter')
    await cp(merge.base, copy, { recursive: true })
    await cp(merge.adapter, adapter, { recursive: true })
    await merge.run({ resume: true }, copy, [adapter as never])
    expect(await merge.kept()).toEqual([1, 2, 3])
    await merge.expectFresh(copy)
  })

  it('finishes only what was made from this base', async () => {
    const merge = await interrupted()
    const copy = path.join(folder, 'copy')
    await cp(merge.base, copy, { recursive: true })
    await flip(path.join(copy, nameOf(2)), 7)
    await expect(merge.run({ finish: true }, copy)).rejects.toMatchObject({
      code: 'FILE',
      what: `1 of 3 files are missing, damaged or made from another base: ${nameOf(2)}`,
    })
    await merge.run({ finish: true })
    expect(await merge.kept()).toEqual([1, 2, 3])
  })

  it('makes files again that are damaged, or whose note is', async () => {
    const merge = await interrupted()
    await flip(await partialShard(merge.out, nameOf(1)), 40_000)
    await writeFile(path.join(merge.partial, '.merge', `${nameOf(2)}.json`), '{"checksum":')
    await merge.run({ resume: true })
    expect(await merge.kept()).toEqual([3])
    await merge.expectFresh()
  })

  it.each([
    ['squares', 1],
    ['squares', { 'a_proj.weight': 1 }],
    ['base', null],
    ['baseChecksum', 0],
  ])('makes a file again whose note has another %s: %j', async (member, value) => {
    const merge = await interrupted()
    const note = path.join(merge.partial, '.merge', `${nameOf(1)}.json`)
    await writeFile(note, JSON.stringify({ ...JSON.parse(await readFile(note, 'utf8')), [member]: value }))
    await merge.run({ resume: true })
    expect(await merge.kept()).toEqual([2, 3])
    await merge.expectFresh()
  })

  it('refuses an adapter with one other bit', async () => {
    const merge = await interrupted()
    await flip(path.join(merge.adapter, 'adapter_model.safetensors'), 5001)
    await expect(merge.run({ resume: true })).rejects.toMatchObject({
      code: 'MISMATCH',
      what: 'it was begun with another base, adapter or options',
    })
    await flip(path.join(merge.adapter, 'adapter_model.safetensors'), 5001)
    await merge.run({ resume: true })
    expect(await merge.kept()).toEqual([1, 2, 3])
  })

  it.each<[string, MergeFilesOptions]>([
    ['type', { outDtype: 'fp16' }],
    ['shards', { maxShardBytes: 50_000 }],
    ['direction', { sign: -1 }],
    ['rounding', { reproducible: true }],
  ])('refuses another %s', async (_, options) => {
    const merge = await interrupted()
    await expect(merge.run({ resume: true, ...options })).rejects.toMatchObject({ code: 'MISMATCH' })
    await expect(merge.run({ share: { index: 0, count: 3 }, ...options })).rejects.toMatchObject({ code: 'MISMATCH' })
  })

  it('refuses another weight, and other adapters', async () => {
    const merge = await interrupted()
    const { adapter } = merge
    for (const adapters of [[{ adapter, weight: 2 }], [adapter, adapter]]) {
      await expect(merge.run({ resume: true }, merge.base, adapters as never[])).rejects.toMatchObject({
        code: 'MISMATCH',
      })
    }
  })

  it('continues an output of one file from jobs alone; without their notes it is made anew', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const file = path.join(setup.out, 'model.safetensors')
    const run = (options: object) =>
      mergeFiles(setup.base, [setup.adapter], setup.out, { ...here, overwrite: true, ...options })
    const fresh = new MemoryDirectory()
    await mergeCheckpoint(setup.memory, setup.lora, fresh)
    const expectFresh = async () =>
      expect(Buffer.compare(await readFile(file), fresh.files.get('model.safetensors')!)).toBe(0)
    await run({ share: { index: 0, count: 1 } })
    expect((await run({ finish: true })).bytes).toBeLessThan(1000)
    await expectFresh()
    await run({ share: { index: 0, count: 1 } })
    await rm(path.join(await partialOf(setup.out), '.merge', 'model.safetensors.json'))
    await flip(await partialShard(setup.out, 'model.safetensors'), 100)
    expect((await run({ resume: true })).bytes).toBeGreaterThan(150_000)
    await expectFresh()
  })
})
