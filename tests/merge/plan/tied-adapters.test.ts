// ensure_weight_tying: adapters that change tied embeddings alike, against what PEFT computes (tests/golden/config).
// Its own merge adds a tied LoRA twice; the merged values here are those that give its logits.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { loadAdapter, MemoryDirectory, MismatchError, type TiedPolicy } from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { fitOf } from '../../../src/merge/fit.js'
import { deviation, expectSavedAlike, goldenPath, tensorsIn } from '../../golden.js'
import { mergeCheckpoint } from '../toolkit.js'

function base(isTied = true): MemoryDirectory {
  return new MemoryDirectory({
    'config.json': JSON.stringify({ model_type: 'llama', tie_word_embeddings: isTied }),
    'model.safetensors': readFileSync(goldenPath('config', 'base-1.safetensors')),
  })
}

const NAMES = ['tied-embedding', 'tied-modules', 'tied-tokens']

test.each([...NAMES, 'tied-dora'])(
  '%s loads, counts as PEFT counts, and is written again as PEFT wrote it',
  async (name) => {
    const folder = goldenPath('config', name)
    const expected = JSON.parse(readFileSync(path.join(folder, 'expected.json'), 'utf8'))
    const adapter = await loadAdapter(folder)
    expect(adapter.config.ensureWeightTying).toBe(true)
    expect(adapter.totalTrainableParams()).toBe(expected.trainableParams)
    await expectSavedAlike(folder)
  },
)

describe.each(NAMES)('%s', (name) => {
  const folder = goldenPath('config', name)

  test('merges into tied embeddings without a choice, once, and they stay tied', async () => {
    const merged = await tensorsIn(new NodeDirectory(folder), 'tensors.safetensors')
    for (const adapter of [new NodeDirectory(folder), await loadAdapter(folder)]) {
      const out = new MemoryDirectory()
      await mergeCheckpoint(base(), adapter, out)
      const got = await tensorsIn(out)
      expect([...got.keys()]).toEqual([...(await tensorsIn(base())).keys()])
      for (const [key, { data }] of merged) {
        expect(deviation(got.get(key.slice('merged.'.length))!.data, data), key).toBeLessThan(1e-6)
      }
      expect(JSON.parse(new TextDecoder().decode(out.files.get('config.json'))).tie_word_embeddings).toBe(true)
    }
    const report = await fitOf({ directory: base() }, new NodeDirectory(folder))
    expect(report).toMatchObject({ fits: true, problems: [], notes: [] })
  })
})

test('DoRA changes the two uses in two ways: one weight has no place for both', async () => {
  const folder = new NodeDirectory(goldenPath('config', 'tied-dora'))
  for (const adapter of [folder, await loadAdapter(folder)]) {
    const merge = (tied: TiedPolicy) => mergeCheckpoint(base(), adapter, new MemoryDirectory(), { tied })
    await expect(merge('keep')).rejects.toMatchObject({ code: 'UNSUPPORTED' })
    const out = new MemoryDirectory()
    await mergeCheckpoint(base(), adapter, out)
    const got = await tensorsIn(out)
    for (const [key, { data }] of await tensorsIn(folder, 'tensors.safetensors')) {
      expect(deviation(got.get(key.slice('merged.'.length))!.data, data), key).toBeLessThan(1e-6)
    }
  }
  const report = await fitOf({ directory: base() }, folder)
  expect(report).toMatchObject({ fits: true, notes: [expect.stringMatching(/were one weight/)] })
})

test('without ensure_weight_tying the output embedding must be a target', async () => {
  const folder = goldenPath('config', 'tied-embedding')
  const config = JSON.parse(readFileSync(path.join(folder, 'adapter_config.json'), 'utf8'))
  const directory = new MemoryDirectory({
    'adapter_config.json': JSON.stringify({ ...config, ensure_weight_tying: false }),
    'adapter_model.safetensors': readFileSync(path.join(folder, 'adapter_model.safetensors')),
  })
  await expect(loadAdapter(directory)).rejects.toThrow(MismatchError)
})
