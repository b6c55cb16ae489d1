// Several merges for one output: a killed one is no obstacle, and no result is half of two.

import { mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { newToken } from '../../../src/io/node/owner.js'
import { THOROUGH } from '../../thorough.js'
import { partialsOf } from './disk.js'
import { interfering, layOutShards } from './two-shards.js'

/** Chances to meet at another moment. */
const ROUNDS = THOROUGH ? 4 : 2

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'merge-rivals-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

const layOut = () => layOutShards(folder)
const durable = { fsync: true }

/** A token of a process that has ended, of one of another host, or of this one. */
const tokens = {
  dead: () => newToken().replace(/-\d+-\d*-/, '-4194305-1-'),
  foreign: () => `00000000${newToken().slice(8)}`,
  own: () => newToken(),
}

describe('another merge', () => {
  it('of the same plan that publishes first is as good as this one', async () => {
    const { merge, out, expectWhole } = await layOut()
    await merge(durable)
    const copy = path.join(folder, 'copy')
    renameSync(out, copy)
    // This one looks at its signal again right before it publishes: at that moment the other one has done so.
    const signal = interfering(2, () => {
      const partial = readdirSync(folder).find((name) => name.endsWith('.partial'))!
      rmSync(path.join(folder, partial), { recursive: true })
      renameSync(copy, out)
    })
    expect((await merge({ ...durable, signal })).bytes).toBe(0)
    await expectWhole()
    expect(await partialsOf(out)).toEqual([])
  })

  it('that finished first is not replaced', async () => {
    const { merge, out } = await layOut()
    const signal = interfering(2, () => {
      mkdirSync(out)
      writeFileSync(path.join(out, 'theirs'), 'x')
    })
    await expect(merge({ signal, ...durable })).rejects.toMatchObject({
      code: 'FILE',
      what: 'exists already and is not empty',
    })
    expect(await readdir(out)).toEqual(['theirs'])
    await rm(out, { recursive: true })
    // What was made is kept all the same.
    expect((await merge(durable)).bytes).toBeLessThan(1000)
  })

  it.each([
    ['the same plan', durable],
    ['another plan', durable],
    ['another plan, nothing kept', {}],
  ])('at the same time: %s', async (kind, options) => {
    const { merge, out, expectWhole, adapter } = await layOut()
    const other = kind === 'the same plan' ? adapter : { adapter, weight: 2 }
    for (let round = 0; round < ROUNDS; round++) {
      await rm(out, { recursive: true, force: true })
      const results = await Promise.allSettled([merge(options), merge(options, undefined, other), merge(options)])
      const lost = results.flatMap((result) => (result.status === 'rejected' ? [result.reason] : []))
      for (const reason of lost)
        expect(reason).toMatchObject({ code: 'FILE', what: expect.stringMatching(/another process|exists already/) })
      if (lost.length === 3) await merge(options)
      if (kind === 'the same plan' || results[1].status === 'rejected') await expectWhole()
      // What the one that lost has finished stays for the same command.
      expect((await partialsOf(out)).filter((name) => !name.endsWith('.partial'))).toEqual([])
      await merge({ overwrite: true })
      expect(await partialsOf(out)).toEqual([])
    }
  })

  it('that replaces at the same time leaves one of the results whole', async () => {
    const { merge, out, expectWhole } = await layOut()
    const options = { ...durable, overwrite: true }
    await merge(options)
    for (let round = 0; round < ROUNDS; round++) {
      await Promise.allSettled([merge(options), merge(options), merge(options)])
      await expectWhole()
      expect(await partialsOf(out)).toEqual([])
    }
  })

  it('at work on this host refuses others by name', async () => {
    const { merge, out } = await layOut()
    const busy = { code: 'FILE', where: out, what: `another process is writing it: process ${process.pid}` }
    await mkdir(path.join(folder, `.out.${tokens.own()}.tmp`, 'new'), { recursive: true })
    await expect(merge()).rejects.toMatchObject(busy)
    await expect(merge(durable)).rejects.toMatchObject(busy)
    await merge({}, path.join(folder, 'out.other'))
  })

  it('that was killed is no obstacle; on another host it may be at work, and its files stay', async () => {
    const { merge, out, expectWhole } = await layOut()
    for (const plan of ['', '.0123456789abcdef']) {
      const [dead, foreign] = [tokens.dead(), tokens.foreign()].map((token) =>
        path.join(folder, `.out${plan}.${token}.tmp`),
      )
      for (const work of [dead, foreign]) {
        await mkdir(path.join(work, 'new'), { recursive: true })
        await writeFile(path.join(work, 'new', 'model.safetensors'), 'half')
      }
      await merge({ overwrite: true })
      await expectWhole()
      expect(await partialsOf(out)).toEqual([foreign])
      await rm(foreign, { recursive: true })
    }
  })
})

describe('an output that is to be replaced', () => {
  it('comes back when the merge was killed before the new one had its name', async () => {
    const { merge, out, expectWhole } = await layOut()
    await merge(durable)
    const work = path.join(folder, `.out.${tokens.dead()}.tmp`)
    await mkdir(work)
    renameSync(out, path.join(work, 'old'))
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
})
