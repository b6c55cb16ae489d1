// A merge that is killed before each of its changes to the file system, one after the other: what has the output's name is always
// whole, and the next merge, continued or not, gives the whole result.

import { fork } from 'node:child_process'
import { existsSync } from 'node:fs'
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { TensorSketch } from '../toolkit.js'
import { buildMerge } from './build.js'
import { fromDisk, layOutFiles, type MergeFilesOptions, mergeFiles } from './disk.js'

const SKETCHES: TensorSketch[] = [
  ['a_proj.weight', 'F32', [40, 24]],
  ['b_proj.weight', 'BF16', [30, 24]],
]

let code: Awaited<ReturnType<typeof buildMerge>>
let scratch: string
let script: string
let setup: Awaited<ReturnType<typeof layOutFiles>>
beforeAll(async () => {
  code = await buildMerge()
  scratch = await mkdtemp(path.join(tmpdir(), 'merge-crash-'))
  setup = await layOutFiles(scratch, SKETCHES, { shards: 2, files: { 'tokenizer.json': '{}' } })
  script = path.join(scratch, 'merge.mjs')
  await writeFile(
    script,
    `import fs from 'node:fs'
    import { syncBuiltinESMExports } from 'node:module'
    const [base, adapter, out, options, last] = process.argv.slice(2)
    let changes = 0
    const killBefore = (object, names) => {
      for (const name of names) {
        const call = object[name]
        object[name] = (...args) => {
          const isReading = /^open/.test(name) && /^r/.test(args[1] ?? 'r')
          if (!isReading && changes++ === Number(last)) process.kill(process.pid, 'SIGKILL')
          return call(...args)
        }
      }
    }
    killBefore(fs, ['openSync', 'writeSync', 'rmSync'])
    killBefore(fs.promises, ['mkdir', 'rm', 'rmdir', 'rename', 'unlink', 'link', 'writeFile', 'open'])
    syncBuiltinESMExports()
    const { merge } = await import(${JSON.stringify(code.merge)})
    await merge({ base, adapters: adapter, out, ...JSON.parse(options) })`,
  )
})
afterAll(async () => {
  await code.remove()
  await rm(scratch, { recursive: true, force: true })
})

/** Returns whether the merge was killed before its change of this number, or had fewer. */
function isKilledBefore(change: number, out: string, options: MergeFilesOptions): Promise<boolean> {
  const child = fork(script, [setup.base, setup.adapter, out, JSON.stringify(options), String(change)], {
    execArgv: [],
  })
  return new Promise((resolve, reject) => {
    child.on('exit', (status, signal) => {
      if (status === 0 || signal === 'SIGKILL') resolve(status !== 0)
      else reject(new Error(`the merge failed before change ${change}`))
    })
  })
}

async function contentOf(out: string): Promise<Map<string, string>> {
  const files = out.endsWith('.safetensors') ? new Map([['', await readFile(out)]]) : (await fromDisk(out)).files
  const content = [...files].map(([name, bytes]): [string, string] => [name, Buffer.from(bytes).toString('base64')])
  return new Map(content.filter(([name]) => !name.startsWith('.merge/')).sort())
}

describe.each<[string, string, MergeFilesOptions]>([
  ['a folder', 'out', {}],
  ['a folder in place of another', 'replaced', { overwrite: true }],
  ['a file', 'out.safetensors', { maxShardBytes: 2 ** 30 }],
])('%s', (_, name, own) => {
  it('is whole or not there', async () => {
    const options = { threads: 1, ...own }
    const folder = path.join(scratch, `in ${name}`)
    const [earlier, fresh] = [path.join(scratch, `earlier ${name}`), path.join(scratch, `fresh ${name}`)]
    await mergeFiles(setup.base, [{ adapter: setup.adapter, weight: 0.5 }], earlier, options)
    await mergeFiles(setup.base, [setup.adapter], fresh, options)
    const [old, whole] = [await contentOf(earlier), await contentOf(fresh)]
    expect(old).not.toEqual(whole)
    const out = path.join(folder, name)
    let change = 0
    for (let isKilled = true; isKilled; change++) {
      await rm(folder, { recursive: true, force: true })
      if (own.overwrite) await cp(earlier, out, { recursive: true })
      else await cp(path.join(setup.base, 'config.json'), path.join(folder, 'other'))
      isKilled = await isKilledBefore(change, out, options)
      if (existsSync(out)) expect([old, whole], `before change ${change}`).toContainEqual(await contentOf(out))
      else if (own.overwrite) {
        const moved = (await readdir(folder)).find((file) => file.includes('.old-'))
        expect(await contentOf(path.join(folder, moved!))).toEqual(old)
      }
      const next = { ...options, resume: change % 2 === 1, overwrite: true }
      await mergeFiles(setup.base, [setup.adapter], out, next)
      expect(await contentOf(out)).toEqual(whole)
      expect(await readdir(folder)).toEqual(expect.not.arrayContaining([expect.stringMatching(/\.(partial|old)-/)]))
      expect(existsSync(path.join(out, '.merge'))).toBe(false)
    }
    expect(change).toBeGreaterThan(10)
  })
})
