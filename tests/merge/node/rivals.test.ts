// Several merges with the same output: a killed merge is no obstacle, no result is a mixture, and none is lost without
// an error.

import { existsSync, mkdirSync, renameSync, writeFileSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { newToken } from '../../../src/files/io/node/owner.js'
import { THOROUGH } from '../../thorough.js'
import { partialsOf } from './disk.js'
import { interfering, layOutShards } from './two-shards.js'

/** The number of rounds, in which the merges meet at different moments. */
const ROUNDS = THOROUGH ? 4 : 2

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'merge-rivals-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

const layOut = () => layOutShards(folder)

/** Tokens of processes that have ended, on this host and on another. */
const tokens = {
  dead: () => newToken().replace(/-\d+-\d*-/, '-4194305-1-'),
  foreign: () => `00000000${newToken().slice(8)}`,
}

const LOST = {
  code: 'FILE',
  what: 'another process has written it meanwhile',
  hint: 'Nothing was changed. Choose another place, or remove that result',
}

describe('another merge', () => {
  it('that publishes a folder first is not replaced', async () => {
    const { merge, out } = await layOut()
    const signal = interfering(() => {
      mkdirSync(out)
      writeFileSync(path.join(out, 'theirs'), 'x')
    })
    await expect(merge({ signal })).rejects.toMatchObject({ ...LOST, where: out })
    expect(await readdir(out)).toEqual(['theirs'])
    expect(await partialsOf(out)).toEqual([])
  })

  it('that publishes a file first is not replaced', async () => {
    const { merge } = await layOut()
    const out = path.join(folder, 'out.safetensors')
    const signal = interfering(() => writeFileSync(out, 'theirs'))
    await expect(merge({ signal, maxShardBytes: 2 ** 40 }, out)).rejects.toMatchObject({ ...LOST, where: out })
    expect((await readdir(folder)).sort()).toEqual(['adapter', 'base', 'out.safetensors'])
  })

  it('that publishes first is replaced where that is wished', async () => {
    const { merge, out, expectWhole } = await layOut()
    const copy = path.join(folder, 'copy')
    await merge({}, copy)
    const signal = interfering(() => renameSync(copy, out))
    await merge({ signal, overwrite: true })
    await expectWhole()
    const file = path.join(folder, 'out.safetensors')
    const options = { maxShardBytes: 2 ** 40, overwrite: true }
    await merge({ ...options, signal: interfering(() => writeFileSync(file, 'theirs')) }, file)
    expect((await readdir(folder)).sort()).toEqual(['adapter', 'base', 'out', 'out.safetensors'])
  })

  it('at the same time: one gives the result, the others say that they came too late', async () => {
    const { merge, out, expectWhole, adapter } = await layOut()
    const other = { adapter, weight: 2 }
    for (let round = 0; round < ROUNDS; round++) {
      await rm(out, { recursive: true, force: true })
      const results = await Promise.allSettled([merge(), merge({}, undefined, other), merge()])
      const lost = results.flatMap((result) => (result.status === 'rejected' ? [result.reason] : []))
      expect(lost).toHaveLength(2)
      for (const reason of lost)
        expect(reason).toMatchObject({ code: 'FILE', what: expect.stringMatching(/another process|exists already/) })
      if (results[1].status === 'rejected') await expectWhole()
      expect(await partialsOf(out)).toEqual([])
    }
  })

  it('that replaces at the same time leaves one of the results whole', async () => {
    const { merge, out, expectWhole } = await layOut()
    await merge()
    for (let round = 0; round < ROUNDS; round++) {
      const options = { overwrite: true }
      await Promise.all([merge(options), merge(options), merge(options)])
      await expectWhole()
      expect(await partialsOf(out)).toEqual([])
    }
  })

  it('that was killed is no obstacle; on another host it may be at work, and its files stay', async () => {
    const { merge, out, expectWhole } = await layOut()
    const [dead, foreign] = [tokens.dead(), tokens.foreign()].map((token) => path.join(folder, `.out.${token}.tmp`))
    for (const work of [dead, foreign]) {
      await mkdir(path.join(work, 'out'), { recursive: true })
      await writeFile(path.join(work, 'out', 'model.safetensors'), 'half')
    }
    await merge()
    await expectWhole()
    expect(await partialsOf(out)).toEqual([foreign])
  })

  it('leaves its folders to whoever writes beside them next', async () => {
    const { merge, out } = await layOut()
    await mkdir(path.join(folder, `.other.${tokens.dead()}.tmp`, 'other'), { recursive: true })
    await merge()
    expect(existsSync(out)).toBe(true)
    expect((await readdir(folder)).sort()).toEqual(['adapter', 'base', 'out'])
  })
})

describe('an output that is to be replaced', () => {
  it('comes back when the merge was killed before the new one had its name', async () => {
    const { merge, out, expectWhole } = await layOut()
    await merge()
    const work = path.join(folder, `.out.${tokens.dead()}.tmp`)
    await mkdir(path.join(work, 'out'), { recursive: true })
    renameSync(out, path.join(work, 'out.old'))
    await expect(merge()).rejects.toMatchObject({ what: 'exists already and is not empty' })
    await expectWhole()
    expect(await partialsOf(out)).toEqual([])
  })

  it('stays if it holds files that no merge wrote', async () => {
    const { merge, out } = await layOut()
    await merge()
    await mkdir(path.join(out, 'notes'))
    await writeFile(path.join(out, 'notes', 'mine.txt'), 'x')
    await expect(merge({ overwrite: true })).rejects.toMatchObject({
      code: 'FILE',
      what: 'not overwritten, because no merge wrote notes/mine.txt',
    })
    await rm(path.join(out, 'notes'), { recursive: true })
    await merge({ overwrite: true })
  })

  it('stays if such files come while the merge runs', async () => {
    const { merge, out } = await layOut()
    await merge()
    const signal = interfering(() => writeFileSync(path.join(out, 'mine.txt'), 'x'))
    await expect(merge({ overwrite: true, signal })).rejects.toMatchObject({
      where: out,
      what: 'not overwritten, because no merge wrote mine.txt',
    })
    expect(await readdir(out)).toContain('mine.txt')
    expect(await partialsOf(out)).toEqual([])
  })
})
