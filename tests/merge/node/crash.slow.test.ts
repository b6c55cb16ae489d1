// Kills a merge before each of its changes to the file system. The output is always whole or absent, and the next merge
// works without cleaning up.

import { fork } from 'node:child_process'
import { existsSync } from 'node:fs'
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { loadOnnx } from '../../../src/onnx/format/model.js'
import type { TensorSketch } from '../toolkit.js'
import { fromDisk, layOutFiles, MERGE, type MergeFilesOptions, mergeFiles } from './disk.js'

const SKETCHES: TensorSketch[] = [
  ['a_proj.weight', 'fp32', [40, 24]],
  ['b_proj.weight', 'bf16', [30, 24]],
]

let scratch: string
let script: string
let setup: Awaited<ReturnType<typeof layOutFiles>>
beforeAll(async () => {
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
    const { merge } = await import(${JSON.stringify(MERGE)})
    await merge({ base, adapters: adapter, out, ...JSON.parse(options) })`,
  )
})
afterAll(async () => {
  await rm(scratch, { recursive: true, force: true })
})

/** Returns whether the merge was killed before its change of this number, or had fewer. */
function isKilledBefore(merge: string[], change: number): Promise<boolean> {
  const child = fork(script, [...merge, String(change)], { execArgv: [] })
  return new Promise((resolve, reject) => {
    child.on('exit', (status, signal) => {
      if (status === 0 || signal === 'SIGKILL') resolve(status !== 0)
      else reject(new Error(`the merge failed before change ${change}`))
    })
  })
}

/**
 * Reads files by name, or the tensors of a graph by name, because a replaced graph gets new names for its data files.
 */
async function contentOf(out: string): Promise<Map<string, string>> {
  const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64')
  if (out.endsWith('.onnx')) {
    const model = await loadOnnx(new NodeDirectory(path.dirname(out)), path.basename(out))
    const tensors = new Map<string, string>()
    for (const tensor of model.proto.graph!.initializer) tensors.set(tensor.name, text(await model.readTensor(tensor)))
    await model.close()
    return tensors
  }
  if (out.endsWith('.safetensors')) return new Map([['', text(await readFile(out))]])
  return new Map([...(await fromDisk(out)).files].map(([name, bytes]): [string, string] => [name, text(bytes)]).sort())
}

const root = fileURLToPath(new URL('../../../', import.meta.url))
const graph = path.join(root, 'tests/golden/models/llama-genai')

describe.each<[string, string, MergeFilesOptions]>([
  ['a folder', 'out', {}],
  ['a folder in place of another', 'replaced', { overwrite: true }],
  ['a file in place of another', 'replaced.safetensors', { maxShardBytes: 2 ** 30, overwrite: true }],
  ['a graph and the file of its weights in place of others', 'replaced.onnx', { overwrite: true }],
])('%s', (_, name, own) => {
  it('is whole or not there, and the same merge again needs no help', async () => {
    const options = { threads: 1, ...own }
    const [base, adapter] = name.endsWith('.onnx')
      ? [path.join(graph, 'onnx/model.onnx'), path.join(graph, 'golden/adapter-init')]
      : [setup.base, setup.adapter]
    const folder = path.join(scratch, `in ${name}`)
    const [earlier, fresh] = [path.join(scratch, `earlier ${name}`, name), path.join(scratch, `fresh ${name}`, name)]
    await mergeFiles(base, [adapter], fresh, options)
    const whole = await contentOf(fresh)
    const allowed = [whole]
    if (own.overwrite) {
      await mergeFiles(base, [{ adapter, weight: 0.5 }], earlier, options)
      allowed.push(await contentOf(earlier))
      expect(allowed[1]).not.toEqual(whole)
    }
    const out = path.join(folder, name)
    let change = 0
    for (let isKilled = true; isKilled; change++) {
      await rm(folder, { recursive: true, force: true })
      if (own.overwrite) await cp(path.dirname(earlier), folder, { recursive: true })
      else await cp(path.join(setup.base, 'config.json'), path.join(folder, 'other'))
      isKilled = await isKilledBefore([base, adapter, out, JSON.stringify(options)], change)
      if (existsSync(out)) expect(allowed, `before change ${change}`).toContainEqual(await contentOf(out))
      else if (own.overwrite) {
        const work = (await readdir(folder)).find((file) => file.endsWith('.tmp'))!
        expect(await contentOf(path.join(folder, work, `${name}.old`))).toEqual(allowed[1])
      }
      const error = await mergeFiles(base, [adapter], out, options).catch((reason) => reason)
      // A complete result is not written again.
      if (error instanceof Error) expect(error.message, `before change ${change}`).toContain('exists already')
      expect(await contentOf(out), `before change ${change}`).toEqual(whole)
      const left = (await readdir(folder)).filter((file) => file !== 'other')
      const expected = name.endsWith('.onnx') ? [name, expect.stringMatching(/^\w+\.onnx(\.\d+)?\.data$/)] : [name]
      expect(left, `before change ${change}`).toEqual(expected)
    }
    expect(change).toBeGreaterThan(8)
  })
})
