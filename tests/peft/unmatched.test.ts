// Warnings of inspect about entries of a config that match nothing in the adapter.

import { readdirSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import { LoraAdapter } from '../../src/lora/adapter.js'
import { type LoraConfigInput, resolveConfig } from '../../src/lora/config.js'
import { loadAdapter, saveAdapter } from '../../src/peft/adapter-folder.js'
import { inspectAdapter } from '../../src/peft/inspect.js'
import { type NamedPart, unmatchedEntries } from '../../src/peft/unmatched.js'

const PARTS: NamedPart[] = [
  { name: 'model.layers.0.self_attn.q_proj', module: 'model.layers.0.self_attn.q_proj', kind: 'linear' },
  { name: 'model.layers.1.self_attn.v_proj', module: 'model.layers.1.self_attn.v_proj', kind: 'linear' },
  { name: 'model.embed_tokens', module: 'model.embed_tokens', kind: 'embedding' },
  { name: 'model.layers.0.mlp.experts.down_proj', module: 'model.layers.0.mlp.experts', kind: 'parameter' },
  { name: 'model.norm.weight', module: 'model.norm', kind: 'replacement' },
  { name: 'model.wte[tokens]', module: 'model.wte', kind: 'token-rows' },
]

test.each<[string, LoraConfigInput, [setting: string, entry: string][]]>([
  ['all match', { targetModules: ['q_proj', 'v_proj', 'embed_tokens'] }, []],
  ['all linear', { targetModules: 'all-linear' }, []],
  ['a target', { targetModules: ['q_proj', 'v_prj'] }, [['targetModules', 'v_prj']]],
  ['a target with its module', { targetModules: ['self_atn.q_proj'] }, [['targetModules', 'self_atn.q_proj']]],
  ['a parameter is no module', { targetModules: ['down_proj'] }, [['targetModules', 'down_proj']]],
  ['an expression that matches', { targetModules: '.*\\.q_proj' }, []],
  ['layers', { targetModules: ['q_proj', 'v_proj'], layersToTransform: [0, 1, 7] }, [['layersToTransform', '7']]],
  ['a layer', { targetModules: ['q_proj'], layersToTransform: 3 }, [['layersToTransform', '3']]],
  [
    'patterns',
    { rankPattern: { q_proj: 3, 'k.*': 2 }, alphaPattern: { down_proj: 2, up_proj: 1 } },
    [
      ['rankPattern', 'k.*'],
      ['alphaPattern', 'up_proj'],
    ],
  ],
  ['modules to save', { modulesToSave: ['norm', 'lm_head'] }, [['modulesToSave', 'lm_head']]],
  [
    'parameters',
    { targetParameters: ['experts.down_proj', 'experts.up_proj'] },
    [['targetParameters', 'experts.up_proj']],
  ],
  ['tokens', { trainableTokenIndices: { wte: [1], lm_head: [1] } }, [['trainableTokenIndices', 'lm_head']]],
  ['tokens of tied embeddings', { ensureWeightTying: true, trainableTokenIndices: { wte: [1], lm_head: [1] } }, []],
  ['tokens without names', { trainableTokenIndices: [1] }, []],
])('%s', (_, input, expected) => {
  const config = resolveConfig({ targetModules: ['q_proj', 'v_proj', 'embed_tokens'], ...input })
  const found = unmatchedEntries(config, PARTS).filter(
    ({ setting }) => setting !== 'targetModules' || input.targetModules,
  )
  expect(found.map(({ setting, entry }) => [setting, entry])).toEqual(expected)
})

test('an expression without a single layer', () => {
  const config = resolveConfig({ targetModules: '.*\\.k_proj', targetParameters: ['down_proj'] })
  const found = unmatchedEntries(config, [{ name: 'experts.down_proj', module: 'experts', kind: 'parameter' }])
  expect(found).toMatchObject([{ setting: 'targetModules', entry: '.*\\.k_proj' }])
})

test('inspect warns, and loading passes over it, as PEFT does', async () => {
  const matrix = (rows: number, columns: number) =>
    Array.from({ length: rows }, () => Array.from({ length: columns }, () => 0.5))
  const adapter = new LoraAdapter({
    rank: 2,
    targetModules: ['q_proj', 'v_prj'],
    rankPattern: { k_proj: 3 },
    alphaPattern: { q_proj: 3 },
  })
  adapter.addFactors('layers.0.q_proj', matrix(2, 3), matrix(4, 2))
  const folder = new MemoryDirectory({}, 'adapter')
  await saveAdapter(adapter, folder)
  expect((await loadAdapter(folder)).size).toBe(1)
  for (const report of [await inspectAdapter(adapter), await inspectAdapter(folder)]) {
    expect(report.warnings).toContain('rankPattern k_proj matches no layer')
    expect(report.warnings).toContain('targetModules has v_prj, for which there is no layer')
    expect(report.problems).toEqual([])
  }
})

const golden = fileURLToPath(new URL('../golden', import.meta.url))
const folders = ['kinds', 'experts', 'config', 'peft'].flatMap((group) =>
  readdirSync(path.join(golden, group), { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() && !entry.name.endsWith('-base') ? [`${group}/${entry.name}`] : [],
  ),
)

test.each(folders)('what PEFT wrote for %s matches, but for patterns, of which PEFT warns too', async (name) => {
  const report = await inspectAdapter(new NodeDirectory(path.join(golden, name))).catch(() => undefined)
  const unmatched =
    report?.warnings.filter((warning) =>
      /^(?!rankPattern|alphaPattern).*( matches no|there is no layer)/.test(warning),
    ) ?? []
  expect(unmatched).toEqual([])
})
