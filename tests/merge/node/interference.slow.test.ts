// What else happens to the folder of a merge: other shares, links and mounts, a base that changes.

import { execFileSync } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { cp, mkdir, mkdtemp, readdir, readFile, readlink, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../../src/base/bytes.js'
import { newToken } from '../../../src/io/node/owner.js'
import { mergeCheckpoint } from '../toolkit.js'
import {
  fromDisk,
  type MergeFilesOptions,
  mergeFiles,
  type PathAdapter,
  partialFiles,
  partialOf,
  partialsOf,
  planFiles,
} from './disk.js'
import { interfering, layOutShards, nameOf } from './two-shards.js'

const isLinuxRoot = process.platform === 'linux' && process.getuid?.() === 0

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'merge-interference-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

const layOut = () => layOutShards(folder)

async function mounted(target: string, args: string[], work: () => Promise<void>): Promise<void> {
  execFileSync('mount', [...args, target])
  try {
    await work()
  } finally {
    execFileSync('umount', [target])
  }
}

describe('shares', () => {
  const share = (index: number, count = 2) => ({ share: { index, count } })

  it('keep what others have finished when they are stopped; the last one publishes', async () => {
    const { merge, out, expectWhole } = await layOut()
    const first = await merge(share(0))
    expect(first).toMatchObject({ out: await partialOf(out), missing: [nameOf(2)] })
    const stopped = merge({ ...share(1), signal: AbortSignal.abort() })
    await expect(stopped).rejects.toMatchObject({ name: 'AbortError' })
    expect(await partialFiles(out)).toEqual([nameOf(1)])
    const { ino } = await stat(path.join(await partialOf(out), nameOf(1)))
    const last = await merge(share(1))
    expect(last).toMatchObject({ out })
    expect(last.missing).toBeUndefined()
    await expectWhole(out, { reproducible: true })
    expect((await stat(path.join(out, nameOf(1)))).ino).toBe(ino)
    expect(await partialsOf(out)).toEqual([])
  })

  it('may run again at any time, also when the output is there', async () => {
    const { merge, out, expectWhole } = await layOut()
    for (const index of [0, 0, 1, 0, 1]) await merge(share(index))
    expect((await merge(share(1))).bytes).toBe(0)
    await expectWhole(out, { reproducible: true })
    await expect(merge()).rejects.toMatchObject({ what: 'exists already and is not empty' })
  })

  it('make damaged sizes again, and more shares than files do nothing', async () => {
    const { merge, out, expectWhole } = await layOut()
    await merge(share(0, 5))
    await writeFile(path.join(await partialOf(out), nameOf(1)), 'cut')
    expect((await merge(share(4, 5))).missing).toEqual([nameOf(1), nameOf(2)])
    await merge(share(1, 5))
    await merge(share(0, 5))
    await expectWhole(out, { reproducible: true })
  })

  it('that end in one moment publish once', async () => {
    const { merge, out, expectWhole } = await layOut()
    for (let round = 0; round < 5; round++) {
      await rm(out, { recursive: true, force: true })
      await Promise.all([0, 1, 0, 1].map((index) => merge(share(index))))
      await expectWhole(out, { reproducible: true })
      expect(await partialsOf(out)).toEqual([])
    }
  })

  it('keep nothing when a value is not finite', async () => {
    const { merge, out, adapter } = await layOut()
    // Too large for F16 alone.
    const large = { adapter, weight: 1e9 }
    await expect(merge(share(1), undefined, large)).rejects.toMatchObject({ code: 'NUMERIC', where: 'b_proj.weight' })
    expect(await partialsOf(out)).toEqual([])
  })

  it('count their own files in progress', async () => {
    const { merge, out } = await layOut()
    const seen: { writtenBytes: number; totalBytes: number }[] = []
    await merge({ ...share(1), onProgress: (progress) => seen.push(progress) })
    const { size } = await stat(path.join(await partialOf(out), nameOf(2)))
    expect(seen.at(-1)).toEqual({ writtenBytes: size, totalBytes: size, keptBytes: 0 })
    seen.splice(0)
    await merge({ fsync: true, reproducible: true, onProgress: (progress) => seen.push(progress) })
    expect(seen.at(-1)).toMatchObject({ keptBytes: size })
  })

  it('need a folder as output', async () => {
    const { merge } = await layOut()
    const file = path.join(folder, 'out.safetensors')
    await expect(merge({ ...share(0), maxShardBytes: 2 ** 40 }, file)).rejects.toMatchObject({ code: 'CONFIG' })
  })
})

describe('the same merge again', () => {
  /** The first of two files is made. */
  async function interrupted() {
    const setup = await layOut()
    await setup.merge({ share: { index: 0, count: 2 } })
    const again = (options = {}, base = setup.base, adapter: PathAdapter = setup.adapter) =>
      mergeFiles(base, [adapter], setup.out, { threads: 1, reproducible: true, ...options })
    const { mtimeMs } = await stat(path.join(await partialOf(setup.out), nameOf(1)))
    const isKept = async () => (await stat(path.join(setup.out, nameOf(1)))).mtimeMs === mtimeMs
    return { ...setup, again, isKept }
  }

  it('keeps what is finished, and tells no change of it', async () => {
    const { again, isKept, expectWhole, out } = await interrupted()
    const { layers } = await again()
    expect(layers.map(({ relativeChange }) => relativeChange !== null)).toEqual([false, true])
    expect(await isKept()).toBe(true)
    await expectWhole(out, { reproducible: true })
  })

  it('keeps what was made from other copies of base and adapter', async () => {
    const { again, isKept, base, adapter } = await interrupted()
    await cp(base, path.join(folder, 'base-copy'), { recursive: true })
    await cp(adapter, path.join(folder, 'adapter-copy'), { recursive: true })
    await again({}, path.join(folder, 'base-copy'), path.join(folder, 'adapter-copy'))
    expect(await isKept()).toBe(true)
  })

  it('keeps nothing of another base, even behind an old time', async () => {
    const { again, isKept, base, out, lora } = await interrupted()
    const file = path.join(base, nameOf(2))
    const { atime, mtime } = await stat(file)
    const bytes = await readFile(file)
    bytes[bytes.length - 12_346] ^= 1
    await writeFile(file, bytes)
    await utimes(file, atime, mtime)
    await again()
    expect(await isKept()).toBe(false)
    const fresh = new MemoryDirectory()
    await mergeCheckpoint(await fromDisk(base), lora, fresh, { reproducible: true })
    for (const [name, content] of fresh.files)
      expect(Buffer.compare(await readFile(path.join(out, name)), content)).toBe(0)
    expect(await partialsOf(out)).toEqual([])
  })

  it.each<[string, MergeFilesOptions, number]>([
    ['rounding', { reproducible: false }, 1],
    ['type', { outDtype: 'fp32' }, 1],
    ['size of files', { maxShardBytes: 2 ** 40 }, 1],
    ['weight', {}, 0.5],
    ['durability', { fsync: false }, 1],
  ])('keeps nothing of another %s', async (_, options, weight) => {
    const { again, out, adapter } = await interrupted()
    const { layers } = await again(options, undefined, { adapter, weight })
    expect(layers.every(({ relativeChange }) => relativeChange !== null)).toBe(true)
    expect(await partialsOf(out)).toEqual([])
  })
})

describe('the place of the output', () => {
  it('may be behind a link, which stays', async () => {
    const { merge, expectWhole } = await layOut()
    const [link, target] = [path.join(folder, 'link'), path.join(folder, 'disk', 'target')]
    await mkdir(target, { recursive: true })
    await symlink(target, link)
    await merge({}, link)
    expect(await readlink(link)).toBe(target)
    await expectWhole(target)
    expect(await readdir(path.dirname(target))).toEqual(['target'])
  })

  it('is refused before the first byte where a link leads nowhere', async () => {
    const { merge } = await layOut()
    for (const name of ['gone', 'gone.safetensors']) {
      const link = path.join(folder, name)
      await symlink(path.join(folder, 'nowhere'), link)
      const options = { maxShardBytes: 2 ** 40 }
      await expect(merge(options, link)).rejects.toMatchObject({
        where: link,
        what: 'this link points to a place that does not exist',
      })
      expect(await partialsOf(link)).toEqual([])
    }
  })

  it.skipIf(!isLinuxRoot)('is refused before the first byte where a file system is mounted', async () => {
    const { merge, expectWhole } = await layOut()
    const disk = path.join(folder, 'a disk')
    await mkdir(disk)
    await mounted(disk, ['-t', 'tmpfs', 'tmpfs'], async () => {
      await expect(merge({}, disk)).rejects.toMatchObject({
        code: 'FILE',
        what: expect.stringContaining('a file system is mounted here'),
        hint: `Choose a folder in it, such as ${path.join(disk, 'merged')}`,
      })
      expect(await partialsOf(disk)).toEqual([])
      await merge({}, path.join(disk, 'merged'))
      await expectWhole(path.join(disk, 'merged'))
    })
  })

  it.skipIf(process.platform !== 'linux')('ends soon where no folder can be made', async () => {
    const { merge } = await layOut()
    await expect(merge({}, '/proc/lowrank/out')).rejects.toMatchObject({ where: '/proc/lowrank', code: 'FILE' })
  })

  it('is looked at in a dry run too', async () => {
    const { merge, base, adapter, out } = await layOut()
    await mkdir(out)
    await writeFile(path.join(out, 'mine'), 'x')
    const plan = (place: string, options = {}) => planFiles(base, [adapter], place, options)
    for (const place of [out, base, adapter]) {
      const expected = await merge({}, place).catch((error: Error) => error.message)
      await expect(plan(place)).rejects.toThrow(String(expected))
    }
    await rm(out, { recursive: true })
    await merge()
    await expect(plan(out)).rejects.toMatchObject({ what: 'exists already and is not empty' })
    expect(await plan(out, { overwrite: true })).toMatchObject({ changed: 2 })
  })

  it.skipIf(!isLinuxRoot)('has room again where killed merges left unfinished files', async () => {
    const { merge, base, adapter, expectWhole } = await layOut()
    const disk = path.join(folder, 'disk')
    await mkdir(disk)
    // 307 kB and 154 kB of weights.
    await mounted(disk, ['-t', 'tmpfs', '-o', 'size=600k', 'tmpfs'], async () => {
      const out = path.join(disk, 'out')
      const work = path.join(disk, `.out.${newToken().replace(/-\d+-\d*-/, '-4194305-1-')}.tmp`, 'new')
      await mkdir(work, { recursive: true })
      await writeFile(path.join(work, nameOf(2)), new Uint8Array(300_000))
      await merge({}, out)
      await expectWhole(out)
      await expect(planFiles(base, [adapter], path.join(disk, 'a', 'b'))).rejects.toMatchObject({
        what: 'not enough free space for the output',
      })
    })
  })
})

describe('the base', () => {
  it('that is written to meanwhile makes no result', async () => {
    const { merge, base, out, expectWhole } = await layOut()
    const file = path.join(base, nameOf(1))
    const bytes = await readFile(file)
    const signal = interfering(1, () => writeFileSync(file, bytes))
    await expect(merge({ signal })).rejects.toMatchObject({
      code: 'FILE',
      where: file,
      what: 'was written to while it was being merged',
    })
    expect(existsSync(out)).toBe(false)
    await merge()
    await expectWhole()
  })

  it('may be named by its index, which goes along', async () => {
    const { base, adapter, out, memory, lora } = await layOut()
    const index = 'model.safetensors.index.json'
    const weights = [nameOf(1), nameOf(2), index]
    const options = { threads: 1, fsync: false }
    await mergeFiles(path.join(base, index), [adapter], out, { ...options, weightsOnly: true })
    expect((await readdir(out)).sort()).toEqual(['lowrank-merge.json', ...weights])
    await mergeFiles(path.join(base, index), [adapter], out, { ...options, overwrite: true })
    expect((await readdir(out)).sort()).toEqual(['config.json', 'lowrank-merge.json', ...weights, 'tokenizer.json'])
    const portable = new MemoryDirectory()
    await mergeCheckpoint(memory, lora, portable, { file: index, weightsOnly: true })
    expect([...portable.files.keys()].sort()).toEqual(weights)
  })

  it('is refused before the first byte where a link to one of its files leads nowhere', async () => {
    const { merge, base, out } = await layOut()
    await symlink(path.join(folder, 'blobs', '1234'), path.join(base, 'vocab.json'))
    await expect(merge()).rejects.toMatchObject({
      where: path.join(base, 'vocab.json'),
      what: 'no such file or folder',
    })
    expect(await partialsOf(out)).toEqual([])
    await rm(path.join(base, 'vocab.json'))
    // Of other copies of the weights nothing is read.
    await symlink(path.join(folder, 'blobs', '1234'), path.join(base, 'pytorch_model.bin'))
    expect((await merge()).copied).toEqual(['config.json', 'tokenizer.json'])
  })
})
