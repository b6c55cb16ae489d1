// A disk that fills up: a training asks for room before its first step, and a trained adapter is never lost.

import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { FileError, type LoraAdapter, loadAdapter, MemoryDirectory, train } from 'lowrank'
import { afterAll, expect, it } from 'vitest'
import { binary, MODEL, QUICK } from '../app/cli/lowrank.js'

const scratch = mkdtempSync(join(tmpdir(), 'lowrank-full-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

const data = ['The boat is red.', 'The sea is calm.'].map((text) => ({ text }))
const options = { model: MODEL, data, maxSteps: 2, batchSize: 1, learningRate: 0.01, config: { rank: 2 } } as const
const valuesOf = (adapter: LoraAdapter) => adapter.parts('linear').map(({ weightB }) => [...weightB.data])

/** A folder that takes no file after the first `room`. */
class FullDirectory extends MemoryDirectory {
  constructor(private room: number) {
    super({}, 'full')
  }

  override async create(path: string) {
    if (this.room-- <= 0) throw new FileError({ where: path, what: 'cannot be written: no space left on the device' })
    return super.create(path)
  }
}

it('any failure to write after the last step has the whole adapter', async () => {
  const wanted = valuesOf((await train(options)).adapter)
  let failures = 0
  for (let room = 1; ; room++) {
    const error = await train({ ...options, out: new FullDirectory(room) }).catch((reason) => reason)
    if (!(error instanceof FileError)) break
    // The first files come after the first step, before the second.
    if (room > 3) expect(valuesOf(error.adapter as LoraAdapter), `room for ${room} files`).toEqual(wanted)
    else expect(error.adapter).toBeDefined()
    failures++
  }
  expect(failures).toBeGreaterThan(5)
})

it('asks for the room of adapter, state and report before the first step', async () => {
  const out = Object.assign(new MemoryDirectory({}, 'full'), { freeBytes: () => 1 << 20 })
  let steps = 0
  const run = train({ ...options, out, on: { step: () => void steps++ } })
  await expect(run).rejects.toMatchObject({ code: 'FILE', what: expect.stringContaining('not enough free space') })
  expect([steps, [...out.files.keys()]]).toEqual([0, []])
})

it.each(['out/', ''])('the command line saves elsewhere if %s is full', async (full) => {
  const [work, home] = ['work', 'home'].map((name) => join(scratch, `${name}-${full.length}`))
  for (const folder of [work, home]) mkdirSync(folder)
  const preload = join(scratch, 'full.mjs')
  writeFileSync(
    preload,
    `import fs from 'node:fs'
    import { syncBuiltinESMExports } from 'node:module'
    const { mkdir } = fs.promises
    fs.promises.mkdir = async (folder, ...rest) => {
      const isFull = String(folder).startsWith(process.env.FULL) && /adapter_/.test(folder)
      if (isFull) throw Object.assign(new Error('ENOSPC: no space left'), { code: 'ENOSPC' })
      return mkdir(folder, ...rest)
    }
    syncBuiltinESMExports()`,
  )
  const args = ['--import', preload, binary, 'train', ...QUICK, '--out', join(work, 'out')]
  // The current folder is as full as the one of `out`.
  const env = { ...process.env, FULL: join(work, full), HOME: home }
  const { status, stderr } = spawnSync(process.execPath, args, { cwd: work, env, encoding: 'utf8' })
  expect(status, stderr).toBe(1)
  expect(stderr).toContain('no space left on the device')
  const [, kept] = /The trained adapter is in (\S+)/.exec(stderr)!
  expect(kept.startsWith(join(full === '' ? home : work, 'out-'))).toBe(true)
  expect(statSync(kept).mode & 0o777).toBe(0o700)
  expect(
    (await loadAdapter(kept)).parts('linear').some(({ weightB }) => weightB.data.some((value) => value !== 0)),
  ).toBe(true)
  // Nothing else is left of it.
  const left = [...readdirSync(home), ...readdirSync(work)].filter((name) => name !== 'out' && name !== '.cache')
  expect(left).toEqual([basename(kept)])
})
