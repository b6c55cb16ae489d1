// A merge and the disk: it checks the free space before it writes, syncs the whole result before it gets its name, and
// gives a clear error if the disk fills up on the way.

import { existsSync } from 'node:fs'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { TensorSketch } from '../toolkit.js'
import { layOutFiles, type MergeFilesOptions, mergeFiles, partialsOf } from './disk.js'

const SKETCHES: TensorSketch[] = [
  ['a_proj.weight', 'fp32', [300, 256]],
  ['b_proj.weight', 'bf16', [300, 256]],
]

/** The calls in order: `sync FILE` and `rename FILE to FILE`. */
let events: string[] = []
/** Bytes that can still be written. */
let room = Number.POSITIVE_INFINITY
/** The free bytes that the file system reports. */
let free: number | undefined

vi.mock('node:fs', async (original) => {
  const fs = await original<typeof import('node:fs')>()
  return {
    ...fs,
    writeSync: (...args: Parameters<typeof fs.writeSync>) => {
      const bytes = args[3] as unknown as number
      if (bytes > room) throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' })
      room -= bytes
      return fs.writeSync(...args)
    },
    statfsSync: (...args: Parameters<typeof fs.statfsSync>) => {
      const status = fs.statfsSync(...args)
      return free === undefined ? status : { ...status, bsize: 1, bavail: free }
    },
  }
})

vi.mock('node:fs/promises', async (original) => {
  const fs = await original<typeof import('node:fs/promises')>()
  return {
    ...fs,
    open: async (...args: Parameters<typeof fs.open>) => {
      const handle = await fs.open(...args)
      const sync = handle.sync.bind(handle)
      handle.sync = async () => {
        await sync()
        events.push(`sync ${args[0]}`)
      }
      return handle
    },
    link: async (from: string, to: string) => {
      await fs.link(from, to)
      events.push(`link ${from} to ${to}`)
    },
    rename: async (from: string, to: string) => {
      await fs.rename(from, to)
      events.push(`rename ${from} to ${to}`)
    },
  }
})

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'merge-durable-'))
  events = []
  room = Number.POSITIVE_INFINITY
  free = undefined
})
afterEach(() => rm(folder, { recursive: true, force: true }))

async function layOut(sketches = SKETCHES) {
  const setup = await layOutFiles(folder, sketches, {
    shards: 2,
    files: { 'tokenizer.json': '{}', '1_Pooling/config.json': '{}' },
  })
  return {
    ...setup,
    merge: (options: MergeFilesOptions = {}, out = setup.out) =>
      mergeFiles(setup.base, [setup.adapter], out, { threads: 1, ...options }),
  }
}

describe('the result has its name', () => {
  it('when all files and folders of it are on disk, and the name is', async () => {
    const { merge, out } = await layOut()
    await merge()
    const named = events.findIndex((event) => event.startsWith('rename') && event.endsWith(` to ${out}`))
    expect(named).toBeGreaterThan(0)
    // The synced files, by their final names.
    const synced = events.slice(0, named).flatMap((event, i) => {
      let file = /^sync (.*)/.exec(event)?.[1]
      if (file === undefined) return []
      for (const later of events.slice(i, named + 1)) {
        const [, from, to] = /^rename (.*) to (.*)/.exec(later) ?? []
        if (from !== undefined && (file === from || file.startsWith(`${from}/`))) file = to + file.slice(from.length)
      }
      return [file]
    })
    const all = (await readdir(out, { recursive: true })).map((name) => path.join(out, name))
    expect(all).toHaveLength(8)
    for (const name of [out, ...all]) expect(synced).toContain(name)
    expect(events.slice(named + 1)).toContain(`sync ${folder}`)
  })

  it('as a file too', async () => {
    const { merge } = await layOut()
    const out = path.join(folder, 'out.safetensors')
    await merge({ maxShardBytes: 2 ** 40 }, out)
    const unfinished = /\/\.out\.safetensors\.[\w-]+\.tmp\/out\.safetensors/.source
    expect(events).toEqual([
      expect.stringMatching(new RegExp(`^sync .*${unfinished}$`)),
      expect.stringMatching(/^sync .*\.tmp$/),
      expect.stringMatching(new RegExp(`^link .*${unfinished} to ${out}$`)),
      `sync ${folder}`,
    ])
  })

  it('and the file that is replaced stays until then', async () => {
    const { merge } = await layOut()
    const out = path.join(folder, 'out.safetensors')
    const options = { maxShardBytes: 2 ** 40, overwrite: true }
    await merge(options, out)
    events = []
    await merge(options, out)
    expect(events.map((event) => event.split(' ')[0])).toEqual(['sync', 'sync', 'rename', 'sync'])
  })
})

describe('a disk', () => {
  it('that has too little room is not written to', async () => {
    const { merge, out } = await layOut()
    const { bytes } = await merge({}, path.join(folder, 'first'))
    // There is space for all but the header of one of the two weights.
    free = 6 * 300 * 256
    await expect(merge()).rejects.toMatchObject({
      code: 'FILE',
      what: 'not enough free space for the output',
      got: '0 MB',
    })
    expect([existsSync(out), await partialsOf(out)]).toEqual([false, []])
    free = bytes
    await merge()
  })

  it.each([
    ['the first file', 'out', {}, 100_000, 'model-00001-of-00002.safetensors'],
    ['the second file', 'out', {}, 310_000, 'model-00002-of-00002.safetensors'],
    ['the only file of a folder', 'out', { maxShardBytes: 2 ** 40 }, 100_000, 'model.safetensors'],
    ['a file', 'out.safetensors', { maxShardBytes: 2 ** 40 }, 100_000, ''],
  ])('that fills up in %s is named and left as it was', async (_, name, options, bytes, file) => {
    const { merge } = await layOut()
    const out = path.join(folder, name)
    room = bytes
    await expect(merge(options, out)).rejects.toMatchObject({
      code: 'FILE',
      where: path.join(out, file),
      what: expect.stringMatching(/no space left on the device/),
      hint: 'Make room, or choose another disk',
    })
    expect((await readdir(folder)).sort()).toEqual(['adapter', 'base'])
    room = Number.POSITIVE_INFINITY
    await merge(options, out)
  })
})
