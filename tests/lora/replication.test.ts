// layer_replication: adapters of a model whose layers are repeated, against what PEFT makes of the base
// (tests/golden/config).

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import { ConfigError, MismatchError, UnsupportedError } from '../../src/base/errors.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import { resolveConfig } from '../../src/lora/config.js'
import { baseModuleName } from '../../src/lora/replication.js'
import { requirePlain } from '../../src/lora/requirements.js'
import { loadAdapter } from '../../src/peft/adapter-folder.js'
import { asMatrix, deviation, expectSavedAlike, goldenPath, inF64, readJson, tensorsOf } from '../golden.js'
import { mergeCheckpoint } from '../merge/toolkit.js'

const folder = goldenPath('config', 'replication')
const expected = readJson(path.join(folder, 'expected.json')) as {
  trainableParams: number
  bases: Record<string, string>
}

test('layers compute what PEFT’s do, with the weights of the base’s layers', async () => {
  const adapter = await loadAdapter(new NodeDirectory(folder))
  const weights = await tensorsOf(goldenPath('config', 'base-3.safetensors'))
  const tensors = await tensorsOf(path.join(folder, 'tensors.safetensors'))
  expect(adapter.totalTrainableParams()).toBe(expected.trainableParams)
  expect(adapter.names().sort()).toEqual(Object.keys(expected.bases).sort())
  for (const layer of adapter.parts('linear')) {
    const { name } = layer
    const base = baseModuleName(name, adapter.config.layerReplication)
    expect(base).toBe(expected.bases[name])
    layer.attachBase(asMatrix(inF64(weights.get(`${base}.weight`)!)))
    const { data } = layer.forward(asMatrix(inF64(tensors.get(`input.${name}`)!)))
    expect(deviation(data, tensors.get(`output.${name}`)!.data)).toBeLessThan(1e-6)
  }
})

test('is written again as PEFT wrote it', () => expectSavedAlike(folder))

test('cannot be merged or run: one weight, several adapters', async () => {
  const base = new MemoryDirectory({ 'model.safetensors': readFileSync(goldenPath('config', 'base-3.safetensors')) })
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
  expect(() => resolveConfig({ layerReplication: layerReplication as never })).toThrow('layerReplication: not valid')
})
