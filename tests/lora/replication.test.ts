// layer_replication: adapters of a model whose layers are repeated, against what PEFT makes of the base (tests/golden/config).

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import { ConfigError, MismatchError, UnsupportedError } from '../../src/base/errors.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/formats/safetensors.js'
import { NodeDirectory } from '../../src/io/node-files.js'
import { resolveConfig } from '../../src/lora/config.js'
import { loadAdapter, saveAdapter } from '../../src/lora/peft.js'
import { requirePlain } from '../../src/lora/plain.js'
import { baseModuleName } from '../../src/lora/replication.js'
import { mergeCheckpoint } from '../../src/merge/checkpoint/merge-checkpoint.js'

const root = fileURLToPath(new URL('../golden/config', import.meta.url))
const folder = path.join(root, 'replication')
const expected = JSON.parse(readFileSync(path.join(folder, 'expected.json'), 'utf8'))

async function matricesIn(directory: string, file: string) {
  const source = await new NodeDirectory(directory).open(file)
  const parsed = await parseSafetensorsHeader(source)
  const result = new Map<string, { data: Float64Array; shape: readonly [number, number] }>()
  for (const name of parsed.tensors.keys()) {
    const { data, shape } = await readTensorF32(parsed, name)
    result.set(name, { data: Float64Array.from(data), shape: [shape[0], shape[1]] })
  }
  await source.close()
  return result
}

test('layers compute what PEFT’s do, with the weights of the base’s layers', async () => {
  const adapter = await loadAdapter(new NodeDirectory(folder))
  const weights = await matricesIn(root, 'base-3.safetensors')
  const tensors = await matricesIn(folder, 'tensors.safetensors')
  expect(adapter.totalTrainableParams()).toBe(expected.trainableParams)
  expect(adapter.names().sort()).toEqual(Object.keys(expected.bases).sort())
  for (const [name, layer] of adapter) {
    const base = baseModuleName(name, adapter.config.layerReplication)
    expect(base).toBe(expected.bases[name])
    layer.attachBase(weights.get(`${base}.weight`)!)
    const output = tensors.get(`output.${name}`)!.data
    const got = layer.forward(tensors.get(`input.${name}`)!).data
    const largest = Math.max(...output.map(Math.abs))
    for (let i = 0; i < output.length; i++) expect(Math.abs(got[i] - output[i]) / largest).toBeLessThan(1e-6)
  }
})

test('is written again as PEFT wrote it', async () => {
  const saved = new MemoryDirectory()
  await saveAdapter(await loadAdapter(new NodeDirectory(folder)), saved)
  const bytes = readFileSync(path.join(folder, 'adapter_model.safetensors'))
  expect(Buffer.compare(Buffer.from(saved.files.get('adapter_model.safetensors')!), bytes)).toBe(0)
  const config = JSON.parse(new TextDecoder().decode(saved.files.get('adapter_config.json')))
  expect(config).toEqual(JSON.parse(readFileSync(path.join(folder, 'adapter_config.json'), 'utf8')))
})

test('cannot be merged or run: one weight, several adapters', async () => {
  const base = new MemoryDirectory({ 'model.safetensors': readFileSync(path.join(root, 'base-3.safetensors')) })
  const adapter = await loadAdapter(new NodeDirectory(folder))
  for (const input of [adapter, new NodeDirectory(folder)]) {
    const merging = mergeCheckpoint(base, input, new MemoryDirectory())
    await expect(merging).rejects.toThrow(UnsupportedError)
    await expect(merging).rejects.toThrow('layer_replication: not implemented for merging')
  }
  expect(() => requirePlain(adapter, 'training')).toThrow('layer_replication')
})

describe('names', () => {
  const ranges = resolveConfig({
    layerReplication: [
      [0, 2],
      [1, 3],
    ],
  }).layerReplication

  test.each([
    ['model.layers.3.mlp.up_proj', 'model.layers.2.mlp.up_proj'],
    ['model.layers.2', 'model.layers.1'],
    ['layers.2.mlp.experts.3.w1', 'layers.1.mlp.experts.3.w1'],
    ['model.model.layers.0.q', 'model.model.layers.0.q'],
    ['bert.encoder.layer.3.attention.self.query', 'bert.encoder.layer.2.attention.self.query'],
    ['h.2.attn', 'h.1.attn'],
    ['lm_head', 'lm_head'],
    ['vision.layers.3.q', 'vision.layers.3.q'],
  ])('%s', (name, base) => {
    expect(baseModuleName(name, ranges)).toBe(base)
    expect(baseModuleName(name, undefined)).toBe(name)
  })

  test('a layer that is not there', async () => {
    expect(() => baseModuleName('model.layers.4.q_proj', ranges)).toThrow(MismatchError)
    const directory = new MemoryDirectory({}, 'adapter')
    for (const file of ['adapter_config.json', 'adapter_model.safetensors']) {
      directory.files.set(file, readFileSync(path.join(folder, file)))
    }
    const config = JSON.parse(readFileSync(path.join(folder, 'adapter_config.json'), 'utf8'))
    config.layer_replication = [[0, 4]]
    directory.files.set('adapter_config.json', new TextEncoder().encode(JSON.stringify(config)))
    await expect(loadAdapter(directory)).rejects.toThrow(MismatchError)
    await expect(loadAdapter(directory)).rejects.toThrow(
      'layer_replication makes no such layer; expected below 4, got 4',
    )
  })
})

test.each([
  ['no ranges', []],
  ['no range', [3]],
  ['a range of one', [[1]]],
  ['a range of three', [[1, 2, 3]]],
  ['an empty range', [[2, 2]]],
  ['a range backwards', [[3, 1]]],
  ['negative', [[-1, 2]]],
  ['no integers', [[0, 1.5]]],
  ['text', [['0', '2']]],
  ['more layers than there are', [[0, 1e9]]],
  ['more layers than there are, in parts', Array.from({ length: 70 }, () => [0, 1000])],
])('refused: %s', (_, layerReplication) => {
  expect(() => resolveConfig({ layerReplication: layerReplication as never })).toThrow(ConfigError)
  expect(() => resolveConfig({ layerReplication: layerReplication as never })).toThrow('layerReplication: not usable')
})
