// ensure_weight_tying: adapters that change tied embeddings alike, against what PEFT computes (tests/golden/config). Its own merge
// adds a tied LoRA twice; the merged values here are those that give its logits.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { type Directory, MemoryDirectory } from '../../../src/base/bytes.js'
import { MismatchError } from '../../../src/base/errors.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../../src/formats/safetensors.js'
import { NodeDirectory } from '../../../src/io/node-files.js'
import { loadAdapter, saveAdapter } from '../../../src/lora/peft.js'
import { fitCheckpoint } from '../../../src/merge/checkpoint/fit.js'
import { mergeCheckpoint } from '../../../src/merge/checkpoint/merge-checkpoint.js'

const root = fileURLToPath(new URL('../../golden/config', import.meta.url))

async function valuesIn(directory: Directory, file = 'model.safetensors'): Promise<Map<string, Float32Array>> {
  const source = await directory.open(file)
  const parsed = await parseSafetensorsHeader(source)
  const result = new Map<string, Float32Array>()
  for (const name of parsed.tensors.keys()) result.set(name, (await readTensorF32(parsed, name)).data)
  await source.close()
  return result
}

function base(isTied = true): MemoryDirectory {
  return new MemoryDirectory({
    'config.json': JSON.stringify({ model_type: 'llama', tie_word_embeddings: isTied }),
    'model.safetensors': readFileSync(path.join(root, 'base-1.safetensors')),
  })
}

describe.each(['tied-embedding', 'tied-modules', 'tied-tokens'])('%s', (name) => {
  const folder = path.join(root, name)
  const expected = JSON.parse(readFileSync(path.join(folder, 'expected.json'), 'utf8'))

  test('loads, counts as PEFT counts, and is written again as PEFT wrote it', async () => {
    const adapter = await loadAdapter(new NodeDirectory(folder))
    expect(adapter.config.ensureWeightTying).toBe(true)
    expect(adapter.totalTrainableParams()).toBe(expected.trainableParams)
    const saved = new MemoryDirectory()
    await saveAdapter(adapter, saved)
    const bytes = readFileSync(path.join(folder, 'adapter_model.safetensors'))
    expect(Buffer.compare(Buffer.from(saved.files.get('adapter_model.safetensors')!), bytes)).toBe(0)
    const config = JSON.parse(new TextDecoder().decode(saved.files.get('adapter_config.json')))
    expect(config).toEqual(JSON.parse(readFileSync(path.join(folder, 'adapter_config.json'), 'utf8')))
  })

  test('merges into tied embeddings without a choice, once, and they stay tied', async () => {
    const merged = await valuesIn(new NodeDirectory(folder), 'tensors.safetensors')
    for (const adapter of [new NodeDirectory(folder), await loadAdapter(new NodeDirectory(folder))]) {
      const out = new MemoryDirectory()
      await mergeCheckpoint(base(), adapter, out)
      const got = await valuesIn(out)
      expect([...got.keys()]).toEqual([...(await valuesIn(base())).keys()])
      for (const [key, values] of merged) {
        const own = got.get(key.slice('merged.'.length))!
        const largest = values.reduce((size, value) => Math.max(size, Math.abs(value)), 0)
        for (let i = 0; i < values.length; i++) expect(Math.abs(own[i] - values[i]) / largest).toBeLessThan(1e-6)
      }
      expect(JSON.parse(new TextDecoder().decode(out.files.get('config.json'))).tie_word_embeddings).toBe(true)
    }
    const report = await fitCheckpoint(base(), new NodeDirectory(folder))
    expect(report).toMatchObject({ fits: true, problems: [], notes: [] })
  })
})

test('untied on demand, both get what was trained', async () => {
  const folder = new NodeDirectory(path.join(root, 'tied-embedding'))
  const out = new MemoryDirectory()
  await mergeCheckpoint(base(), folder, out, { tied: 'untie' })
  const got = await valuesIn(out)
  expect(got.get('lm_head.weight')).toEqual(got.get('model.embed_tokens.weight'))
  expect(JSON.parse(new TextDecoder().decode(out.files.get('config.json'))).tie_word_embeddings).toBe(false)
})

test('without ensure_weight_tying the output embedding must be a target', async () => {
  const folder = path.join(root, 'tied-embedding')
  const config = JSON.parse(readFileSync(path.join(folder, 'adapter_config.json'), 'utf8'))
  const directory = new MemoryDirectory({
    'adapter_config.json': JSON.stringify({ ...config, ensure_weight_tying: false }),
    'adapter_model.safetensors': readFileSync(path.join(folder, 'adapter_model.safetensors')),
  })
  await expect(loadAdapter(directory)).rejects.toThrow(MismatchError)
})
