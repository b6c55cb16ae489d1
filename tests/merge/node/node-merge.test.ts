import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, realpath, rename, rm, symlink, unlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../../src/api/node.js'
import { mergeCheckpoint, type TensorSketch, unmergeCheckpoint } from '../toolkit.js'
import { digest, expected, layOutFiles, mergeFiles, partialsOf, planFiles, unmergeFiles, weights } from './disk.js'

const SKETCHES: TensorSketch[] = [
  ['embed.weight', 'bf16', [50, 24]],
  ['layers.0.a_proj.weight', 'bf16', [40, 24]],
  ['layers.0.b_proj.weight', 'fp16', [1, 24]],
  ['layers.1.a_proj.weight', 'fp32', [40, 24]],
  ['layers.1.steps', 'I64', [5]],
  ['layers.1.b_proj.weight', 'bf16', [13, 7]],
]
const here = { threads: 1 }

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'merge-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

describe('mergeFiles', () => {
  it('writes the same bytes as the portable code', async () => {
    const setup = await layOutFiles(folder, SKETCHES, { shards: 3, files: { 'tokenizer.json': '{}' } })
    const report = await mergeFiles(setup.base, [setup.adapter], setup.out, { threads: 1 })
    expect(await weights(setup.out)).toEqual(await expected(setup))
    expect(report).toMatchObject({ out: setup.out, tensors: 6, changed: 4, leftOut: [] })
    expect(report.layers.map(({ name }) => name).sort()).toEqual([
      'layers.0.a_proj',
      'layers.0.b_proj',
      'layers.1.a_proj',
      'layers.1.b_proj',
    ])
    expect(report.layers.every(({ relativeChange }) => relativeChange! > 0)).toBe(true)
    expect(await partialsOf(setup.out)).toEqual([])
  })

  it('writes one file, which appears under its name alone', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const out = path.join(folder, 'result.safetensors')
    await mergeFiles(path.join(setup.base, 'model.safetensors'), [setup.adapter], out, here)
    expect(digest(await readFile(out))).toBe((await expected(setup)).get('model.safetensors'))
    expect((await readdir(folder)).sort()).toEqual(['adapter', 'base', 'result.safetensors'])
  })

  it('carries over what the result needs, in folders too, and lists what it leaves out', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const files = {
      '1_Pooling/config.json': '{}',
      '2_Dense/model.safetensors': 'x',
      '2_Dense/notes.txt': 'x',
      'additional_chat_templates/tool.jinja': 'x',
      'tokenizer.json': '{}',
      'tokenizer_config.json': '{"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", null]}}',
      'tokenization_own.py': 'from .helpers import split\n',
      'helpers.py': 'import os',
      'spiece.model': 'x',
      'vocab.txt': 'x',
      'chat_template.jinja': 'x',
      'preprocessor_config.json': '{}',
      'LICENSE.md': 'x',
      '.gitattributes': 'x',
      'notes/mine.txt': 'x',
      'training_args.bin': 'x',
      'adapter_config.json': '{}',
      'pytorch_model.bin': 'x',
      'model.gguf': 'x',
      'onnx/model.onnx': 'x',
      'original/consolidated.00.pth': 'x',
      'consolidated.safetensors': 'x',
      'README.md': 'x',
    }
    for (const [name, content] of Object.entries(files)) {
      await mkdir(path.dirname(path.join(setup.base, name)), { recursive: true })
      await writeFile(path.join(setup.base, name), content)
    }
    const options = { ...here, format: 'safetensors' } as const
    const plan = await planFiles(setup.base, [setup.adapter], setup.out, options)
    expect(existsSync(setup.out)).toBe(false)
    const report = await mergeFiles(setup.base, [setup.adapter], setup.out, options)
    expect([...(await weights(setup.out)).keys()]).toEqual([
      '1_Pooling/config.json',
      '2_Dense/model.safetensors',
      'LICENSE.md',
      'additional_chat_templates/tool.jinja',
      'chat_template.jinja',
      'config.json',
      'helpers.py',
      'model.safetensors',
      'preprocessor_config.json',
      'spiece.model',
      'tokenization_own.py',
      'tokenizer.json',
      'tokenizer_config.json',
      'vocab.txt',
    ])
    const leftOut = [
      '2_Dense/notes.txt',
      'README.md',
      'adapter_config.json',
      'consolidated.safetensors',
      'model.gguf',
      'notes/',
      'onnx/',
      'original/',
      'pytorch_model.bin',
      'training_args.bin',
    ]
    expect(report.leftOut).toEqual(leftOut)
    expect(plan).toMatchObject({ tensors: 6, changed: 4, leftOut })
  })

  it('reads through the symlinks of a cache and writes files', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const snapshot = path.join(folder, 'models--org--name', 'snapshots', '0a1b')
    const blobs = path.join(folder, 'models--org--name', 'blobs')
    await mkdir(snapshot, { recursive: true })
    await mkdir(blobs)
    for (const name of await readdir(setup.base)) {
      await rename(path.join(setup.base, name), path.join(blobs, name))
      await symlink(path.join('..', '..', 'blobs', name), path.join(snapshot, name))
    }
    await mergeFiles(snapshot, [setup.adapter], setup.out, here)
    expect(await weights(setup.out)).toEqual(await expected(setup))
  })

  it('refuses links that lead out of the base, and takes those inside', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const secret = path.join(folder, 'secret')
    await mkdir(path.join(secret, '1_Pooling'), { recursive: true })
    await writeFile(path.join(secret, '1_Pooling', 'config.json'), 'private')
    const leak = async (name: string, target: string, inner = '') => {
      const link = path.join(setup.base, name)
      await symlink(target, link)
      for (const make of [mergeFiles, planFiles]) {
        await expect(make(setup.base, [setup.adapter], setup.out, here)).rejects.toMatchObject({
          code: 'FILE',
          where: path.join(link, inner),
          what: 'a link that leads out of its folder',
          got: await realpath(path.join(path.resolve(setup.base, target), inner)),
        })
      }
      expect((await readdir(folder)).sort()).toEqual(['adapter', 'base', 'secret'])
      await mergeFiles(setup.base, [setup.adapter], setup.out, { ...here, weightsOnly: true })
      expect(await readdir(setup.out)).toEqual(['lowrank-merge.json', 'model.safetensors'])
      await rm(setup.out, { recursive: true })
      await unlink(link)
    }
    await leak('vocab.txt', path.join(secret, '1_Pooling', 'config.json'))
    await leak('tokenizer.json', '../secret/1_Pooling/config.json')
    await leak('1_Pooling', '../secret/1_Pooling', 'config.json')
    // A link that is not copied may lead anywhere.
    await symlink(path.join(secret, '1_Pooling', 'config.json'), path.join(setup.base, 'notes.txt'))
    await symlink('config.json', path.join(setup.base, 'generation_config.json'))
    const { copied } = await mergeFiles(setup.base, [setup.adapter], setup.out, here)
    expect(copied).toEqual(['config.json', 'generation_config.json'])
  })

  it('refuses to write where it reads, by whatever path', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const linked = path.join(folder, 'linked')
    await symlink(setup.base, linked)
    const before = await weights(setup.base)
    for (const out of [
      setup.base,
      `${setup.base}/../base`,
      linked,
      setup.adapter,
      path.join(setup.base, 'model.safetensors'),
    ]) {
      const merging = mergeFiles(setup.base, [setup.adapter], out, { ...here, overwrite: true })
      await expect(merging).rejects.toMatchObject({ code: 'FILE', what: expect.stringContaining('being read') })
    }
    await expect(mergeFiles(setup.base, [setup.adapter], folder, here)).rejects.toMatchObject({
      code: 'FILE',
    })
    expect(await weights(setup.base)).toEqual(before)
  })

  it('replaces only what a merge wrote, and only when told to', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const merge = (overwrite: boolean) => mergeFiles(setup.base, [setup.adapter], setup.out, { ...here, overwrite })
    await mkdir(setup.out)
    await merge(false)
    await expect(merge(false)).rejects.toMatchObject({
      code: 'FILE',
      hint: 'Choose another place for the result, or replace it with `overwrite`',
    })
    await merge(true)
    expect(await weights(setup.out)).toEqual(await expected(setup))
    await unlink(path.join(setup.out, 'lowrank-merge.json'))
    await expect(merge(false)).rejects.toMatchObject({ code: 'FILE', hint: 'Choose another place' })
    await expect(merge(true)).rejects.toMatchObject({
      code: 'FILE',
      what: expect.stringContaining('no merge wrote config.json'),
    })
  })

  it('replaces a file when told to', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const out = path.join(folder, 'result.safetensors')
    await writeFile(out, 'x')
    const merge = (overwrite: boolean) => mergeFiles(setup.base, [setup.adapter], out, { ...here, overwrite })
    await expect(merge(false)).rejects.toMatchObject({ code: 'FILE', what: 'exists already' })
    await merge(true)
    expect(digest(await readFile(out))).toBe((await expected(setup)).get('model.safetensors'))
  })

  it('stops at a signal and leaves nothing', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const merging = mergeFiles(setup.base, [setup.adapter], setup.out, {
      ...here,
      signal: AbortSignal.abort(),
    })
    await expect(merging).rejects.toMatchObject({ name: 'AbortError' })
    expect((await readdir(folder)).sort()).toEqual(['adapter', 'base'])
  })

  it('takes an adapter out again', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    await mergeFiles(setup.base, [setup.adapter], setup.out, here)
    const back = path.join(folder, 'back')
    await unmergeFiles(setup.out, [setup.adapter], back, here)
    const plain = new MemoryDirectory({}, 'out')
    await mergeCheckpoint(setup.memory, setup.lora, plain)
    const memory = new MemoryDirectory({}, 'back')
    await unmergeCheckpoint(plain, setup.lora, memory)
    for (const [name, bytes] of memory.files) expect((await weights(back)).get(name)).toBe(digest(bytes))
  })
})
