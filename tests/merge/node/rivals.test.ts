// Several merges for one output: they take turns, a killed one is no obstacle, and no result is half of two.

import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { partialFiles, partialOf, partialsOf } from './disk.js'
import { interfering, layOutShards, nameOf } from './two-shards.js'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'merge-interference-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

const layOut = () => layOutShards(folder)

/** Boot, container and start of this process, as its record names them; undefined where the system does not tell. */
function identityOfThis(): string | undefined {
  if (process.platform !== 'linux') return undefined
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
  const started = readFileSync('/proc/self/stat', 'utf8').split(') ').at(-1)!.split(' ')[19]
  return `${boot} ${readlinkSync('/proc/self/ns/pid')} ${started}`
}

describe('another merge', () => {
  it('that takes the folder keeps the first from publishing it', async () => {
    const { merge, out } = await layOut()
    const taken = path.join(folder, 'taken')
    // It looks again right before it publishes.
    const signal = interfering(2, () => {
      const [name] = readdirSync(folder).filter((other) => other.startsWith('out.partial-'))
      renameSync(path.join(folder, name), taken)
    })
    await expect(merge({ signal })).rejects.toMatchObject({
      code: 'FILE',
      what: 'another merge has taken over the unfinished output',
    })
    expect(existsSync(out)).toBe(false)
    expect((await readdir(taken)).sort()).toEqual(expect.arrayContaining([nameOf(1), nameOf(2)]))
  })

  it('that finished first is not replaced', async () => {
    const { merge, out } = await layOut()
    const signal = interfering(2, () => {
      mkdirSync(out)
      writeFileSync(path.join(out, 'theirs'), 'x')
    })
    await expect(merge({ signal })).rejects.toMatchObject({ code: 'FILE', what: 'exists already and is not empty' })
    expect(await readdir(out)).toEqual(['theirs'])
    await rm(out, { recursive: true })
    // What was made is kept all the same.
    expect((await merge({ resume: true })).bytes).toBeLessThan(1000)
  })

  it('at the same time is refused by name, and the first one’s result is whole', async () => {
    const { merge, expectWhole, adapter } = await layOut()
    for (const other of [adapter, { adapter, weight: 2 }]) {
      await rm(path.join(folder, 'out'), { recursive: true, force: true })
      const first = merge()
      const second = first.then(
        () => undefined,
        () => undefined,
      )
      await new Promise((resolve) => setImmediate(resolve))
      const results = await Promise.allSettled([first, merge({}, undefined, other), second])
      const [one, two] = results
      expect([one.status, two.status].filter((status) => status === 'fulfilled')).toHaveLength(1)
      const lost = one.status === 'rejected' ? one : (two as PromiseRejectedResult)
      expect(lost.reason).toMatchObject({ code: 'FILE', what: expect.stringMatching(/another merge|exists already/) })
      if (one.status === 'fulfilled') await expectWhole()
    }
  })

  it.skipIf(process.platform !== 'linux')('at work refuses all others but the jobs of its own plan', async () => {
    const { merge, out, expectWhole, adapter } = await layOut()
    const jobs = [0, 1].map((index) => ({ share: { index, count: 2 } }))
    const busy = {
      code: 'FILE',
      where: out,
      what: `another merge is making it: process ${process.pid} on ${hostname()}`,
    }
    await merge(jobs[0])
    const owner = path.join(await partialOf(out), '.merge', 'owner-aaaaaaaaaaaa.json')
    const record = { host: hostname(), process: process.pid, identity: identityOfThis(), isShare: true }
    await writeFile(owner, JSON.stringify(record))
    await expect(merge()).rejects.toMatchObject(busy)
    await expect(merge({ resume: true })).rejects.toMatchObject(busy)
    await expect(merge(jobs[0], undefined, { adapter, weight: 2 })).rejects.toMatchObject({ code: 'MISMATCH' })
    await merge(jobs[1])
    await writeFile(owner, JSON.stringify({ ...record, isShare: false }))
    for (const options of [jobs[1], { finish: true }]) await expect(merge(options)).rejects.toMatchObject(busy)
    expect((await partialFiles(out)).filter((name) => name.endsWith('.safetensors'))).toHaveLength(2)
    // Of a job that is started twice the other one may still be at work: what is finished counts.
    await writeFile(owner, JSON.stringify(record))
    await merge({ finish: true })
    await expectWhole()
  })

  it('that was killed is no obstacle: on this host at once, elsewhere when its beat has ended', async () => {
    const { merge, out, expectWhole } = await layOut()
    const notes = path.join(`${out}.partial-0123456789ab`, '.merge')
    const leave = async (record: object) => {
      await mkdir(notes, { recursive: true })
      await writeFile(path.join(notes, 'plan.json'), '{"plan":"0123456789ab"}')
      await writeFile(path.join(notes, 'owner-aaaaaaaaaaaa.json'), JSON.stringify(record))
      await writeFile(path.join(notes, 'beat-aaaaaaaaaaaa'), '5')
    }
    const gone = { host: hostname(), process: 2 ** 22 + 1, identity: null, isShare: false }
    const own = identityOfThis()
    for (const record of [
      gone,
      ...(own === undefined ? [] : [{ ...gone, process: process.pid, identity: `${own}0` }]),
    ]) {
      await leave(record)
      await merge({ overwrite: true })
      await expectWhole()
      expect(await partialsOf(out)).toEqual([])
    }
    // Of a process elsewhere: while its beat goes on it is at work, and when the beat goes it is not.
    await leave({ ...gone, host: 'elsewhere', process: process.pid })
    let beats = 5
    const timer = setInterval(() => writeFileSync(path.join(notes, 'beat-aaaaaaaaaaaa'), String(++beats)), 50)
    try {
      await expect(merge({ overwrite: true })).rejects.toMatchObject({
        what: `another merge is making it: process ${process.pid} on elsewhere`,
      })
    } finally {
      clearInterval(timer)
    }
    const merging = merge({ overwrite: true })
    setTimeout(() => rmSync(path.join(notes, 'beat-aaaaaaaaaaaa')), 400)
    await merging
    await expectWhole()
  })
})
