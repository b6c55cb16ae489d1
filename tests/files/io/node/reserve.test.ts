import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { NodeDirectory } from '../../../../src/files/io/node/files.js'
import { newToken } from '../../../../src/files/io/node/owner.js'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'reserve-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

describe('NodeDirectory.reserve', () => {
  it('gives a folder to one of many that come in one moment', async () => {
    for (let round = 0; round < 20; round++) {
      const out = new NodeDirectory(path.join(folder, String(round), 'out'))
      const results = await Promise.allSettled(Array.from({ length: 8 }, () => out.reserve('training')))
      const taken = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []))
      const refused = results.flatMap((result) => (result.status === 'rejected' ? [result.reason] : []))
      expect(taken).toHaveLength(1)
      for (const reason of refused)
        expect(reason).toMatchObject({ code: 'FILE', what: expect.stringMatching(/another training is writing/) })
      await taken[0].check()
      await taken[0].release()
      expect((await readdir(folder, { recursive: true })).filter((name) => /lowrank/.test(name))).toEqual([])
    }
  })

  it('leaves what is in the folder alone, and goes when it is released', async () => {
    await writeFile(path.join(folder, 'mine'), 'mine')
    const out = new NodeDirectory(folder)
    const first = await out.reserve('training')
    await expect(out.reserve('export')).rejects.toThrow(/another export is writing here: process \d+ on /)
    await first.release()
    await (await out.reserve('export')).release()
    expect(await readdir(folder)).toEqual(['mine'])
    expect(await readFile(path.join(folder, 'mine'), 'utf8')).toBe('mine')
  })

  it('tells who has lost the folder', async () => {
    const out = new NodeDirectory(folder)
    const first = await out.reserve('training')
    await rm(path.join(folder, '.lowrank-writer'), { recursive: true })
    await expect(first.check()).rejects.toThrow(
      'another training has taken over this folder, or its lock .lowrank-writer was removed',
    )
    const second = await out.reserve('training')
    await first.release()
    await second.check()
    await second.release()
    expect(await readdir(folder)).toEqual([])
  })

  it('takes over the lock of a process that has ended, which one of many wins', async () => {
    const out = new NodeDirectory(folder)
    const lock = path.join(folder, '.lowrank-writer')
    for (let round = 0; round < 20; round++) {
      await mkdir(lock)
      // A process id above Linux's highest, and one that this process's start does not fit.
      const dead = newToken().replace(/-\d+-(\d*)-/, round % 2 === 0 ? '-4194305-$1-' : `-${process.pid}-1-`)
      await writeFile(path.join(lock, dead), 'process 7 on host')
      await mkdir(path.join(folder, `..lowrank-writer.${dead}.tmp`))
      const results = await Promise.allSettled(Array.from({ length: 4 }, () => out.reserve('training')))
      const taken = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []))
      expect(taken).toHaveLength(1)
      await taken[0].check()
      await taken[0].release()
      expect(await readdir(folder)).toEqual([])
    }
  })

  it('tells what to remove when the process may run elsewhere', async () => {
    const lock = path.join(folder, '.lowrank-writer')
    await mkdir(lock)
    await writeFile(path.join(lock, `00000000${newToken().slice(8)}`), 'process 7 on elsewhere')
    await expect(new NodeDirectory(folder).reserve('training')).rejects.toMatchObject({
      what: 'another training is writing here: process 7 on elsewhere',
      hint: `Wait until that one ends, or name another folder. If that process has ended, remove ${lock}`,
    })
    await rm(lock, { recursive: true })
    await (await new NodeDirectory(folder).reserve('training')).release()
  })

  it('refuses what is no lock: a file, a link to nowhere', async () => {
    const lock = path.join(folder, '.lowrank-writer')
    for (const make of [() => writeFile(lock, ''), () => symlink('nowhere', lock)]) {
      await make()
      const error = { what: 'not a folder, so it is no lock', where: lock }
      await expect(new NodeDirectory(folder).reserve('training')).rejects.toMatchObject(error)
      await rm(lock)
    }
  })

  it('says which folder cannot be written to', async () => {
    await writeFile(path.join(folder, 'file'), '')
    const out = new NodeDirectory(path.join(folder, 'file', 'out'))
    await expect(out.reserve('training')).rejects.toMatchObject({ code: 'FILE' })
  })
})
