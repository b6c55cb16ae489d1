// Adapters of models with tied weights under all their names, against PEFT's merges of the tied and the untied model
// (tests/golden/tied-models, scripts/golden/tied_models.py).

import { describe, expect, test } from 'vitest'
import { MemoryDirectory, type TiedPolicy } from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { deviation, goldenNames, goldenPath, tensorsIn } from '../../golden.js'
import { mergeCheckpoint } from '../toolkit.js'
import { baseOf, sketchOf } from './formula-base.js'

describe.each(goldenNames('tied-models'))('%s', (name) => {
  const sketch = sketchOf('tied-models', name)
  const adapter = new NodeDirectory(goldenPath('tied-models', name, 'adapter'))
  // `refuse` in the golden file means that the adapter separates no tied weights, so there is nothing to choose.
  const isParted = sketch.tied !== 'refuse'
  const tied = isParted ? (sketch.tied as TiedPolicy) : undefined

  test(`${sketch.tied}: every use has what PEFT gives it`, async () => {
    const [base, out] = [await baseOf(sketch), new MemoryDirectory()]
    await mergeCheckpoint(base, adapter, out, { tied })
    const merged = await tensorsIn(new NodeDirectory(goldenPath('tied-models', name)), 'merged.safetensors')
    const [before, after] = [await tensorsIn(base), await tensorsIn(out)]
    for (const [key, { data }] of merged) expect(deviation(after.get(key)!.data, data), key).toBeLessThan(1e-5)
    for (const [key, { data }] of after) {
      if (!merged.has(key) && before.has(key)) expect(deviation(data, before.get(key)!.data), key).toBe(0)
    }
    const config = new TextDecoder().decode(out.files.get('config.json'))
    expect(config.includes('"tie_word_embeddings":true')).toBe(tied !== 'untie' && config.includes('tie_word'))
  })

  test(isParted ? 'unties by itself, and says so' : 'leaves the tie by itself', async () => {
    const { warnings } = await mergeCheckpoint(await baseOf(sketch), adapter, new MemoryDirectory())
    expect(warnings.some((warning) => warning.includes('were one weight'))).toBe(isParted)
  })
})

test('stored tensors that differ are not tied, whatever config.json says', async () => {
  const sketch = sketchOf('tied-models', 'llama-head')
  const shape = sketch.tensors['model.embed_tokens.weight']
  const [base, out] = [
    await baseOf({ ...sketch, tensors: { ...sketch.tensors, 'lm_head.weight': shape } }),
    new MemoryDirectory(),
  ]
  await mergeCheckpoint(base, new NodeDirectory(goldenPath('tied-models', 'llama-head', 'adapter')), out)
  const [before, after] = [await tensorsIn(base), await tensorsIn(out)]
  expect(after.get('model.embed_tokens.weight')).toEqual(before.get('model.embed_tokens.weight'))
  expect(after.get('lm_head.weight')).not.toEqual(before.get('lm_head.weight'))
})

test('where the type of the model is not known, nobody guesses', async () => {
  const sketch = sketchOf('tied-models', 'llama-head')
  const adapter = new NodeDirectory(goldenPath('tied-models', 'llama-head', 'adapter'))
  const base = await baseOf({ ...sketch, config: { model_type: 'of-tomorrow', tie_word_embeddings: true } })
  await expect(mergeCheckpoint(base, adapter, new MemoryDirectory())).rejects.toMatchObject({
    code: 'MISMATCH',
    what: expect.stringContaining('tied to this embedding in models of the type'),
  })
})

test('the part of config.json decides that transformers asks, not the language model’s beside it', async () => {
  const sketch = sketchOf('tied-models', 'gemma3-head')
  const adapter = new NodeDirectory(goldenPath('tied-models', 'gemma3-head', 'adapter'))
  const withTies = (top: boolean, text: boolean) => {
    const text_config = { ...(sketch.config.text_config as object), tie_word_embeddings: text }
    return baseOf({ ...sketch, config: { ...sketch.config, tie_word_embeddings: top, text_config } })
  }
  const { warnings } = await mergeCheckpoint(await withTies(true, false), adapter, new MemoryDirectory())
  expect(warnings).toContainEqual(expect.stringContaining('were one weight'))
  // The top level of the config says that the head is not tied, so the checkpoint would have to contain it.
  await expect(mergeCheckpoint(await withTies(false, true), adapter, new MemoryDirectory())).rejects.toThrow(/lm_head/)
})
