// Merges in separate processes: on a full disk, and from a program that is not in a file.

import { execFile, fork } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import type { TensorSketch } from '../toolkit.js'
import { expected, layOutFiles, MERGE, weights } from './disk.js'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'merge-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

describe('mergeFiles in threads', () => {
  // 10 MB in two files.
  const LARGE: TensorSketch[] = Array.from({ length: 2 }, (_, i) => [`layers.${i}.a_proj.weight`, 'bf16', [600, 4096]])
  let script: string
  let scratch: string
  beforeAll(async () => {
    scratch = await mkdtemp(path.join(tmpdir(), 'merge-script-'))
    script = path.join(scratch, 'merge.mjs')
    await writeFile(
      script,
      `import fs from 'node:fs'
      import { syncBuiltinESMExports } from 'node:module'
      const [base, adapter, out, options, filler] = process.argv.slice(2)
      // Another program takes space right after the merge has checked that there is enough.
      const { statfsSync } = fs
      fs.statfsSync = (...args) => {
        const result = statfsSync(...args)
        if (filler !== undefined) fs.writeFileSync(filler, new Uint8Array(6 << 20))
        return result
      }
      syncBuiltinESMExports()
      const { merge, unmerge } = await import(${JSON.stringify(MERGE)})
      const { sign, ...rest } = JSON.parse(options)
      const work = sign === -1 ? unmerge({ merged: base, adapters: adapter, out, ...rest }) : merge({ base, adapters: adapter, out, ...rest })
      const report = await work.catch((error) => ({ error: { ...error, what: error.what } }))
      process.send(report)`,
    )
  })
  afterAll(async () => {
    await rm(scratch, { recursive: true, force: true })
  })

  function start(setup: { base: string; adapter: string }, out: string, options: object, ...filler: string[]) {
    const child = fork(script, [setup.base, setup.adapter, out, JSON.stringify(options), ...filler])
    return new Promise<{ error?: { what: string; hint: string } } | undefined>((resolve) => {
      child.on('message', (message) => resolve(message as object))
      child.on('exit', () => resolve(undefined))
    })
  }

  it('runs from a program that is not in a file', async () => {
    const setup = await layOutFiles(folder, [['a_proj.weight', 'bf16', [40, 24]]])
    const { base, adapter: adapters, out } = setup
    const program = `import { merge } from ${JSON.stringify(MERGE)}
      await merge(${JSON.stringify({ base, adapters, out, threads: 2 })})`
    await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program])
    expect(await weights(setup.out)).toEqual(await expected(setup))
  })

  it.skipIf(process.getuid?.() !== 0 || process.platform !== 'linux')('says so when the disk fills up', async () => {
    const { execFileSync } = await import('node:child_process')
    const setup = await layOutFiles(folder, LARGE, { shards: 2 })
    const disk = path.join(folder, 'disk')
    await mkdir(disk)
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=12m', 'tmpfs', disk])
    } catch {
      return
    }
    try {
      const [out, other] = [path.join(disk, 'out'), path.join(disk, 'other')]
      const { error } = (await start(setup, out, { threads: 2 }, other))!
      expect(error?.what).toMatch(/no space left/)
      expect(existsSync(out)).toBe(false)
      await rm(other)
      expect((await start(setup, out, { threads: 2 }))?.error).toBeUndefined()
      expect(await weights(out)).toEqual(await expected(setup))
      const third = (await start(setup, path.join(disk, 'third'), { threads: 2 }))!
      expect(third.error?.what).toBe('not enough free space for the output')
      expect(await readdir(disk)).toEqual(['out'])
      await rm(out, { recursive: true })
      for (const [name, options] of [
        ['one.safetensors', { maxShardBytes: 2 ** 40 }],
        ['base-again', { maxShardBytes: 2 ** 40, sign: -1 }],
      ] as const) {
        const stopped = (await start(setup, path.join(disk, name), { threads: 2, ...options }, other))!
        expect(stopped.error?.what).toMatch(/no space left/)
        await rm(other)
        expect(await readdir(disk)).toEqual([])
        expect((await start(setup, path.join(disk, name), { threads: 2, ...options }))?.error).toBeUndefined()
        await rm(path.join(disk, name), { recursive: true })
      }
    } finally {
      execFileSync('umount', [disk])
    }
  })
})
