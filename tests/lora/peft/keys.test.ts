// Names of tensors from older PEFT versions and from wrappers of models (tests/golden/keys).

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  FormatError,
  LowrankError,
  loadAdapter,
  MemoryDirectory,
  MismatchError,
  saveAdapter,
} from '../../../src/api/node.js'
import { MemorySource } from '../../../src/core/base/bytes.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { parseSafetensorsHeader, saveSafetensors, type TensorBytes } from '../../../src/files/safetensors.js'
import { inspectAdapter } from '../../../src/lora/peft/inspect.js'
import { normalizeKeys } from '../../../src/lora/peft/keys.js'
import { runs } from '../../thorough.js'

const golden = fileURLToPath(new URL('../../golden', import.meta.url))
const folderOf = (...parts: string[]) => new NodeDirectory(path.join(golden, ...parts))

/** Makes the golden folder with renamed tensors, and further tensors of one number each. */
async function renamed(rename: (key: string) => string, others: string[] = []): Promise<MemoryDirectory> {
  const folder = path.join(golden, 'kinds', 'all-together')
  const source = new MemorySource(new Uint8Array(readFileSync(path.join(folder, 'adapter_model.safetensors'))))
  const { tensors } = await parseSafetensorsHeader(source)
  const parts: TensorBytes[] = others.map((name) => ({ name, dtype: 'fp32', shape: [1, 1], data: new Uint8Array(4) }))
  for (const { name, dtype, shape, offset, byteLength } of tensors.values()) {
    parts.push({ name: rename(name), dtype, shape, data: await source.read(offset, byteLength) })
  }
  const directory = new MemoryDirectory({
    'adapter_config.json': readFileSync(path.join(folder, 'adapter_config.json'), 'utf8'),
  })
  await saveSafetensors(directory, 'adapter_model.safetensors', parts)
  return directory
}

async function savedFiles(directory: NodeDirectory | MemoryDirectory): Promise<Map<string, Uint8Array>> {
  const saved = new MemoryDirectory()
  await saveAdapter(await loadAdapter(directory), saved)
  return saved.files
}

const PREFIX = 'base_model.model.'
const withName = (key: string) =>
  key
    .replace(/(lora_magnitude_vector|trainable_tokens_delta)$/, '$1.my_adapter')
    .replace(/(lora_[AB])\./, '$1.my_adapter.')

describe('spellings', () => {
  test.each<[string, (key: string) => string, RegExp[]]>([
    ['PEFT’s own', (key) => key, []],
    ['torch.compile around the PEFT model', (key) => `_orig_mod.${key}`, [/_orig_mod/]],
    ['torch.compile around the base model', (key) => key.replace(PREFIX, `${PREFIX}_orig_mod.`), [/_orig_mod/]],
    ['torch.compile around each block', (key) => key.replace(/(layers\.\d+\.)/, '$1_orig_mod.'), [/_orig_mod/]],
    ['FSDP', (key) => key.replace(/(layers\.\d+\.)/, '$1_fsdp_wrapped_module.'), [/_fsdp_wrapped_module/]],
    ['gradient checkpointing', (key) => key.replace(/(layers\.\d+\.)/, '$1_checkpoint_wrapped_module.'), [/wrappers/]],
    ['DistributedDataParallel', (key) => `module.${key}`, [/the prefix module\./]],
    ['both', (key) => `module._orig_mod.${key}`, [/_orig_mod/, /the prefix module\./]],
    ['without the prefix', (key) => key.slice(PREFIX.length), [/without the prefix base_model\.model\./]],
    ['with the prefix twice', (key) => PREFIX + key, [/twice/]],
    ['with the adapter’s name', withName, [/the adapter’s name my_adapter/]],
    ['a magnitude’s own weight', (key) => key.replace(/lora_magnitude_vector$/, '$&.weight'), []],
    [
      'a magnitude’s own weight with the name',
      (key) => withName(key).replace(/lora_magnitude_vector\.my_adapter$/, '$&.weight'),
      [/my_adapter/],
    ],
    ['all at once', (key) => `_orig_mod.module.${withName(key)}`, [/_orig_mod/, /module\./, /my_adapter/]],
    ['name, no prefix', (key) => withName(key).slice(PREFIX.length), [/without the prefix/, /my_adapter/]],
  ])('%s', async (_, rename, notes) => {
    const directory = await renamed(rename)
    const adapter = await loadAdapter(directory)
    expect(adapter.notes.length).toBe(notes.length)
    for (const [i, note] of notes.entries()) expect(adapter.notes[i]).toMatch(note)
    expect(await savedFiles(directory)).toEqual(await savedFiles(folderOf('kinds', 'all-together')))
    const { warnings } = await inspectAdapter(adapter)
    expect(warnings.filter((warning) => warning.startsWith('The folder has ')).length).toBe(notes.length)
  })

  test('wrappers of trained modules without a name, and what they wrap', async () => {
    const rename = (key: string) => key.replace('lm_head.weight', 'lm_head.modules_to_save.weight')
    const directory = await renamed(rename)
    expect((await loadAdapter(directory)).notes).toEqual(['the wrapper modules_to_save in tensor names'])
    expect(await savedFiles(directory)).toEqual(await savedFiles(folderOf('kinds', 'all-together')))

    const both = await renamed(rename, [`${PREFIX}lm_head.original_module.weight`])
    expect((await loadAdapter(both)).notes).toEqual([
      'the wrapper modules_to_save in tensor names',
      'copies of the base’s own weights (original_module), which are left out',
    ])
    expect(await savedFiles(both)).toEqual(await savedFiles(folderOf('kinds', 'all-together')))
  })

  test('a PEFT model’s own state dict', async () => {
    const adapter = await loadAdapter(folderOf('keys', 'raw'))
    expect(adapter.notes).toEqual(['the adapter’s name default in tensor names'])
    const [raw, plain] = [folderOf('keys', 'raw'), folderOf('kinds', 'all-together')]
    expect(await savedFiles(raw)).toEqual(await savedFiles(plain))
  })

  test('a PEFT model in a PEFT model, as PEFT saves it', async () => {
    const adapter = await loadAdapter(folderOf('keys', 'twice'))
    expect(adapter.names()).toEqual(['model.layers.0.self_attn.k_proj', 'model.layers.1.self_attn.k_proj'])
    expect(adapter.notes).toEqual(['the prefix base_model.model. twice before tensor names'])
  })
})

describe('what is no spelling of these', () => {
  const file = (...names: string[]) => ({
    source: new MemorySource(new Uint8Array(), 'adapter.safetensors'),
    metadata: {},
    tensors: new Map(
      names.map((name) => [name, { name, dtype: 'fp32' as const, shape: [0], offset: 0, byteLength: 0 }]),
    ),
  })
  const keys = (names: string[], adapter?: string) => [...normalizeKeys(file(...names), adapter).tensors.keys()]

  test('names inside modules are left alone', () => {
    for (const name of [
      'base_model.model.default.lora_A.weight',
      'base_model.model.module.q.lora_A.weight',
      'base_model.model.lora_A.default.q.lora_A.weight',
      'base_model.model.my_orig_mod.q.lora_B.bias',
      'base_model.model.q.lora_magnitude_vector.weight',
    ]) {
      expect(keys([name])).toEqual([name])
      expect(normalizeKeys(file(name)).notes).toEqual([])
    }
  })

  test('the prefix twice in some names only is a module called so', () => {
    const names = ['base_model.model.base_model.model.q.lora_A.weight', 'base_model.model.lm_head.lora_A.weight']
    expect(keys(names)).toEqual(names)
  })

  test('several adapters: one is chosen by its name', () => {
    const names = ['one', 'two'].map((name) => `base_model.model.q.lora_A.${name}.weight`)
    expect(() => keys(names)).toThrow(MismatchError)
    expect(keys(names, 'two')).toEqual(['base_model.model.q.lora_A.weight'])
    expect(() => keys(names, 'three')).toThrow(
      'adapter.safetensors: holds no adapter named three; expected one of one, two. Choose one by its name',
    )
    expect(keys(['base_model.model.q.lora_A.weight'], 'any')).toEqual(['base_model.model.q.lora_A.weight'])
  })

  test('two spellings of one name', () => {
    const names = ['base_model.model.q.lora_A.weight', 'module.base_model.model.q.lora_A.weight']
    expect(() => keys(names)).toThrow(FormatError)
  })

  test('any names give names or one of our errors, no tensor vanishes without a note, and none when they are read again', () => {
    const part = fc.constantFrom(
      ...['base_model', 'model', 'module', '_orig_mod', 'lora_A', 'lora_B', 'lora_magnitude_vector', 'weight', 'bias'],
      ...['default', 'modules_to_save', 'q', '', '__proto__', 'trainable_tokens_delta', 'lora_embedding_A'],
    )
    const name = fc.array(part, { minLength: 1, maxLength: 9 }).map((parts) => parts.join('.'))
    fc.assert(
      fc.property(fc.uniqueArray(name, { maxLength: 5 }), (names) => {
        try {
          const read = normalizeKeys(file(...names))
          if (!read.notes.some((note) => note.endsWith('left out'))) expect(read.tensors.size).toBe(names.length)
          expect(keys([...read.tensors.keys()]).length).toBe(read.tensors.size)
        } catch (error) {
          if (!(error instanceof LowrankError)) throw error
        }
      }),
      { numRuns: runs(2000) },
    )
  })
})
