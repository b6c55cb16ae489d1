// Configs of old PEFT versions, incomplete configs, and patterns whose order JavaScript objects would change.

import { describe, expect, test } from 'vitest'
import {
  ConfigError,
  LoraAdapter,
  loadAdapter,
  MemoryDirectory,
  saveAdapter,
  UnsupportedError,
} from '../../../src/api/node.js'
import type { TensorBytes } from '../../../src/files/safetensors.js'
import { resolveConfig } from '../../../src/lora/config.js'
import { parsePeftConfig } from '../../../src/lora/peft/config.js'
import { adapterFolder, tensor } from '../adapter-folder.js'

/** The config of tloen/alpaca-lora-7b, written by PEFT 0.2. */
const ALPACA = {
  base_model_name_or_path: 'decapoda-research/llama-7b-hf',
  bias: 'none',
  enable_lora: null,
  fan_in_fan_out: false,
  inference_mode: true,
  lora_alpha: 16,
  lora_dropout: 0.05,
  merge_weights: false,
  modules_to_save: null,
  peft_type: 'LORA',
  r: 16,
  target_modules: ['q_proj', 'k_proj', 'v_proj', 'o_proj'],
  task_type: 'CAUSAL_LM',
}

const parse = (config: unknown) => {
  const text = typeof config === 'string' ? config : JSON.stringify(config)
  const { config: parsed, problems } = parsePeftConfig(new TextEncoder().encode(text), 'adapter_config.json')
  for (const problem of problems) throw problem
  return parsed
}

function pair(module: string, rank: number): TensorBytes[] {
  const prefix = `base_model.model.${module}`
  return [tensor(`${prefix}.lora_A.weight`, [rank, 3]), tensor(`${prefix}.lora_B.weight`, [4, rank])]
}

describe('configs of PEFT before 0.3', () => {
  test('load, and their retired fields are not written again', async () => {
    const directory = await adapterFolder(ALPACA, pair('model.layers.0.self_attn.q_proj', 16))
    const adapter = await loadAdapter(directory)
    expect(adapter.layer('model.layers.0.self_attn.q_proj').scaling).toBe(1)
    await saveAdapter(adapter, directory, { overwrite: true })
    const saved = JSON.parse(new TextDecoder().decode(directory.files.get('adapter_config.json')))
    expect(Object.keys(saved)).not.toContain('enable_lora')
    expect(Object.keys(saved)).not.toContain('merge_weights')
    expect(saved).toMatchObject({ r: 16, lora_alpha: 16, target_modules: ALPACA.target_modules })
  })

  test('merge_weights says when to merge, not what', () => {
    expect(parse({ ...ALPACA, merge_weights: true }).rank).toBe(16)
  })

  test.each([[[true, false, true]], [[]], [true]])('enable_lora %j is refused', (value) => {
    expect(() => parse({ ...ALPACA, enable_lora: value })).toThrow(UnsupportedError)
    expect(() => parse({ ...ALPACA, enable_lora: value })).toThrow(/^adapter_config\.json: enable_lora: /)
  })
})

describe('a config without', () => {
  test.each(['r', 'lora_alpha'])('%s says nothing about the scaling', (key) => {
    for (const value of [undefined, null]) {
      expect(() => parse({ ...ALPACA, [key]: value })).toThrow(ConfigError)
      expect(() => parse({ ...ALPACA, [key]: value })).toThrow(`adapter_config.json: ${key}: missing`)
    }
  })

  test('anything else has PEFT’s defaults', () => {
    const config = parse({ peft_type: 'LORA', r: 4, lora_alpha: 2 })
    expect(config).toMatchObject({ dropout: 0, bias: 'none', useRslora: false, targetModules: 'all-linear' })
  })
})

describe('the order of patterns', () => {
  /** The first matching key counts. In an object, JavaScript would move "1" and "0" to the front. */
  const text = (field: string) =>
    JSON.stringify({ peft_type: 'LORA', r: 2, lora_alpha: 4, target_modules: '.*' }).replace(
      '}',
      `,"${field}":{"blocks\\\\.1":3,"1":5,"0":6,"10":7}}`,
    )

  test('is the file’s, also of keys that are numbers', async () => {
    const names = ['blocks.1', 'other.1', 'blocks.0', 'x.10', 'x.2']
    const ranks = [3, 5, 6, 7, 2]
    const directory = await adapterFolder(
      text('rank_pattern'),
      names.flatMap((name, i) => pair(name, ranks[i])),
    )
    const adapter = await loadAdapter(directory)
    expect(names.map((name) => adapter.layer(name).rank)).toEqual(ranks)
    expect(Object.keys(adapter.config.rankPattern)).toEqual(['blocks\\.1', '(?:1)', '(?:0)', '(?:10)'])

    const saved = new MemoryDirectory()
    await saveAdapter(adapter, saved, { overwrite: true })
    const again = await loadAdapter(saved)
    expect(names.map((name) => again.layer(name).rank)).toEqual(ranks)
  })

  test('of alphas too', async () => {
    const names = ['blocks.1', 'other.1', 'blocks.0', 'x.2']
    const adapter = await loadAdapter(
      await adapterFolder(
        text('alpha_pattern'),
        names.flatMap((name) => pair(name, 2)),
      ),
    )
    expect(names.map((name) => adapter.layer(name).scaling)).toEqual([1.5, 2.5, 3, 2])
  })

  test('is a Map’s, for callers', () => {
    const rankPattern = new Map([
      ['blocks\\.1', 3],
      ['1', 5],
    ])
    const adapter = new LoraAdapter({ rank: 2, rankPattern })
    expect(adapter.addLayerOfShape('blocks.1', [8, 8]).rank).toBe(3)
    expect(adapter.addLayerOfShape('other.1', [8, 8]).rank).toBe(5)
    expect(JSON.stringify(adapter.config.rankPattern)).toBe('{"blocks\\\\.1":3,"(?:1)":5}')
    expect(resolveConfig(adapter.config)).toBe(adapter.config)
  })

  test('a Map’s values are checked as an object’s', () => {
    expect(() => resolveConfig({ rankPattern: new Map([['q', 0]]) })).toThrow(ConfigError)
    expect(() => parse({ ...ALPACA, rank_pattern: { 1: 0 } })).toThrow(/^adapter_config\.json: rank_pattern: not valid/)
    expect(() => parse({ ...ALPACA, rank_pattern: { 1: 0 } })).toThrow(/got \{"\(\?:1\)":0\}|got \{"1":0\}/)
  })

  test('a key and its other spelling: the first counts', () => {
    expect(parse(text('rank_pattern').replace('"0":6', '"(?:1)":6')).rankPattern).toEqual({
      'blocks\\.1': 3,
      '(?:1)': 5,
      '(?:10)': 7,
    })
  })
})

test('names from JavaScript’s prototypes are patterns and modules like any other', async () => {
  const config = `{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["__proto__","constructor"],"rank_pattern":{"__proto__":3,"constructor":5}}`
  const directory = await adapterFolder(config, [...pair('a.__proto__', 3), ...pair('constructor', 5)])
  const adapter = await loadAdapter(directory)
  expect(adapter.layer('a.__proto__').rank).toBe(3)
  expect(adapter.layer('constructor').rank).toBe(5)
  const saved = new MemoryDirectory()
  await saveAdapter(adapter, saved, { overwrite: true })
  expect((await loadAdapter(saved)).names()).toEqual(adapter.names())
  expect(({} as Record<string, unknown>).rank).toBeUndefined()
})
