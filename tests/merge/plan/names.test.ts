// Adapters and bases whose names transformers 5 changes between its modules and its checkpoints, against what PEFT
// merges and transformers saves (tests/golden/names, scripts/golden/names.py).

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { MemoryDirectory, saveAdapter } from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import type { TensorBytes } from '../../../src/files/safetensors.js'
import { fitOf } from '../../../src/merge/fit.js'
import { TABLES } from '../../../src/merge/plan/names/gen/tables.js'
import { deviation, goldenNames, goldenPath, tensorsIn } from '../../golden.js'
import {
  adapter as adapterFor,
  base as baseWith,
  mergeCheckpoint,
  safetensors,
  type TensorSketch,
  unmergeCheckpoint,
} from '../toolkit.js'
import { baseOf, sketchOf } from './formula-base.js'

const NAMES = goldenNames('names')

describe.each(NAMES)('%s', (name) => {
  const adapter = new NodeDirectory(goldenPath('names', name, 'adapter'))

  test('merges as PEFT does, into the names of the checkpoint', async () => {
    const base = await baseOf(sketchOf('names', name))
    const merged = await tensorsIn(new NodeDirectory(goldenPath('names', name)), 'merged.safetensors')
    const out = new MemoryDirectory()
    const report = await mergeCheckpoint(base, adapter, out)
    const [before, after] = [await tensorsIn(base), await tensorsIn(out)]
    expect([...after.keys()]).toEqual([...before.keys()])
    const changed = [...after].filter(([key, { data }]) => deviation(data, before.get(key)!.data) > 0)
    expect(changed.map(([key]) => key).sort()).toEqual([...merged.keys()].sort())
    for (const [key, { data }] of merged) expect(deviation(after.get(key)!.data, data), key).toBeLessThan(1e-6)
    expect(report.changed).toBe(merged.size)
  })

  test('fits, by inspect', async () => {
    const report = await fitOf({ directory: await baseOf(sketchOf('names', name)) }, adapter)
    expect(report.problems).toEqual([])
    expect(report.parts.filter(({ problem }) => problem !== null)).toEqual([])
    expect(report.fits).toBe(true)
  })
})

test('is taken out again under the same names', async () => {
  const base = await baseOf(sketchOf('names', 'mixtral'))
  const adapter = new NodeDirectory(goldenPath('names', 'mixtral', 'adapter'))
  const [merged, back] = [new MemoryDirectory(), new MemoryDirectory()]
  await mergeCheckpoint(base, adapter, merged)
  await unmergeCheckpoint(merged, adapter, back)
  const [before, after] = [await tensorsIn(base), await tensorsIn(back)]
  for (const [key, { data }] of before) expect(deviation(after.get(key)!.data, data), key).toBeLessThan(1e-6)
})

test('the names of the base itself stay what they were', async () => {
  const base = sketchOf('names', 'vit')
  const rename = (name: string) =>
    name
      .replace('vit.layers.', 'vit.encoder.layer.')
      .replace('attention.q_proj', 'attention.attention.query')
      .replace('mlp.fc1', 'intermediate.dense')
  const folder = goldenPath('names', 'vit', 'adapter')
  const directory = new NodeDirectory(folder)
  const tensors = await tensorsIn(directory, 'adapter_model.safetensors')
  const list = [...tensors].map(([name, { data, shape }]): TensorBytes => {
    return { name: rename(name), dtype: 'fp32', shape, data: new Uint8Array(Float32Array.from(data).buffer) }
  })
  const config = JSON.parse(readFileSync(path.join(folder, 'adapter_config.json'), 'utf8'))
  const old = new MemoryDirectory({
    'adapter_config.json': JSON.stringify({ ...config, target_modules: ['query', 'intermediate.dense'] }),
    'adapter_model.safetensors': await safetensors(list),
  })
  const [one, other] = [new MemoryDirectory(), new MemoryDirectory()]
  await mergeCheckpoint(await baseOf(base), directory, one)
  await mergeCheckpoint(await baseOf(base), old, other)
  expect(other.files.get('model.safetensors')).toEqual(one.files.get('model.safetensors'))
})

describe('forms that are not implemented are refused by name, and inspect says so', () => {
  const layer = 'model.vision_tower.transformer.layers.0.attention'
  const stored = 'vision_encoder.transformer.layers.0.attention'
  const rows = (names: readonly string[], count = 8): TensorSketch[] =>
    names.map((name) => [`${stored}.${name}.weight`, 'fp32', [count, 8]])

  test('rows that are permuted for the rotary positions', async () => {
    const base = await baseWith(rows(['wq', 'wk', 'wv', 'wo']), { config: { model_type: 'mistral_large4' } })
    const plain = adapterFor({ [`${layer}.v_proj`]: [8, 8] })
    expect((await mergeCheckpoint(base, plain, new MemoryDirectory())).changed).toBe(1)
    const permuted = adapterFor({ [`${layer}.v_proj`]: [8, 8], [`${layer}.q_proj`]: [8, 8] })
    const refused = `${layer}.q_proj.weight: transformers stores this tensor in a form that is not implemented`
    await expect(mergeCheckpoint(base, permuted, new MemoryDirectory())).rejects.toThrow(refused)
    const folder = new MemoryDirectory()
    await saveAdapter(permuted, folder)
    const { fits, parts } = await fitOf({ directory: base }, folder)
    expect(fits).toBe(false)
    const problems = parts.map(({ problem }) => problem).filter((problem) => problem !== null)
    expect(problems).toEqual([expect.stringContaining('a form that is not implemented')])
  })

  test('parts that do not have as many rows as the adapter', async () => {
    const part = (name: string, count: number): TensorSketch => [
      `language_model.model.layers.0.block_sparse_moe.shared_experts.${name}.weight`,
      'fp32',
      [count, 8],
    ]
    const base = (count: number) =>
      baseWith([part('gate_proj', 8), part('up_proj', count)], { config: { model_type: 'minimax_m3_vl' } })
    const joined = adapterFor({ 'model.language_model.layers.0.mlp.shared_experts.gate_up_proj': [16, 8] })
    expect((await mergeCheckpoint(await base(8), joined, new MemoryDirectory())).changed).toBe(2)
    await expect(mergeCheckpoint(await base(7), joined, new MemoryDirectory())).rejects.toThrow(
      /gate_proj.weight: the adapter has another shape.*expected 16 rows in .*gate_proj.weight and .*up_proj.weight, got 15/,
    )
  })
})

test('the tables have the types of models with experts, also those whose configs need more than sizes', () => {
  const types = TABLES.types.split(' ').map((type) => type.split(':')[0])
  const wanted = ['granitemoehybrid', 'dbrx', 'gemma3n', 'gemma3n_text', 'qwen3_omni_moe', 'ernie4_5_vl_moe', 'molmo2']
  expect(wanted.filter((type) => !types.includes(type))).toEqual([])
  const set = Number.parseInt((TABLES.names as Record<string, string>).granitemoehybrid, 10)
  // Both are front-coded, `experts.gate_up_proj` beside `experts.down_proj`.
  expect(TABLES.rules[set]).toMatch(
    /block_sparse_moe\.output_linear\.weight\n.*gate_up_proj>.*input_linear\.weight\n.*router>.*router\.layer$/,
  )
})
