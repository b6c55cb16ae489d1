// Adapters of classifiers on bases without their head, against what PEFT merges and transformers saves
// (tests/golden/heads, scripts/golden/heads.py).

import { describe, expect, test } from 'vitest'
import { MemoryDirectory } from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { fitOf } from '../../../src/merge/fit.js'
import { deviation, goldenPath, tensorsIn } from '../../golden.js'
import { mergeCheckpoint } from '../toolkit.js'
import { baseOf, sketchOf } from './formula-base.js'

const adapterOf = (name: string) => new NodeDirectory(goldenPath('heads', name, 'adapter'))
const mergedOf = (name: string) => tensorsIn(new NodeDirectory(goldenPath('heads', name)), 'merged.safetensors')
const configOf = (folder: MemoryDirectory) => JSON.parse(new TextDecoder().decode(folder.files.get('config.json')))

const WHOLE = [
  'roberta',
  'roberta-bare',
  'distilbert',
  'mistral',
  'qwen2',
  'bert-pretraining',
  'bert-tokens',
  'bert-answers',
  'deberta',
  'modernbert',
]

describe.each(WHOLE)('%s', (name) => {
  const sketch = sketchOf('heads', name)

  test('gets the head of the adapter, and config.json says so', async () => {
    const [base, out] = [await baseOf(sketch), new MemoryDirectory()]
    const report = await mergeCheckpoint(base, adapterOf(name), out)
    const [before, after, merged] = [await tensorsIn(base), await tensorsIn(out), await mergedOf(name)]
    const changed = [...after].filter(
      ([key, { data }]) => !before.has(key) || deviation(data, before.get(key)!.data) > 0,
    )
    expect(changed.map(([key]) => key).sort()).toEqual([...merged.keys()].sort())
    for (const [key, { data }] of merged) expect(deviation(after.get(key)!.data, data), key).toBeLessThan(1e-6)
    expect(report.added.sort()).toEqual([...after.keys()].filter((key) => !before.has(key)).sort())
    const { architectures, id2label = { 0: 'LABEL_0', 1: 'LABEL_1' } } = configOf(out)
    expect({ architectures, id2label }).toMatchObject({
      architectures: sketch.merged!.architectures,
      id2label: sketch.merged!.id2label ?? { 0: 'LABEL_0', 1: 'LABEL_1' },
    })
  })

  test('fits, with a note', async () => {
    const report = await fitOf({ directory: await baseOf(sketch) }, adapterOf(name))
    expect(report).toMatchObject({ fits: true, problems: [] })
    expect(report.notes).toEqual([expect.stringMatching(/brings the head of a \w+/)])
  })
})

test('what nobody has is named, and may be missing on demand', async () => {
  const base = await baseOf(sketchOf('heads', 'bert'))
  const out = new MemoryDirectory()
  await expect(mergeCheckpoint(base, adapterOf('bert'), out)).rejects.toMatchObject({
    code: 'MISMATCH',
    where: 'bert.pooler.dense.weight',
    hint: expect.stringContaining('`allowMissing`'),
  })
  expect(out.files.size).toBe(0)
  const report = await fitOf({ directory: base }, adapterOf('bert'))
  expect(report.fits).toBe(false)
  expect(report.problems).toEqual([expect.stringMatching(/bert\.pooler\.dense\.weight/)])
  await mergeCheckpoint(base, adapterOf('bert'), out, { allowMissing: true })
  const [after, merged] = [await tensorsIn(out), await mergedOf('bert')]
  for (const [key, { data }] of merged) {
    if (!key.includes('pooler')) expect(deviation(after.get(key)!.data, data), key).toBeLessThan(1e-6)
  }
  expect(configOf(out).architectures).toEqual(['BertForSequenceClassification'])
})

test('a tensor that belongs to no head is still refused', async () => {
  const { config, tensors } = sketchOf('heads', 'mistral')
  const base = await baseOf({ config: { ...config, model_type: 'bert' }, tensors })
  await expect(mergeCheckpoint(base, adapterOf('mistral'), new MemoryDirectory())).rejects.toMatchObject({
    code: 'MISMATCH',
    where: 'score.weight',
  })
})
