// `lowrank inspect` of adapters that cannot be loaded, against bases, and of checkpoints in shards.

import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { encodeFloats } from '../../../src/core/base/dtype.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { saveSafetensors } from '../../../src/files/safetensors.js'
import { lowrankHere } from './in-process.js'
import { ONNX, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const golden = join(root, 'tests', 'golden')
const DORA = join(golden, 'kinds', 'dora')
const QWEN2 = join(golden, 'kinds', 'qwen2.safetensors')

describe('an adapter that cannot be loaded', () => {
  const broken = join(scratch, 'broken')

  beforeAll(async () => {
    const tensor = (name: string, shape: number[], values: number[]) => {
      const data = encodeFloats(Float32Array.from(values), 'fp32')
      return { name: `base_model.model.${name}`, dtype: 'fp32' as const, shape, data }
    }
    await saveSafetensors(new NodeDirectory(broken), 'adapter_model.safetensors', [
      tensor('q.lora_A.weight', [1, 2], [1, Number.NaN]),
      tensor('q.lora_B.weight', [2, 1], [1, 1]),
      tensor('k.lora_B.weight', [2, 1], [1, 1]),
      tensor('v.lora_A.weight', [1, 2], [3, 4]),
      tensor('v.lora_B.weight', [2, 1], [0, 2]),
    ])
    const config = { peft_type: 'LORA', r: 1, lora_alpha: 1, target_modules: ['q', 'v'], use_dora: true }
    writeFileSync(join(broken, 'adapter_config.json'), JSON.stringify(config))
  })

  it('is shown with all that is wrong, and ends with 1', async () => {
    const { code, stdout, stderr } = await lowrankHere('inspect', broken)
    expect(code).toBe(1)
    expect(stdout).toMatch(/^v .* 10 +1\.0$/m)
    expect(stderr.match(/^problem: /gm)).toHaveLength(4)
    expect(stderr).toMatch(/problem: .*q\.lora_A\.weight: holds a value that is not finite/)
    expect(stderr).toMatch(/problem: .*k\.lora_B\.weight: half a pair/)
    expect(stderr).toMatch(/problem: .*v\.lora_A\.weight: use_dora .* no .*lora_magnitude_vector/)
  })

  it('has null in the document where there is no number', async () => {
    const { code, stdout } = await lowrankHere('inspect', broken, '--json')
    const report = JSON.parse(stdout)
    expect([code, Object.keys(report)[0], report.version]).toEqual([1, 'version', 1])
    expect(report.problems).toHaveLength(4)
    expect(report.problems[0]).toEqual({ code: expect.any(String), message: expect.any(String) })
    expect(report.layers[0]).toMatchObject({ name: 'q', normA: null, normDelta: null, singularValues: [] })
    expect(report.layers[0]).toMatchObject({ effectiveRank: null, rank99: null })
    expect(report.layers[1]).toMatchObject({ name: 'v', normDelta: 10, singularValues: [10], rank99: 1 })
  })
})

describe('--base', () => {
  it('fits: 0', async () => {
    const { code, stdout } = await lowrankHere('inspect', DORA, '--base', QWEN2, '--json')
    expect(code).toBe(0)
    const { fit } = JSON.parse(stdout)
    expect(fit).toMatchObject({ kind: 'checkpoint', fits: true, base: QWEN2, vocabulary: 32, isTied: false, notes: [] })
    expect(fit.parts[0]).toMatchObject({ dtype: 'fp32', shape: [12, 20], problem: null })
    expect((await lowrankHere('inspect', DORA, '--base', QWEN2)).stdout).toMatch(
      /Fit to .*: 6 of 6 parts fit, weights in fp32/,
    )
  })

  it('does not fit: 1, with a line for each part', async () => {
    const { code, stdout, stderr } = await lowrankHere('inspect', DORA, '--base', ONNX)
    expect(code).toBe(1)
    expect(stdout).toMatch(/0 of 6 parts fit/)
    expect(stderr.match(/^problem: /gm)).toHaveLength(6)
  })

  it('is refused of a model', async () => {
    const { code, stdout, stderr } = await lowrankHere('inspect', QWEN2, '--base', QWEN2)
    expect([code > 0, stdout]).toEqual([true, ''])
    expect(stderr).toMatch(/--base: only an adapter can be/)
  })
})

it('lists a checkpoint in shards, by folder and by index', async () => {
  const [folder, out] = [join(scratch, 'base'), join(scratch, 'shards')]
  cpSync(join(golden, 'merge', 'llama', 'base'), folder, { recursive: true })
  const adapter = join(golden, 'merge', 'llama', 'adapter')
  const merged = await lowrankHere(
    'merge',
    '--base',
    folder,
    '--adapter',
    adapter,
    '--max-shard-size',
    '8KB',
    '--out',
    out,
  )
  expect(merged.code, merged.stderr).toBe(0)
  const whole = JSON.parse((await lowrankHere('inspect', folder, '--json')).stdout)
  const index = JSON.parse(readFileSync(join(out, 'model.safetensors.index.json'), 'utf8'))
  for (const target of [out, join(out, 'model.safetensors.index.json')]) {
    const { code, stdout } = await lowrankHere('inspect', target, '--json')
    const report = JSON.parse(stdout)
    expect([code, report.kind, report.params]).toEqual([0, 'checkpoint', whole.params])
    expect(report.files.length).toBeGreaterThan(1)
    expect(report.files).toEqual([...new Set(Object.values(index.weight_map))].sort())
    expect(report.tensors.map(({ name }: { name: string }) => name).sort()).toEqual(
      Object.keys(index.weight_map).sort(),
    )
  }
  expect((await lowrankHere('inspect', out)).stdout).toMatch(/parameters, \d+ files/)
})
