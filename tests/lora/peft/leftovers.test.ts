// Extra files and odd module names that programs other than PEFT write into adapter folders are read as they are meant.

import { expect, it } from 'vitest'
import { merge } from '../../../src/api/merge.js'
import { nodePlatform } from '../../../src/api/node/platform.js'
import { ConfigError, loadAdapter, MemoryDirectory, saveAdapter } from '../../../src/api/node.js'
import { usePlatform } from '../../../src/api/platform/platform.js'
import { openCheckpoint } from '../../../src/files/checkpoint.js'
import { readTensorF32, saveSafetensors, type TensorBytes } from '../../../src/files/safetensors.js'
import { inspectAdapter } from '../../../src/lora/peft/inspect.js'
import { nameOfModule } from '../../../src/model/match/module-names.js'

usePlatform(nodePlatform)

const FIELDS = { peft_type: 'LORA', r: 1, lora_alpha: 2, target_modules: ['query'] }

function tensor(name: string, shape: number[], value = 0.5): TensorBytes {
  const data = new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value)
  return { name, dtype: 'fp32', shape, data: new Uint8Array(data.buffer) }
}

/** Makes a folder with an adapter of one layer, and other tensors. */
async function folder(config: string, module = 'encoder.query', others: string[] = []): Promise<MemoryDirectory> {
  const directory = new MemoryDirectory({ 'adapter_config.json': config }, 'adapter')
  const start = `base_model.model.${module}`
  await saveSafetensors(directory, 'adapter_model.safetensors', [
    tensor(`${start}.lora_A.weight`, [1, 3]),
    tensor(`${start}.lora_B.weight`, [2, 1]),
    ...others.map((name) => tensor(`base_model.model.${name}`, [4])),
  ])
  return directory
}

const text = (fields: object = {}) => JSON.stringify({ ...FIELDS, ...fields })

it('a byte order mark before the config', async () => {
  expect((await loadAdapter(await folder(`\uFEFF${text()}`))).names()).toEqual(['encoder.query'])
})

it.each(['NaN', 'Infinity', '-Infinity'])('%s in a field without effect', async (value) => {
  const config = text({ eva_config: { tau: 'VALUE' } }).replace('"VALUE"', value)
  const adapter = await loadAdapter(await folder(config))
  expect(adapter.names()).toEqual(['encoder.query'])
  const saved = new MemoryDirectory()
  await saveAdapter(adapter, saved)
  await expect(loadAdapter(saved)).resolves.toBeDefined()
})

it('NaN in a field that counts is refused by its name', async () => {
  const loaded = loadAdapter(await folder(text().replace('"lora_alpha":2', '"lora_alpha":NaN')))
  await expect(loaded).rejects.toThrow(ConfigError)
  await expect(loaded).rejects.toThrow(/adapter_config\.json: lora_alpha/)
})

it('tensors that the model computes itself are left out, with a note', async () => {
  const buffers = ['model.layers.0.self_attn.rotary_emb.inv_freq', 'embeddings.position_ids', 'h.0.attn.masked_bias']
  const directory = await folder(text(), 'encoder.query', buffers)
  const adapter = await loadAdapter(directory)
  expect(adapter.names()).toEqual(['encoder.query'])
  expect(adapter.notes).toEqual(['tensors that the model computes itself (such as inv_freq), which are left out'])
  expect((await inspectAdapter(directory)).problems).toEqual([])
  // Tensors that belong to nothing are still an error.
  await expect(loadAdapter(await folder(text(), 'encoder.query', ['rotary_emb.scale']))).rejects.toThrow(
    /no layer claims/,
  )
})

it('config.json of the base may name what the base was made from, and is no reason for a warning', async () => {
  const adapter = await folder(text({ base_model_name_or_path: 'sentence-transformers/all-MiniLM-L6-v2' }))
  const warningsOn = async (own: string, hubId?: string) => {
    const base = new MemoryDirectory({ 'config.json': JSON.stringify({ _name_or_path: own }) }, 'models/mine')
    await saveSafetensors(base, 'model.safetensors', [tensor('encoder.query.weight', [2, 3])])
    const { warnings } = await merge({
      base: Object.assign(base, { hubId }),
      adapters: adapter,
      out: new MemoryDirectory(),
    })
    return warnings.filter((warning) => warning.includes('as its base'))
  }
  expect(await warningsOn('nreimers/MiniLM-L6-H384-uncased')).toEqual([])
  expect(await warningsOn('nreimers/MiniLM-L6-H384-uncased', 'Xenova/all-MiniLM-L6-v2')).toEqual([])
  expect(await warningsOn('sentence-transformers/all-MiniLM-L6-v2', 'someone/copy')).toEqual([])
  expect(await warningsOn('nreimers/MiniLM-L6-H384-uncased', 'org/other')).toEqual([
    expect.stringMatching(/names sentence-transformers\/all-MiniLM-L6-v2 as its base, which is not org\/other/),
  ])
})

it('the wrapper of sentence-transformers is no part of a module’s name', async () => {
  const wrapped = await folder(text(), '0.auto_model.encoder.query')
  // For PEFT, the folder is unchanged.
  expect((await loadAdapter(wrapped)).names()).toEqual(['0.auto_model.encoder.query'])
  for (const start of ['', 'bert.']) {
    const base = new MemoryDirectory({ 'config.json': '{"model_type":"bert"}' }, 'base')
    const own = tensor(`${start}encoder.query.weight`, [2, 3], 1)
    await saveSafetensors(base, 'model.safetensors', [own, tensor(`${start}encoder.key.weight`, [2, 3], 1)])
    const out = new MemoryDirectory()
    await merge({ base, adapters: wrapped, out })
    const checkpoint = await openCheckpoint(out)
    const { data } = await readTensorF32(checkpoint.shards[0].file, own.name)
    expect(Array.from(data)).toEqual(Array(6).fill(1 + 2 * 0.25))
    await checkpoint.close()
  }
  const graph = new Set(['bert.encoder.query', 'bert.encoder.key'])
  expect(nameOfModule(graph, '0.auto_model.encoder.query')).toBe('bert.encoder.query')
  expect(nameOfModule(new Set(['0.auto_model.encoder.query']), '0.auto_model.encoder.query')).toBe(
    '0.auto_model.encoder.query',
  )
})
