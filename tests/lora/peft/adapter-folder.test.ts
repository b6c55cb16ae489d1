// Folders that PEFT wrote (tests/golden/peft) are loaded as PEFT loads them, and saved again.

import { describe, expect, test } from 'vitest'
import {
  LoraAdapter,
  type LoraConfigInput,
  LowrankError,
  loadAdapter,
  MemoryDirectory,
  MismatchError,
  NumericError,
  StateError,
  saveAdapter,
  UnsupportedError,
} from '../../../src/api/node.js'
import { inspectAdapter } from '../../../src/lora/peft/inspect.js'
import { type ExpectedLayer, expectLayers, expectSavedAlike, goldenCases, goldenPath } from '../../golden.js'
import { adapterFolder, CONFIG, failure, PAIR, tensor } from '../adapter-folder.js'
import { random } from '../matrices.js'

const cases = goldenCases<{ refuse?: string; layers: ExpectedLayer[] }>('peft')
const loading = cases.filter(({ expected }) => expected.refuse === undefined)
const refused = cases.filter(({ expected }) => expected.refuse !== undefined)

test('there are cases of both kinds', () => {
  expect(loading.length).toBeGreaterThanOrEqual(10)
  expect(refused.length).toBeGreaterThanOrEqual(3)
})

describe.each(loading)('$name', ({ folder, expected }) => {
  test('loads as PEFT loads it', async () => {
    const report = await inspectAdapter(await loadAdapter(folder))
    expectLayers(
      report.layers,
      expected.layers.map((layer) => ({ ...layer, kind: 'linear' })),
    )
    expect(report.trainableParams).toBe(expected.layers.reduce((sum, { d, k, rank }) => sum + rank * (d + k), 0))
  })

  test('is written again byte for byte, but for how a config spells its numbers', async () => {
    await expectSavedAlike(folder)
  })
})

test.each([
  ['f32', 'fp32'],
  ['f16', 'fp16'],
  ['bf16', 'bf16'],
])('%s: factors are f32, and the file’s dtype is remembered', async (name, dtype) => {
  const adapter = await loadAdapter(goldenPath('peft', name))
  for (const layer of adapter.parts('linear')) {
    expect(layer.dtype).toBe(dtype)
    expect(layer.weightA.data).toBeInstanceOf(Float32Array)
    expect(layer.isTraining).toBe(false)
  }
})

test.each(refused)('$name is refused, naming $expected.refuse', async ({ folder, expected }) => {
  const error = await loadAdapter(folder).then(
    () => undefined,
    (reason) => reason,
  )
  expect(error).toBeInstanceOf(UnsupportedError)
  expect(error.message).toContain(expected.refuse)
  expect(error.message).toContain(folder)
})

describe('saving', () => {
  function make(config: LoraConfigInput, names: string[]): LoraAdapter {
    const adapter = new LoraAdapter({ rank: 2, ...config })
    for (const [i, name] of names.entries())
      adapter.addLayerOfShape(name, [4, 6]).weightB = random(4, adapter.layer(name).rank, i)
    return adapter
  }

  async function saved(adapter: LoraAdapter, options = {}) {
    const directory = new MemoryDirectory()
    await saveAdapter(adapter, directory, options)
    const text = new TextDecoder().decode(directory.files.get('adapter_config.json'))
    return { directory, text, config: JSON.parse(text), loaded: await loadAdapter(directory) }
  }

  const names = ['model.layers.0.q_proj', 'model.layers.0.k_proj', 'model.layers.10.q_proj', 'model.layers.2.q_proj']

  test('the config as PEFT writes it: indent 2, sorted keys', async () => {
    const { text, config } = await saved(
      make({ alpha: 16, dropout: 0.1, taskType: 'CAUSAL_LM', baseModel: 'union' }, names),
    )
    expect(text).toBe(
      JSON.stringify(Object.fromEntries(Object.entries(config).sort(([a], [b]) => (a < b ? -1 : 1))), null, 2),
    )
    expect(config).toMatchObject({
      peft_type: 'LORA',
      task_type: 'CAUSAL_LM',
      base_model_name_or_path: 'union',
      inference_mode: true,
      init_lora_weights: true,
      r: 2,
      lora_alpha: 16,
      lora_dropout: 0.1,
      bias: 'none',
      modules_to_save: null,
      use_dora: false,
    })
  })

  test('loads again with the same values, layers in natural order', async () => {
    const adapter = make(
      { alpha: 3, useRslora: true, init: 'gaussian', rankPattern: { k_proj: 3 }, alphaPattern: { k_proj: 5 } },
      names,
    )
    const { loaded } = await saved(adapter)
    expect(loaded.names()).toEqual([names[1], names[0], names[3], names[2]])
    for (const layer of adapter.parts('linear')) {
      const { name } = layer
      expect(loaded.layer(name).weightA).toEqual(layer.weightA)
      expect(loaded.layer(name).weightB).toEqual(layer.weightB)
      expect(loaded.layer(name).scaling).toBe(layer.scaling)
    }
    expect(loaded.config).toMatchObject({ rank: 2, alpha: 3, useRslora: true, init: 'gaussian' })
  })

  test.each<[LoraConfigInput, unknown]>([
    [{ targetModules: ['q_proj', 'k_proj'] }, ['q_proj', 'k_proj']],
    [{ targetModules: '.*\\.[qk]_proj' }, '.*\\.[qk]_proj'],
    [{ targetModules: 'all-linear' }, ['k_proj', 'q_proj']],
    [{ targetModules: [] }, names],
    [{ targetModules: ['q_proj'] }, names],
  ])('%j: target_modules name every layer', async (config, expected) => {
    expect((await saved(make(config, names))).config.target_modules).toEqual(expected)
  })

  test('a layer that the config excludes cannot be saved', async () => {
    await expect(saved(make({ targetModules: ['q_proj'], excludeModules: ['k_proj'] }, names))).rejects.toThrow(
      MismatchError,
    )
  })

  test('patterns stay unsorted where sorting would change a layer', async () => {
    const order = (config: Record<string, object>) => Object.keys(config.rank_pattern)
    const meaningful = { q_proj: 2, 'layers.0.q_proj': 3 }
    expect(order((await saved(make({ rankPattern: meaningful }, names))).config)).toEqual(['q_proj', 'layers.0.q_proj'])
    const free = { q_proj: 2, k_proj: 3 }
    expect(order((await saved(make({ rankPattern: free }, names))).config)).toEqual(['k_proj', 'q_proj'])
  })

  test('narrower types round once, to nearest even', async () => {
    for (const dtype of ['fp16', 'bf16'] as const) {
      const adapter = make({}, ['q'])
      const { loaded, directory } = await saved(adapter, { dtype })
      const step = dtype === 'fp16' ? 2 ** -11 : 2 ** -8
      loaded.layer('q').weightB.data.forEach((value, i) => {
        expect(Math.abs(value / adapter.layer('q').weightB.data[i] - 1)).toBeLessThanOrEqual(step)
      })
      expect(loaded.layer('q').dtype).toBe(dtype)
      const again = new MemoryDirectory()
      await saveAdapter(loaded, again)
      expect(again.files).toEqual(directory.files)
    }
  })

  test('what is not finite, or not in the type asked for, is refused and nothing is left', async () => {
    const directory = new MemoryDirectory()
    const adapter = make({}, ['model.q'])
    adapter.layer('model.q').weightA.data[3] = 70000
    await expect(saveAdapter(adapter, directory, { dtype: 'fp16' })).rejects.toThrow(
      'base_model.model.model.q.lora_A.weight: a value that is not finite in fp16; nothing was saved; got 70000. Save as bf16 or fp32',
    )
    adapter.layer('model.q').weightA.data[3] = Number.NaN
    await expect(saveAdapter(adapter, directory)).rejects.toThrow(NumericError)
    await expect(saveAdapter(new LoraAdapter(), directory)).rejects.toThrow(StateError)
    await expect(saveAdapter(adapter, directory, { dtype: 'F8' as never })).rejects.toThrow(/^dtype: /)
    expect(directory.files.size).toBe(0)
  })

  test('a file that fails leaves neither of the two, and the old ones whole', async () => {
    const directory = new MemoryDirectory()
    await saveAdapter(make({}, ['q']), directory)
    const before = new Map(directory.files)
    const create = directory.create.bind(directory)
    directory.create = async (file) => {
      const sink = await create(file)
      if (file.endsWith('.json')) {
        sink.write = async () => {
          throw new Error('disk full')
        }
      }
      return sink
    }
    await expect(saveAdapter(make({ alpha: 99 }, ['q', 'k']), directory)).rejects.toThrow('disk full')
    expect(directory.files).toEqual(before)
  })

  test('merged layers are saved as what they are: their factors', async () => {
    const adapter = make({}, ['q'])
    const { directory } = await saved(adapter)
    adapter
      .layer('q')
      .attachBase(random(4, 6, 1, 'f32'))
      .merge()
    expect((await saved(adapter)).directory.files).toEqual(directory.files)
  })
})

test('every refusal is one of our errors', async () => {
  for (const { folder } of refused) {
    await expect(loadAdapter(folder)).rejects.toThrow(LowrankError)
  }
})

describe('VeLoRA’s buffer', () => {
  const BUFFER = 'base_model.model.q_proj.lora_velora_embed'
  const tensors = [...PAIR, tensor(BUFFER, [1, 8])]

  test('is left out, because only training reads it', async () => {
    const config = { ...CONFIG, velora_config: { num_groups: 8 } }
    const adapter = await loadAdapter(await adapterFolder(config, tensors))
    const plain = await loadAdapter(await adapterFolder(CONFIG))
    expect(adapter.names()).toEqual(plain.names())
    expect(adapter.size).toBe(1)
    const files = new MemoryDirectory()
    await saveAdapter(adapter, files)
    const weights = new TextDecoder('latin1').decode(files.files.get('adapter_model.safetensors'))
    expect(weights).not.toContain('velora')
  })

  test('is an unknown tensor without the setting', async () => {
    expect((await failure(await adapterFolder(CONFIG, tensors))).message).toContain('lora_velora_embed')
  })
})
