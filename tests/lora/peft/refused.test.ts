// Adapter folders that must not load: a test for each mistake, and a fuzzer.

import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  ConfigError,
  FileError,
  FormatError,
  LowrankError,
  loadAdapter,
  MemoryDirectory,
  MismatchError,
  NumericError,
  ShapeError,
  UnsupportedError,
} from '../../../src/api/node.js'
import type { TensorBytes } from '../../../src/files/safetensors.js'
import { runs } from '../../thorough.js'
import { A, adapterFolder, B, CONFIG, failure, PAIR, tensor } from '../adapter-folder.js'

test('the folder that all cases start from loads', async () => {
  const adapter = await loadAdapter(await adapterFolder())
  expect(adapter.names()).toEqual(['q_proj'])
  expect(adapter.layer('q_proj').scaling).toBe(2)
})

describe('settings that change what the weights mean', () => {
  test.each<[string, unknown]>([
    ['peft_type', 'ADALORA'],
    ['peft_type', null],
    ['alora_invocation_tokens', [5, 7]],
    ['arrow_config', { top_k: 3 }],
    ['arrow_config', {}],
    ['use_bdlora', {}],
    ['kasa_config', {}],
    ['monteclora_config', {}],
    ['use_qalora', true],
    ['init_lora_weights', 'loftq'],
    ['init_lora_weights', 'something new'],
    ['init_lora_weights', 'pissa_niter_'],
  ])('%s: %j', async (key, value) => {
    const error = await failure(await adapterFolder({ ...CONFIG, [key]: value }))
    expect(error).toBeInstanceOf(UnsupportedError)
    expect(error.where).toBe(`adapter/adapter_config.json: ${key}`)
    expect(error.got).toBe(JSON.stringify(value))
  })
})

test.each([1, { on: true }])('a setting that nobody knows is noted, as PEFT passes over it: %j', async (value) => {
  const directory = await adapterFolder({ ...CONFIG, a_field_of_tomorrow: value })
  const { notes, config } = await loadAdapter(directory)
  expect(notes).toEqual([expect.stringMatching(/a_field_of_tomorrow: an unknown setting: PEFT 0\.21 ignores it/)])
  expect(config.peftFields.a_field_of_tomorrow).toEqual(value)
})

test.each<[string, unknown]>([
  ['lora_alpha', 0],
  ['lora_alpha', -4],
  ['alpha_pattern', { q_proj: 0 }],
  ['lora_dropout', 1],
  ['layers_pattern', ''],
  ['trainable_token_indices', {}],
  ['trainable_token_indices', []],
])('%s: %j is taken as PEFT takes it', async (key, value) => {
  const adapter = await loadAdapter(await adapterFolder({ ...CONFIG, [key]: value }))
  const alpha = key === 'lora_alpha' ? (value as number) : key === 'alpha_pattern' ? 0 : CONFIG.lora_alpha
  expect(adapter.layer('q_proj').scaling).toBe(alpha / CONFIG.r)
})

test('settings without effect, or switched off, are carried along as they are', async () => {
  const carried = {
    auto_mapping: { base_model_class: 'X' },
    eva_config: { rho: 2 },
    loftq_config: { loftq_bits: 4 },
    megatron_core: 'megatron.core',
    peft_version: '0.21.2',
    qalora_group_size: 32,
    revision: 'main',
    a_field_of_tomorrow: null,
    another: {},
  }
  const { config } = await loadAdapter(await adapterFolder({ ...CONFIG, bias: 'none', ...carried }))
  expect(config.peftFields).toMatchObject(carried)
})

describe('values out of range', () => {
  test.each<[string, unknown]>([
    ['r', 0],
    ['r', -1],
    ['r', 1.5],
    ['r', '2'],
    ['lora_alpha', '4'],
    ['lora_dropout', 1.5],
    ['lora_dropout', true],
    ['target_modules', 7],
    ['target_modules', '('],
    ['exclude_modules', [1]],
    ['layers_to_transform', ['0']],
    ['layers_pattern', 'h'],
    ['rank_pattern', { q_proj: 0 }],
    ['rank_pattern', [1]],
    ['rank_pattern', { '(': 1 }],
    ['alpha_pattern', { q_proj: null }],
    ['use_rslora', 1],
    ['fan_in_fan_out', 'no'],
    ['task_type', 3],
    ['use_dora', 'yes'],
    ['bias', 'some'],
    ['modules_to_save', ['']],
    ['trainable_token_indices', [1, 1]],
    ['trainable_token_indices', { embed_tokens: [-1] }],
  ])('%s: %j', async (key, value) => {
    const error = await failure(await adapterFolder({ ...CONFIG, [key]: value }))
    expect(error).toBeInstanceOf(ConfigError)
    expect(error.where).toMatch(new RegExp(`^adapter/adapter_config\\.json: ${key}`))
  })
})

describe('tensors', () => {
  test.each<[string, TensorBytes[], new (...args: never[]) => LowrankError, RegExp]>([
    ['none at all', [], FormatError, /without a single tensor/],
    ['A alone', [PAIR[0]], FormatError, /lora_A\.weight: half a pair: no base_model\.model\.q_proj\.lora_B\.weight/],
    ['B alone', [PAIR[1]], FormatError, /lora_B\.weight: half a pair: no .*lora_A\.weight/],
    ['one that no layer claims', [...PAIR, tensor('stray', [1])], FormatError, /no layer claims the tensor stray/],
    [
      'many that no layer claims',
      [...PAIR, ...'abcdefg'.split('').map((name) => tensor(name, [1]))],
      FormatError,
      /claims 7 tensors: a, b, c, d, e, …/,
    ],
    [
      'some of them without the prefix',
      [...PAIR, tensor('k_proj.lora_A.weight', [2, 3]), tensor('k_proj.lora_B.weight', [4, 2])],
      FormatError,
      /no layer claims 2 tensors: k_proj\.lora_A\.weight, k_proj\.lora_B\.weight/,
    ],
    [
      'with the names of two adapters in them',
      ['one', 'two'].map((name) => tensor(A.replace('.weight', `.${name}.weight`), [2, 3])),
      MismatchError,
      /holds several adapters; expected one of one, two/,
    ],
    [
      'with one name in two spellings',
      [...PAIR, tensor(A.replace('.weight', '.default.weight'), [2, 3])],
      FormatError,
      /another tensor is base_model\.model\.q_proj\.lora_A\.weight too/,
    ],
    [
      'a module that target_modules leave out',
      [...PAIR, tensor(A.replace('q_', 'k_'), [2, 3]), tensor(B.replace('q_', 'k_'), [4, 2])],
      MismatchError,
      /k_proj\.lora_A\.weight: no layer claims this tensor: target_modules/,
    ],
    [
      'a magnitude without use_dora',
      [...PAIR, tensor('base_model.model.q_proj.lora_magnitude_vector', [4])],
      MismatchError,
      /q_proj\.lora_magnitude_vector: no layer claims this tensor: use_dora of adapter_config\.json is off/,
    ],
    [
      'a bias of B without lora_bias',
      [...PAIR, tensor(B.replace('weight', 'bias'), [4])],
      MismatchError,
      /lora_B\.bias: no layer claims this tensor: lora_bias of adapter_config\.json is off/,
    ],
    [
      'a magnitude of no layer',
      [...PAIR, tensor('base_model.model.k_proj.lora_magnitude_vector', [4])],
      FormatError,
      /k_proj\.lora_magnitude_vector: half a pair: no base_model\.model\.k_proj\.lora_A\.weight/,
    ],
    [
      'half of an embedding’s pair',
      [...PAIR, tensor('base_model.model.e.lora_embedding_A', [2, 3])],
      FormatError,
      /e\.lora_embedding_A: half a pair: no base_model\.model\.e\.lora_embedding_B/,
    ],
    [
      'of two kinds for one module',
      [...PAIR, tensor('base_model.model.q_proj.lora_embedding_A', [2, 3])],
      FormatError,
      /q_proj\.lora_embedding_A: a second tensor for the same part of one module/,
    ],
    [
      'a bias that nothing trained',
      [...PAIR, tensor('base_model.model.q_proj.base_layer.bias', [4])],
      FormatError,
      /no layer claims the tensor base_model\.model\.q_proj\.base_layer\.bias/,
    ],
    [
      'rows that nothing trained',
      [...PAIR, tensor('base_model.model.e.token_adapter.trainable_tokens_delta', [2, 3])],
      MismatchError,
      /trainable_tokens_delta: no layer claims this tensor: trainable_token_indices/,
    ],
    [
      'another kind of factor',
      [...PAIR, tensor('base_model.model.q_proj.lora_diag.weight', [2])],
      UnsupportedError,
      /lora_diag/,
    ],
    [
      'a trained module',
      [...PAIR, tensor('base_model.model.lm_head.weight', [4])],
      FormatError,
      /no layer claims the tensor base_model\.model\.lm_head\.weight/,
    ],
    [
      'A of another rank',
      [tensor(A, [3, 3]), PAIR[1]],
      ShapeError,
      /lora_A\.weight: wrong shape .*expected \(2, k\), got \(3, 3\)/,
    ],
    [
      'B of another rank',
      [PAIR[0], tensor(B, [4, 3])],
      ShapeError,
      /lora_B\.weight: wrong shape .*expected \(d, 2\), got \(4, 3\)/,
    ],
    ['one dimension', [tensor(A, [6]), PAIR[1]], ShapeError, /lora_A\.weight: wrong shape .*got \(6\)/],
    ['an empty shard', [tensor(A, [2, 0]), PAIR[1]], ShapeError, /lora_A\.weight: wrong shape .*got \(2, 0\)/],
    [
      'integers',
      [{ ...tensor(A, [2, 3]), dtype: 'I32' }, PAIR[1]],
      UnsupportedError,
      /lora_A\.weight: its dtype .*got I32/,
    ],
    [
      'NaN',
      [tensor(A, [2, 3], 'fp32', Number.NaN), PAIR[1]],
      NumericError,
      /lora_A\.weight: holds a value that is not finite/,
    ],
    [
      'infinity in f16',
      [PAIR[0], tensor(B, [4, 2], 'fp16', 1e6)],
      NumericError,
      /lora_B\.weight: holds a value that is not finite/,
    ],
  ])('%s', async (_, tensors, type, message) => {
    const error = await failure(await adapterFolder(CONFIG, tensors))
    expect(error).toBeInstanceOf(type)
    expect(error.message).toMatch(/^adapter\/adapter_model\.safetensors: /)
    expect(error.message).toMatch(message)
  })

  test('rank_pattern decides the rank that a shape must have', async () => {
    const error = await failure(await adapterFolder({ ...CONFIG, rank_pattern: { q_proj: 3 } }))
    expect(error.message).toMatch(/lora_A\.weight: wrong shape .*expected \(3, k\), got \(2, 3\)/)
    const wide = [tensor(A, [3, 3]), tensor(B, [4, 3])]
    expect(
      (await loadAdapter(await adapterFolder({ ...CONFIG, rank_pattern: { q_proj: 3 } }, wide))).layer('q_proj').rank,
    ).toBe(3)
  })
})

describe('files', () => {
  test('a folder that is none', async () => {
    const error = await failure(new MemoryDirectory({}, 'empty'))
    expect(error).toBeInstanceOf(FileError)
    expect(error.message).toMatch(/^empty: not an adapter folder: no adapter_config\.json/)
  })

  test('weights that are missing', async () => {
    const error = await failure(new MemoryDirectory({ 'adapter_config.json': JSON.stringify(CONFIG) }, 'adapter'))
    expect(error).toBeInstanceOf(FileError)
    expect(error.message).toMatch(/adapter_model\.safetensors/)
  })

  test.each([
    ['no JSON', '{"r": 2,}', /not valid JSON/],
    ['JSON, but no object', '[]', /not a JSON object/],
    ['one key twice', '{"peft_type": "LORA", "r": 2, "r": 4}', /"r" occurs twice/],
    ['no number', '{"peft_type": "LORA", "lora_alpha": 1,5}', /not valid JSON/],
    ['no adapter’s', '{"model_type": "llama"}', /no peft_type/],
    ['that of mlx-lm', '{"fine_tune_type": "lora", "lora_parameters": {"rank": 8}}', /adapter of mlx-lm/],
  ])('a config that is %s', async (_, text, message) => {
    const error = await failure(await adapterFolder(text))
    expect(error.message).toMatch(/^adapter\/adapter_config\.json: /)
    expect(error.message).toMatch(message)
  })

  test('a config of 100 MB is not even read', async () => {
    const directory = await adapterFolder()
    directory.open = async (file) => ({
      name: file,
      byteLength: 100_000_000,
      read: async () => expect.unreachable(),
      close: async () => {},
    })
    expect((await failure(directory)).message).toMatch(
      /too large for a config; expected at most 16000000 bytes, got 100000000/,
    )
  })

  test('__proto__ in a config pollutes nothing and is noted like any unknown field', async () => {
    const text = `{"__proto__": {"r": 64}, ${JSON.stringify(CONFIG).slice(1)}`
    const { notes } = await loadAdapter(await adapterFolder(text))
    expect(notes).toEqual([expect.stringMatching(/adapter_config\.json: __proto__: /)])
    const nested = `{"rank_pattern": {"__proto__": 2}, "auto_mapping": {"__proto__": {"x": 1}}, ${JSON.stringify(CONFIG).slice(1)}`
    const { config } = await loadAdapter(await adapterFolder(nested))
    expect(Object.keys(config.rankPattern)).toEqual(['__proto__'])
    expect(({} as Record<string, unknown>).x).toBeUndefined()
  })

  test('sources are closed, also after an error', async () => {
    for (const tensors of [PAIR, [PAIR[0]]]) {
      const directory = await adapterFolder(CONFIG, tensors)
      let open = 0
      const original = directory.open.bind(directory)
      directory.open = async (file) => {
        const source = await original(file)
        open++
        return {
          ...source,
          name: source.name,
          byteLength: source.byteLength,
          read: source.read.bind(source),
          close: async () => void open--,
        }
      }
      await loadAdapter(directory).catch(() => {})
      expect(open).toBe(0)
    }
  })
})

test('fuzz: whatever a config says, it loads or one of our errors comes', async () => {
  const keys = [
    ...['peft_type', 'r', 'lora_alpha', 'lora_dropout', 'target_modules', 'exclude_modules', 'layers_to_transform'],
    ...['layers_pattern', 'rank_pattern', 'alpha_pattern', 'use_rslora', 'fan_in_fan_out', 'bias', 'init_lora_weights'],
    ...[
      'task_type',
      'base_model_name_or_path',
      'modules_to_save',
      'use_dora',
      'auto_mapping',
      '__proto__',
      'constructor',
    ],
  ]
  const value = fc.oneof(
    fc.jsonValue({ maxDepth: 2 }),
    fc.constantFrom<unknown>(
      ...[null, 1, 2, 0.5, 'q_proj', ['q_proj'], '.*', { q_proj: 2 }, {}, [], true, 'none', 'LORA'],
    ),
  )
  let loaded = 0
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(fc.constantFrom(...keys), value), { maxLength: 3 }), async (changes) => {
      const config = Object.fromEntries([...Object.entries(CONFIG), ...changes])
      try {
        await loadAdapter(await adapterFolder(config))
        loaded++
      } catch (error) {
        if (!(error instanceof LowrankError)) throw error
      }
    }),
    { numRuns: runs(2000) },
  )
  expect(loaded).toBeGreaterThan(100)
})

test('a tensor’s name that is too long for one is told before it is compared with anything', async () => {
  const long = `base_model.model${'.original_module.'.repeat(100_000)}x`
  const error = await failure(await adapterFolder(CONFIG, [...PAIR, tensor(long, [1])]))
  expect(error).toBeInstanceOf(FormatError)
  expect(error.message).toMatch(/the name of a tensor is too long.*expected at most 1000 characters, got 1700017/)
  expect(error.message.length).toBeLessThan(300)
})

test('lists of more modules or parameters than anyone writes', async () => {
  const names = Array.from({ length: 1001 }, (_, i) => `m${i}`)
  for (const key of ['modules_to_save', 'target_parameters']) {
    const error = await failure(await adapterFolder({ ...CONFIG, [key]: names }))
    expect(error).toBeInstanceOf(ConfigError)
    expect(error.message).toMatch(/expected .* 1000 at most/)
  }
})
