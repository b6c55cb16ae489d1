// `lowrank merge` with signals, closed and full outputs, and its messages and reports.

import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { LoraAdapter } from '../../../src/api/index.js'
import { loadAdapter, saveAdapter } from '../../../src/api/node.js'
import { lowrankHere } from './in-process.js'
import { d, k, LAYERS, large } from './large-merge.js'
import { lowrank, MODEL, root, scratchFolder, start } from './lowrank.js'

const scratch = scratchFolder()
const PEFT = join(root, 'tests', 'golden', 'peft', 'f32')
const CHECKPOINT = ['--format', 'safetensors']

/** Reads the F32 tensors of a file. */
function readWeights(file: string): Map<string, Float32Array> {
  const bytes = readFileSync(file)
  const start = 8 + Number(bytes.readBigUInt64LE())
  const header: Record<string, { data_offsets: [number, number] }> = JSON.parse(bytes.toString('utf8', 8, start))
  const { __metadata__: _, ...tensors } = header
  return new Map(
    Object.entries(tensors).map(
      ([
        name,
        {
          data_offsets: [from, to],
        },
      ]) => {
        return [name, new Float32Array(Uint8Array.from(bytes.subarray(start + from, start + to)).buffer)]
      },
    ),
  )
}

describe('options', () => {
  it('--tied says what becomes of tied embeddings', async () => {
    const folder = join(scratch, 'head')
    const adapter = new LoraAdapter({ rank: 1, alpha: 1, targetModules: ['lm_head'] })
    const halves = (rows: number, columns: number) => {
      return { data: new Float32Array(rows * columns).fill(0.5), shape: [rows, columns] as const }
    }
    adapter.addFactors('lm_head', halves(1, 192), halves(2048, 1))
    await saveAdapter(adapter, folder)
    const merge = (out: string, ...options: string[]) =>
      lowrankHere(
        'merge',
        '--base',
        MODEL,
        '--adapter',
        folder,
        '--out',
        join(scratch, out),
        '--json',
        ...CHECKPOINT,
        ...options,
      )
    for (const [choice, tensors, isTied] of [
      ['untie', 57, false],
      ['keep', 56, true],
    ] as const) {
      expect(JSON.parse((await merge(choice, '--tied', choice)).stdout)).toMatchObject({ tensors, changed: 1 })
      const config = JSON.parse(readFileSync(join(scratch, choice, 'config.json'), 'utf8'))
      expect(config.tie_word_embeddings).toBe(isTied)
    }
  })

  it('--out-dtype converts, and config.json says so', async () => {
    const out = join(scratch, 'converted')
    expect(
      (
        await lowrankHere(
          'merge',
          '--base',
          MODEL,
          '--adapter',
          PEFT,
          '--out',
          out,
          '--out-dtype',
          'bf16',
          ...CHECKPOINT,
        )
      ).code,
    ).toBe(0)
    const { tensors } = JSON.parse((await lowrankHere('inspect', out, '--json')).stdout)
    expect(new Set(tensors.map(({ dtype }: { dtype: string }) => dtype))).toEqual(new Set(['bf16']))
    expect(JSON.parse(readFileSync(join(out, 'config.json'), 'utf8')).torch_dtype).toBe('bfloat16')
  })
})

it('needs no memory for a tensor of 256 MB', async () => {
  const [base, folder, out] = [join(scratch, 'tall'), join(scratch, 'tall-adapter'), join(scratch, 'tall-merged')]
  const rows = 131_072
  mkdirSync(base)
  const info = { dtype: 'BF16', shape: [rows, 1024], data_offsets: [0, 2 * rows * 1024] }
  const header = Buffer.from(JSON.stringify({ 'tall.weight': info }))
  const file = join(base, 'model.safetensors')
  writeFileSync(file, Buffer.concat([new Uint8Array(BigUint64Array.of(BigInt(header.length)).buffer), header]))
  truncateSync(file, 8 + header.length + 2 * rows * 1024)
  const adapter = new LoraAdapter({ rank: 1, alpha: 1, targetModules: ['tall'] })
  const ones = (count: number) => new Float32Array(count).fill(1)
  adapter.addFactors('tall', { data: ones(1024), shape: [1, 1024] }, { data: ones(rows), shape: [rows, 1] })
  await saveAdapter(adapter, folder)
  const { stdout } = await lowrank('merge', '--base', base, '--adapter', folder, '--out', out, '--json')
  expect(JSON.parse(stdout)).toMatchObject({ changed: 1 })
  expect(JSON.parse(stdout).peakRssBytes).toBeLessThan(200e6)
})

describe('outputs that take nothing', () => {
  const args = (out: string) => ['merge', '--base', MODEL, '--adapter', PEFT, '--out', out, ...CHECKPOINT]

  it('messages that nobody reads do not stop a merge', async () => {
    const out = join(scratch, 'unread')
    const { child, done } = start(args(out))
    child.stderr!.destroy()
    expect((await done).code).toBe(0)
    expect(existsSync(join(out, 'model.safetensors'))).toBe(true)
  })

  it('nor does a table that nobody reads to its end', async () => {
    const out = join(scratch, 'half-read')
    const { child, done } = start(args(out))
    child.stdout!.destroy()
    expect((await done).code).toBe(0)
    expect(existsSync(join(out, 'model.safetensors'))).toBe(true)
  })

  it.skipIf(!existsSync('/dev/full'))('a document that finds no room is an error', () => {
    const out = join(scratch, 'full')
    const command = [process.execPath, join(root, 'dist', 'app', 'cli', 'main.js'), ...args(out), '--json']
    const { status, stderr } = spawnSync('sh', ['-c', '"$@" > /dev/full', 'sh', ...command], { encoding: 'utf8' })
    expect(stderr).toMatch(/error: stdout: cannot be written: .*no space left/)
    expect(stderr).not.toContain('bug')
    expect(status).toBe(1)
  })
})

it.skipIf(process.platform === 'win32')('few file descriptors are an error that says so, or enough', () => {
  const out = join(scratch, 'few')
  const command = [
    process.execPath,
    join(root, 'dist', 'app', 'cli', 'main.js'),
    'merge',
    '--base',
    MODEL,
    '--adapter',
    PEFT,
  ]
  const args = [...CHECKPOINT, '--max-shard-size', '1MB', '--threads', '4', '--overwrite', '--out', out]
  const outcomes = [52, 60, 72].map((limit) => {
    const script = `ulimit -n ${limit} && exec "$@"`
    const { status, stderr } = spawnSync('sh', ['-c', script, 'sh', ...command, ...args], { encoding: 'utf8' })
    // Below some limit, Node itself cannot load the program.
    if (/node:internal\/modules/.test(stderr) && !stderr.includes('bug')) return 'not started'
    expect(stderr).not.toContain('bug')
    if (status !== 0) expect(stderr).toMatch(/error: .*: too many open files/)
    return status
  })
  // The limit that is enough depends on the machine.
  expect(outcomes.every((outcome) => outcome === 'not started' || outcome === 0 || outcome === 1)).toBe(true)
})

describe('what it says', () => {
  it('what it leaves out, in a dry run too', async () => {
    const base = join(scratch, 'copies')
    cpSync(MODEL, base, { recursive: true })
    writeFileSync(join(base, 'model.gguf'), 'x')
    for (const options of [['--dry-run'], []]) {
      const out = join(scratch, 'without copies')
      const { code, stderr } = await lowrankHere(
        'merge',
        '--base',
        base,
        '--adapter',
        PEFT,
        '--out',
        out,
        ...CHECKPOINT,
        ...options,
      )
      const names = 'README.md, export_onnx.py, model.gguf, onnx/, reference.json, train_base.py'
      expect(stderr).toContain(`Not copied from the base: ${names}\n`)
      expect(code).toBe(0)
    }
  })

  it('one valid document, also where a change has no size', async () => {
    const { base, adapter } = await large(scratch)
    const out = join(scratch, 'from nothing')
    const { stdout, stderr } = await lowrankHere('merge', '--base', base, '--adapter', adapter, '--out', out, '--json')
    const report = JSON.parse(stdout)
    // The base is zero, so a relative change is not defined.
    expect(report.layers[0]).toEqual({ name: 'model.layers.0.q_proj', relativeChange: null })
    expect(report.bytes).toBeGreaterThan(2 * d * k * LAYERS)
    expect(report).toMatchObject({ version: 1, seconds: expect.any(Number), peakRssBytes: expect.any(Number) })
    expect(stderr).toMatch(/134\/134 MB {2}[\d.]+ [kMG]B\/s/)
  })

  it('a dry run plans what the merge then writes', async () => {
    const out = join(scratch, 'planned')
    const args = [
      'merge',
      '--base',
      MODEL,
      '--adapter',
      PEFT,
      '--out',
      out,
      ...CHECKPOINT,
      '--max-shard-size',
      '2MB',
      '--json',
    ]
    const plan = JSON.parse((await lowrankHere(...args, '--dry-run')).stdout)
    const report = JSON.parse((await lowrankHere(...args)).stdout)
    for (const key of ['out', 'tensors', 'changed', 'leftOut']) expect(report[key]).toEqual(plan[key])
    const names = (layers: { name: string }[]) => layers.map(({ name }) => name)
    expect(names(report.layers)).toEqual(names(plan.layers))
    const written = Object.fromEntries(readdirSync(out).map((name) => [name, readFileSync(join(out, name)).length]))
    for (const { name, byteLength } of plan.files) expect(written[name]).toBe(byteLength)
    // A relative change is the norm of the adapter's delta divided by the norm of the base.
    const base = readWeights(join(MODEL, 'model.safetensors'))
    for (const layer of (await loadAdapter(PEFT)).parts('linear')) {
      const { name } = layer
      const norm = Math.hypot(...base.get(`${name}.weight`)!)
      const { relativeChange } = report.layers.find((line: { name: string }) => line.name === name)
      expect(relativeChange / (layer.normDelta() / norm)).toBeCloseTo(1, 5)
    }
    expect(report.seconds).toBeGreaterThan(0)
    expect(report.peakRssBytes).toBeGreaterThan(2 ** 24)
    const { 'lowrank-merge.json': _, ...files } = written
    expect(report.bytes).toBe(Object.values(files).reduce((sum, bytes) => sum + bytes, 0))
    const others = [...plan.copied, 'lowrank-merge.json', 'model.safetensors.index.json']
    expect(Object.keys(written).sort()).toEqual([...names(plan.files), ...others].sort())
  })
})
