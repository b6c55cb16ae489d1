import { existsSync } from 'node:fs'
import { link, mkdir, mkdtemp, readdir, readFile, rename, rm, symlink, unlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { base, type TensorSketch } from '../toolkit.js'
import { digest, expected, layOutFiles, mergeFiles, planFiles, unmergeFiles, weights } from './disk.js'

const SKETCHES: TensorSketch[] = [
  ['embed.weight', 'BF16', [50, 24]],
  ['layers.0.a_proj.weight', 'BF16', [40, 24]],
  ['layers.0.b_proj.weight', 'F16', [1, 24]],
  ['layers.1.a_proj.weight', 'F32', [40, 24]],
  ['layers.1.steps', 'I64', [5]],
  ['layers.1.b_proj.weight', 'BF16', [13, 7]],
]
const here = { threads: 1, fsync: false }

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
    expect(report.layers.every(({ relativeChange }) => relativeChange > 0)).toBe(true)
    expect(existsSync(`${setup.out}.partial`)).toBe(false)
  })

  it('writes one file, which appears under its name alone', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const out = path.join(folder, 'result.safetensors')
    await mergeFiles(path.join(setup.base, 'model.safetensors'), [setup.adapter], out, here)
    expect(digest(await readFile(out))).toBe((await expected(setup)).get('model.safetensors'))
    expect((await readdir(folder)).sort()).toEqual(['adapter', 'base', 'result.safetensors'])
  })

  it('carries other files over, in folders too, and leaves out and lists other copies of the weights', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const files = {
      '1_Pooling/config.json': '{}',
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
    const plan = await planFiles(setup.base, [setup.adapter], setup.out)
    expect(existsSync(setup.out)).toBe(false)
    const report = await mergeFiles(setup.base, [setup.adapter], setup.out, here)
    expect([...(await weights(setup.out)).keys()]).toEqual([
      '1_Pooling/config.json',
      'README.md',
      'config.json',
      'model.safetensors',
    ])
    const leftOut = [
      'consolidated.safetensors',
      'model.gguf',
      'onnx/',
      'original/consolidated.00.pth',
      'pytorch_model.bin',
    ]
    expect(report.leftOut).toEqual(leftOut)
    expect(plan).toMatchObject({ tensors: 6, changed: 4, leftOut })
  })

  it('reads through the symlinks of a cache and writes files', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    await mkdir(path.join(folder, 'blobs'))
    for (const name of await readdir(setup.base)) {
      await rename(path.join(setup.base, name), path.join(folder, 'blobs', name))
      await symlink(path.join('..', 'blobs', name), path.join(setup.base, name))
    }
    await mergeFiles(setup.base, [setup.adapter], setup.out, here)
    expect(await weights(setup.out)).toEqual(await expected(setup))
  })

  it('refuses to write where it reads, by whatever path', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const linked = path.join(folder, 'linked')
    await symlink(setup.base, linked)
    const hard = path.join(folder, 'hard.safetensors')
    await link(path.join(setup.base, 'model.safetensors'), hard)
    const before = await weights(setup.base)
    for (const out of [
      setup.base,
      `${setup.base}/../base`,
      linked,
      hard,
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
    const merge = (overwrite: boolean) =>
      mergeFiles(setup.base, [setup.adapter], setup.out, { ...here, overwrite })
    await mkdir(setup.out)
    await merge(false)
    await expect(merge(false)).rejects.toMatchObject({ code: 'FILE', hint: 'Choose another place, or overwrite it' })
    await merge(true)
    expect(await weights(setup.out)).toEqual(await expected(setup))
    await unlink(path.join(setup.out, 'lowrank-merge.json'))
    await expect(merge(false)).rejects.toMatchObject({ code: 'FILE', hint: 'Choose another place' })
    await expect(merge(true)).rejects.toMatchObject({
      code: 'FILE',
      what: expect.stringContaining('no merge wrote it'),
    })
  })

  it('takes a file for a former result by names and shapes', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const out = path.join(folder, 'result.safetensors')
    const merge = () => mergeFiles(setup.base, [setup.adapter], out, { ...here, overwrite: true })
    const other = async (change: (sketch: TensorSketch, i: number) => TensorSketch) => {
      const { files } = await base(SKETCHES.map(change))
      await writeFile(out, files.get('model.safetensors')!)
      return merge()
    }
    await merge()
    await merge()
    const refused = { code: 'FILE', what: 'not overwritten, because no merge wrote it' }
    await expect(other(([name, ...rest], i) => [i === 0 ? 'tokens.weight' : name, ...rest])).rejects.toMatchObject(
      refused,
    )
    await expect(other(([name, dtype, [d, k]]) => [name, dtype, k ? [k, d] : [d]])).rejects.toMatchObject(refused)
    // A merge with another dtype.
    await other(([name, dtype, shape]) => [name, dtype === 'I64' ? dtype : 'F32', shape])
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

  it('splits the files over shares and finishes', async () => {
    const setup = await layOutFiles(folder, SKETCHES, { shards: 3 })
    const merge = (options: object) =>
      mergeFiles(setup.base, [setup.adapter], setup.out, { ...here, ...options })
    const first = await merge({ share: { index: 0, count: 2 } })
    await expect(merge({ finish: true })).rejects.toMatchObject({ what: expect.stringContaining('1 of 3') })
    const second = await merge({ share: { index: 1, count: 2 } })
    // Files 1 and 3 of a job, and file 2 of the other, with two tensors each.
    expect([first, second].map(({ tensors, changed, layers }) => [tensors, changed, layers.length])).toEqual([
      [4, 3, 3],
      [2, 1, 1],
    ])
    expect(existsSync(setup.out)).toBe(false)
    const report = await merge({ finish: true })
    expect(await weights(setup.out)).toEqual(await expected(setup))
    expect(report).toMatchObject({ tensors: 6, changed: 4 })
    expect(report.layers).toHaveLength(4)
    await expect(merge({ share: { index: 2, count: 2 } })).rejects.toMatchObject({ code: 'CONFIG' })
  })

  it('does not finish with a damaged file, nor resume another merge', async () => {
    const setup = await layOutFiles(folder, SKETCHES, { shards: 3 })
    const merge = (options: object, adapters = [setup.adapter as never]) =>
      mergeFiles(setup.base, adapters, setup.out, { ...here, ...options })
    await merge({ share: { index: 0, count: 1 } })
    const shard = path.join(`${setup.out}.partial`, 'model-00002-of-00003.safetensors')
    const bytes = await readFile(shard)
    bytes[bytes.length - 1] ^= 1
    await writeFile(shard, bytes)
    await expect(merge({ finish: true })).rejects.toMatchObject({
      what: expect.stringMatching(/: model-00002-of-00003\.safetensors$/),
    })
    await expect(merge({ resume: true }, [{ adapter: setup.adapter, weight: 2 } as never])).rejects.toMatchObject({
      code: 'MISMATCH',
    })
    await merge({ resume: true })
    expect(await weights(setup.out)).toEqual(await expected(setup))
  })

  it('takes an adapter out again and counts what differs from the original', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    await mergeFiles(setup.base, [setup.adapter], setup.out, here)
    const back = path.join(folder, 'back')
    const report = await unmergeFiles(setup.out, [setup.adapter], back, { ...here, original: setup.base })
    const { differing, values } = report.differences!
    expect(values).toBe(50 * 24 + 40 * 24 + 24 + 40 * 24 + 5 + 13 * 7)
    expect(differing).toBeGreaterThan(0)
    expect(report.differences!.tensors.map(({ name }) => name)).not.toContain('embed.weight')
  })
})
