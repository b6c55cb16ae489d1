import { spawnSync } from 'node:child_process'
import { mkdir, mkdtemp, realpath, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { resolveNodeRuntime } from '../../../src/onnx/runtime/node/runtime.js'

describe('where onnxruntime-node is loaded from', () => {
  const program = process.argv[1]
  let folder: string
  let copy: string

  beforeEach(async () => {
    folder = await realpath(await mkdtemp(path.join(tmpdir(), 'lowrank-resolve-')))
    const packed = path.join(folder, 'node_modules/onnxruntime-node')
    await mkdir(packed, { recursive: true })
    await writeFile(path.join(packed, 'package.json'), '{"name":"onnxruntime-node","main":"index.js"}')
    await writeFile(path.join(packed, 'index.js'), '')
    copy = pathToFileURL(path.join(packed, 'index.js')).href
  })

  afterEach(async () => {
    process.argv[1] = program
    vi.restoreAllMocks()
    await rm(folder, { recursive: true })
  })

  it('is not the working directory of a program that lies elsewhere', () => {
    vi.spyOn(process, 'cwd').mockReturnValue(folder)
    expect(resolveNodeRuntime()).not.toBe(copy)
    process.argv[1] = path.join(tmpdir(), 'no-project', 'main.mjs')
    expect(resolveNodeRuntime()).not.toBe(copy)
  })

  it("is the project of the program, or of the command line's link in it", () => {
    for (const file of ['main.mjs', 'dist/main.js', 'node_modules/.bin/lowrank']) {
      process.argv[1] = path.join(folder, file)
      expect(resolveNodeRuntime()).toBe(copy)
    }
  })

  it('is never the working directory of a program that is a text, nor where its arguments lie', async () => {
    // lowrank itself is elsewhere, beside another onnxruntime-node.
    const peers = new URL('../../../src/core/base/node/peers.js', import.meta.url)
    const text = `import { resolvePeer } from ${JSON.stringify(peers)}
      console.log(resolvePeer('onnxruntime-node', ${JSON.stringify(import.meta.url)}))`
    const file = path.join(folder, 'model.safetensors')
    await writeFile(file, '')
    for (const args of [
      ['--input-type=module', '-e', text, file],
      ['--input-type=module', '-', file],
      ['--input-type=module'],
    ]) {
      const { stdout } = spawnSync(process.execPath, args, { cwd: folder, input: text, encoding: 'utf8' })
      expect(stdout.trim()).toMatch(/onnxruntime-node/)
      expect(stdout.trim()).not.toBe(copy)
    }
  })
})
