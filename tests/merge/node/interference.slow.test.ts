// Merges with links and mounts in their folder, and with a base that changes.

import { execFileSync } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, readlink, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../../src/api/node.js'
import { newToken } from '../../../src/files/io/node/owner.js'
import { mergeCheckpoint } from '../toolkit.js'
import { mergeFiles, partialsOf, planFiles } from './disk.js'
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
      const work = path.join(disk, `.out.${newToken().replace(/-\d+-\d*-/, '-4194305-1-')}.tmp`, 'out')
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
    const signal = interfering(() => writeFileSync(file, bytes))
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
    const options = { threads: 1 }
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
    // Other copies of the weights are not read.
    await symlink(path.join(folder, 'blobs', '1234'), path.join(base, 'pytorch_model.bin'))
    expect((await merge()).copied).toEqual(['config.json', 'tokenizer.json'])
  })
})
