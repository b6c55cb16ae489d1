// Merging in processes and threads of its own: killed, on a full disk, and from a program that is no file.

import { execFile, fork } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import type { TensorSketch } from '../toolkit.js'
import { digest, expected, layOutFiles, MERGE, mergeFiles, partialsOf, weights } from './disk.js'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'merge-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

describe('mergeFiles in threads', () => {
  // 30 MB in 6 files.
  const LARGE: TensorSketch[] = Array.from({ length: 6 }, (_, i) => [`layers.${i}.a_proj.weight`, 'bf16', [600, 4096]])
  let script: string
  let scratch: string
  /** In one file, made once: the normal values of 30 MB take seconds. */
  let single: ReturnType<typeof layOutFiles> | undefined
  beforeAll(async () => {
    scratch = await mkdtemp(path.join(tmpdir(), 'merge-script-'))
    script = path.join(scratch, 'merge.mjs')
    await writeFile(
      script,
      `import fs from 'node:fs'
      import { syncBuiltinESMExports } from 'node:module'
      const [base, adapter, out, options, filler] = process.argv.slice(2)
      // Another writer takes room right after the merge has looked whether there is enough.
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
    return run([setup.base, setup.adapter, out, JSON.stringify(options), ...filler], [])
  }

  function startSlowly(setup: { base: string; adapter: string }, out: string, options: object = {}) {
    const slow = new URL('../../slow-writes.mjs', import.meta.url).href
    return run([setup.base, setup.adapter, out, JSON.stringify({ threads: 2, ...options })], ['--import', slow])
  }

  function run(args: string[], execArgv: string[]) {
    const child = fork(script, args, { execArgv })
    const report = new Promise<{ seconds?: number; error?: { what: string; hint: string } } | undefined>((resolve) => {
      child.on('message', (message) => resolve(message as object))
      child.on('exit', () => resolve(undefined))
    })
    return { child, report }
  }

  it('merges for a program that is a text', async () => {
    const setup = await layOutFiles(folder, [['a_proj.weight', 'bf16', [40, 24]]])
    const { base, adapter: adapters, out } = setup
    const program = `import { merge } from ${JSON.stringify(MERGE)}
      await merge(${JSON.stringify({ base, adapters, out, threads: 2 })})`
    await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program])
    expect(await weights(setup.out)).toEqual(await expected(setup))
  })

  it.each<[string, string, object]>([
    ['several files', 'out', { maxShardBytes: 12_000_000 }],
    ['one file', 'out.safetensors', {}],
    ['new shards', 'out', { maxShardBytes: 6_000_000 }],
    ['an unmerged checkpoint', 'out', { sign: -1 }],
  ])('leaves no result when it is killed: %s', async (_, name, options) => {
    single ??= layOutFiles(path.join(scratch, 'single'), LARGE)
    const setup = await single
    const before = await weights(setup.base)
    const out = path.join(folder, name)
    const { child, report } = startSlowly(setup, out, options)
    const started = async () => {
      const work = (await partialsOf(out)).find((one) => one.endsWith('.tmp'))
      return work !== undefined && (await readdir(work).catch(() => [])).length > 0
    }
    while (!(await started()) && child.exitCode === null) await new Promise((resolve) => setTimeout(resolve, 1))
    child.kill('SIGKILL')
    expect(await report).toBeUndefined()
    expect(existsSync(out)).toBe(false)
    expect(await weights(setup.base)).toEqual(before)
    expect((await start(setup, out, { threads: 2, ...options }).report)?.error).toBeUndefined()
    const fresh = path.join(folder, `fresh-${name}`)
    await mergeFiles(setup.base, [setup.adapter], fresh, { threads: 1, ...options })
    const digestAt = async (at: string) => (name === 'out' ? weights(at) : digest(await readFile(at)))
    expect(await digestAt(out)).toEqual(await digestAt(fresh))
    expect(await partialsOf(out)).toEqual([])
  })

  it.skipIf(process.getuid?.() !== 0 || process.platform !== 'linux')('says so when the disk fills up', async () => {
    const { execFileSync } = await import('node:child_process')
    const setup = await layOutFiles(folder, LARGE.slice(0, 2), { shards: 2 })
    const disk = path.join(folder, 'disk')
    await mkdir(disk)
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=12m', 'tmpfs', disk])
    } catch {
      return
    }
    try {
      const [out, other] = [path.join(disk, 'out'), path.join(disk, 'other')]
      const { error } = (await start(setup, out, { threads: 2 }, other).report)!
      expect(error?.what).toMatch(/no space left/)
      expect(existsSync(out)).toBe(false)
      await rm(other)
      expect((await start(setup, out, { threads: 2 }).report)?.error).toBeUndefined()
      expect(await weights(out)).toEqual(await expected(setup))
      const third = (await start(setup, path.join(disk, 'third'), { threads: 2 }).report)!
      expect(third.error?.what).toBe('not enough free space for the output')
      expect(await readdir(disk)).toEqual(['out'])
      await rm(out, { recursive: true })
      for (const [name, options] of [
        ['one.safetensors', { maxShardBytes: 2 ** 40 }],
        ['base-again', { maxShardBytes: 2 ** 40, sign: -1 }],
      ] as const) {
        const stopped = (await start(setup, path.join(disk, name), { threads: 2, ...options }, other).report)!
        expect(stopped.error?.what).toMatch(/no space left/)
        await rm(other)
        expect(await readdir(disk)).toEqual([])
        expect((await start(setup, path.join(disk, name), { threads: 2, ...options }).report)?.error).toBeUndefined()
        await rm(path.join(disk, name), { recursive: true })
      }
    } finally {
      execFileSync('umount', [disk])
    }
  })
})
