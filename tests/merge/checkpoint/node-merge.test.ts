import { execFile, fork } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { link, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, symlink, unlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../../src/base/bytes.js'
import { mergeCheckpoint } from '../../../src/merge/checkpoint/merge-checkpoint.js'
import { mergeCheckpointFiles, planCheckpointFiles } from '../../../src/merge/checkpoint/node-merge.js'
import { unmergeCheckpointFiles } from '../../../src/merge/checkpoint/node-unmerge.js'
import { buildMerge } from './build.js'
import { fromDisk, layOutFiles } from './disk.js'
import { base, type TensorSketch } from './toolkit.js'

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

/** What the portable code writes. */
async function expected(setup: Awaited<ReturnType<typeof layOutFiles>>): Promise<Map<string, string>> {
  const out = new MemoryDirectory({}, 'out')
  await mergeCheckpoint(setup.memory, setup.lora, out)
  return digests(out.files)
}

async function weights(out: string): Promise<Map<string, string>> {
  const { files } = await fromDisk(out)
  files.delete('lowrank-merge.json')
  return digests(files)
}

/** Files are compared by digest: arrays of megabytes take a matcher minutes. */
function digests(files: ReadonlyMap<string, Uint8Array>): Map<string, string> {
  return new Map([...files].map(([name, bytes]): [string, string] => [name, digest(bytes)]).sort())
}

function digest(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

describe('mergeCheckpointFiles', () => {
  it('writes the same bytes as the portable code', async () => {
    const setup = await layOutFiles(folder, SKETCHES, { shards: 3, files: { 'tokenizer.json': '{}' } })
    const report = await mergeCheckpointFiles(setup.base, [setup.adapter], setup.out, { threads: 1 })
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
    await mergeCheckpointFiles(path.join(setup.base, 'model.safetensors'), [setup.adapter], out, here)
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
    const plan = await planCheckpointFiles(setup.base, [setup.adapter], setup.out)
    expect(existsSync(setup.out)).toBe(false)
    const report = await mergeCheckpointFiles(setup.base, [setup.adapter], setup.out, here)
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
    await mergeCheckpointFiles(setup.base, [setup.adapter], setup.out, here)
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
      const merging = mergeCheckpointFiles(setup.base, [setup.adapter], out, { ...here, overwrite: true })
      await expect(merging).rejects.toMatchObject({ code: 'FILE', what: expect.stringContaining('being read') })
    }
    await expect(mergeCheckpointFiles(setup.base, [setup.adapter], folder, here)).rejects.toMatchObject({
      code: 'FILE',
    })
    expect(await weights(setup.base)).toEqual(before)
  })

  it('replaces only what a merge wrote, and only when told to', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const merge = (overwrite: boolean) =>
      mergeCheckpointFiles(setup.base, [setup.adapter], setup.out, { ...here, overwrite })
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
    const merge = () => mergeCheckpointFiles(setup.base, [setup.adapter], out, { ...here, overwrite: true })
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
    const merging = mergeCheckpointFiles(setup.base, [setup.adapter], setup.out, {
      ...here,
      signal: AbortSignal.abort(),
    })
    await expect(merging).rejects.toMatchObject({ name: 'AbortError' })
    expect((await readdir(folder)).sort()).toEqual(['adapter', 'base'])
  })

  it('splits the files over shares and finishes', async () => {
    const setup = await layOutFiles(folder, SKETCHES, { shards: 3 })
    const merge = (options: object) =>
      mergeCheckpointFiles(setup.base, [setup.adapter], setup.out, { ...here, ...options })
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
      mergeCheckpointFiles(setup.base, adapters, setup.out, { ...here, ...options })
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
    await mergeCheckpointFiles(setup.base, [setup.adapter], setup.out, here)
    const back = path.join(folder, 'back')
    const report = await unmergeCheckpointFiles(setup.out, [setup.adapter], back, { ...here, original: setup.base })
    const { differing, values } = report.differences!
    expect(values).toBe(50 * 24 + 40 * 24 + 24 + 40 * 24 + 5 + 13 * 7)
    expect(differing).toBeGreaterThan(0)
    expect(report.differences!.tensors.map(({ name }) => name)).not.toContain('embed.weight')
  })
})

describe('mergeCheckpointFiles in threads', () => {
  // 30 MB in 6 files. Where a merge is to be killed on the way its writes take their time, in the one thread that it has.
  const LARGE: TensorSketch[] = Array.from({ length: 6 }, (_, i) => [`layers.${i}.a_proj.weight`, 'BF16', [600, 4096]])
  let code: Awaited<ReturnType<typeof buildMerge>>
  let script: string
  let scratch: string
  /** In one file, made once: the normal values of 30 MB take seconds. */
  let single: ReturnType<typeof layOutFiles> | undefined
  beforeAll(async () => {
    code = await buildMerge()
    scratch = await mkdtemp(path.join(tmpdir(), 'merge-script-'))
    script = path.join(scratch, 'merge.mjs')
    await writeFile(
      script,
      `import fs from 'node:fs'
      import { syncBuiltinESMExports } from 'node:module'
      const [base, adapter, out, options, filler] = process.argv.slice(2)
      // Another writer takes room right after the merge has looked whether there is enough.
      const { statfsSync, writeSync } = fs
      if (process.env.SLOW_WRITES) {
        fs.writeSync = (...args) => {
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20)
          return writeSync(...args)
        }
      }
      fs.statfsSync = (...args) => {
        const result = statfsSync(...args)
        if (filler !== undefined) fs.writeFileSync(filler, new Uint8Array(6 << 20))
        return result
      }
      syncBuiltinESMExports()
      const { mergeCheckpointFiles } = await import(${JSON.stringify(code.merge)})
      const report = await mergeCheckpointFiles(base, [adapter], out, JSON.parse(options)).catch((error) => ({ error: { ...error, what: error.what } }))
      process.send(report)`,
    )
  })
  afterAll(async () => {
    await code.remove()
    await rm(scratch, { recursive: true, force: true })
  })

  function start(setup: { base: string; adapter: string }, out: string, options: object, ...filler: string[]) {
    return run(setup, out, options, filler, {})
  }

  function startSlowly(setup: { base: string; adapter: string }, out: string, options: object = {}) {
    return run(setup, out, { threads: 1, ...options }, [], { SLOW_WRITES: '1' })
  }

  function run(
    setup: { base: string; adapter: string },
    out: string,
    options: object,
    filler: string[],
    env: Record<string, string>,
  ) {
    const args = [setup.base, setup.adapter, out, JSON.stringify(options), ...filler]
    const child = fork(script, args, { execArgv: [], env: { ...process.env, ...env } })
    const report = new Promise<{ seconds?: number; error?: { what: string; hint: string } } | undefined>((resolve) => {
      child.on('message', (message) => resolve(message as object))
      child.on('exit', () => resolve(undefined))
    })
    return { child, report }
  }

  it('merges for a program that is a text', async () => {
    const setup = await layOutFiles(folder, SKETCHES)
    const program = `import { mergeCheckpointFiles } from ${JSON.stringify(code.merge)}
      await mergeCheckpointFiles(${JSON.stringify(setup.base)}, [${JSON.stringify(setup.adapter)}], ${JSON.stringify(setup.out)}, { threads: 2 })`
    await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program])
    expect(await weights(setup.out)).toEqual(await expected(setup))
  })

  it('leaves the base alone and nothing that looks finished when it is killed; resumes', async () => {
    const setup = await layOutFiles(folder, LARGE, { shards: 6 })
    const before = await weights(setup.base)
    const { child, report } = startSlowly(setup, setup.out)
    const partial = `${setup.out}.partial`
    const notes = async () =>
      (await readdir(path.join(partial, '.merge')).catch(() => [])).filter((name) => /^model.*json$/.test(name))
    while ((await notes()).length === 0 && child.exitCode === null)
      await new Promise((resolve) => setTimeout(resolve, 1))
    child.kill('SIGKILL')
    expect(await report).toBeUndefined()
    expect(existsSync(setup.out)).toBe(false)
    expect(await weights(setup.base)).toEqual(before)
    const kept = (await notes())[0].replace(/\.json$/, '')
    const { ino, mtimeMs } = await stat(path.join(partial, kept))
    expect((await start(setup, setup.out, { threads: 2, resume: true }).report)?.error).toBeUndefined()
    const after = await stat(path.join(setup.out, kept))
    expect([after.ino, after.mtimeMs]).toEqual([ino, mtimeMs])
    expect(await weights(setup.out)).toEqual(await expected(setup))
    // Without --resume the leftovers of a killed merge go.
    const again = path.join(folder, 'again')
    await rm(setup.out, { recursive: true })
    const second = startSlowly(setup, again)
    while (!existsSync(`${again}.partial`) && second.child.exitCode === null)
      await new Promise((resolve) => setTimeout(resolve, 1))
    second.child.kill('SIGKILL')
    await second.report
    expect((await start(setup, again, { threads: 3 }).report)?.error).toBeUndefined()
    expect(await weights(again)).toEqual(await expected(setup))
  })

  it.each<[string, string, object]>([
    ['one file', 'out.safetensors', {}],
    ['new shards', 'out', { maxShardBytes: 6_000_000 }],
    ['an unmerged checkpoint', 'out', { sign: -1 }],
    ['the share of a job', 'out', { share: { index: 0, count: 1 } }],
  ])('leaves no result when it is killed: %s', async (_, name, options) => {
    single ??= layOutFiles(path.join(scratch, 'single'), LARGE)
    const setup = await single
    const before = await weights(setup.base)
    const out = path.join(folder, name)
    const { child, report } = startSlowly(setup, out, options)
    const started = async () =>
      (await readdir(`${out}.partial`).catch(() => [])).some((file) => /^model|^out/.test(file))
    while (!(await started()) && child.exitCode === null) await new Promise((resolve) => setTimeout(resolve, 1))
    child.kill('SIGKILL')
    expect(await report).toBeUndefined()
    expect(existsSync(out)).toBe(false)
    expect(await weights(setup.base)).toEqual(before)
    const again = { threads: 2, resume: true, ...options, share: undefined }
    expect((await start(setup, out, again).report)?.error).toBeUndefined()
    const fresh = path.join(folder, `fresh-${name}`)
    await mergeCheckpointFiles(setup.base, [setup.adapter], fresh, { ...here, ...options, share: undefined })
    const digestAt = async (at: string) => (name === 'out' ? weights(at) : digest(await readFile(at)))
    expect(await digestAt(out)).toEqual(await digestAt(fresh))
    expect(existsSync(`${out}.partial`)).toBe(false)
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
      // What was finished when the disk was full is kept and continued.
      expect((await start(setup, out, { threads: 2, resume: true }).report)?.error).toBeUndefined()
      expect(await weights(out)).toEqual(await expected(setup))
      const third = (await start(setup, path.join(disk, 'third'), { threads: 2 }).report)!
      expect(third.error?.what).toBe('not enough free space for the output')
      expect(await readdir(disk)).toEqual(['out'])
      await rm(out, { recursive: true })
      // Of one file nothing is kept, nor of what is taken out again when no file was finished.
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
