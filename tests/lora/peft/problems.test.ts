// Adapter folders with several mistakes: a lenient reader reports each problem, and returns the parts that are right.

import { readdirSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { loadAdapter, MemoryDirectory } from '../../../src/api/node.js'
import { encodeFloats } from '../../../src/core/base/dtype.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { saveSafetensors } from '../../../src/files/safetensors.js'
import { inspectAdapter } from '../../../src/lora/peft/inspect.js'
import { openAdapter } from '../../../src/lora/peft/open.js'

type Tensors = Record<string, { shape: number[]; values?: ArrayLike<number> }>

async function folder(config: Record<string, unknown>, tensors: Tensors): Promise<MemoryDirectory> {
  const text = JSON.stringify({ peft_type: 'LORA', r: 2, lora_alpha: 4, target_modules: 'all-linear', ...config })
  const directory = new MemoryDirectory({ 'adapter_config.json': text }, 'adapter')
  const encoded = Object.entries(tensors).map(([name, { shape, values }]) => {
    const data = Float32Array.from(values ?? new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(0.5))
    return { name: `base_model.model.${name}`, dtype: 'fp32' as const, shape, data: encodeFloats(data, 'fp32') }
  })
  await saveSafetensors(directory, 'adapter_model.safetensors', encoded)
  return directory
}

test('all problems are heard at once, and sound layers are opened', async () => {
  const directory = await folder(
    { use_dora: true, target_modules: ['good', 'bare', 'half', 'wide', 'odd'], use_qalora: true },
    {
      'good.lora_A.weight': { shape: [2, 3] },
      'good.lora_B.weight': { shape: [4, 2] },
      'good.lora_magnitude_vector': { shape: [4] },
      'bare.lora_A.weight': { shape: [2, 3] },
      'bare.lora_B.weight': { shape: [4, 2] },
      'half.lora_A.weight': { shape: [2, 3] },
      'wide.lora_A.weight': { shape: [3, 3] },
      'wide.lora_B.weight': { shape: [4, 3] },
      'wide.lora_magnitude_vector': { shape: [5] },
      'odd.lora_A.weight': { shape: [2, 3] },
      'odd.lora_B.weight': { shape: [4, 3] },
      'odd.lora_magnitude_vector': { shape: [4] },
      'left.lora_A.weight': { shape: [2, 3] },
      'left.lora_B.weight': { shape: [4, 2] },
      'left.lora_magnitude_vector': { shape: [4] },
      'norm.weight': { shape: [3] },
    },
  )
  const opened = await openAdapter(directory, { isTolerant: true })
  expect(
    opened
      .parts()
      .map((part) => [
        part.name,
        'config' in part && part.config.rank,
        'config' in part && part.tensors.magnitude?.shape,
      ]),
  ).toEqual([
    ['bare', 2, undefined],
    ['good', 2, [4]],
    ['left', 2, [4]],
    ['wide', 3, undefined],
  ])
  const messages = opened.problems.map(({ code, message }) => `${code} ${message.replaceAll('base_model.model.', '')}`)
  expect(messages).toEqual([
    expect.stringMatching(/^UNSUPPORTED .*use_qalora/),
    expect.stringMatching(/^FORMAT .*no layer claims the tensor norm\.weight/),
    expect.stringMatching(/^MISMATCH .*bare\.lora_A\.weight: use_dora .*no bare\.lora_magnitude_vector/),
    expect.stringMatching(/^FORMAT .*half\.lora_A\.weight: half a pair/),
    expect.stringMatching(/^MISMATCH .*left\.lora_A\.weight: .*target_modules/),
    expect.stringMatching(/^SHAPE .*odd\.lora_B\.weight: wrong shape/),
    expect.stringMatching(/^SHAPE .*wide\.lora_A\.weight: wrong shape/),
  ])
})

test('inspecting reports them with what is there', async () => {
  const nan = { shape: [2, 3], values: [1, 2, 3, Number.NaN, 5, 6] }
  const directory = await folder(
    { target_modules: ['good', 'nan', 'half'] },
    {
      'good.lora_A.weight': { shape: [2, 3] },
      'good.lora_B.weight': { shape: [4, 2] },
      'nan.lora_A.weight': nan,
      'nan.lora_B.weight': { shape: [4, 2] },
      'half.lora_B.weight': { shape: [4, 2] },
    },
  )
  const { layers, problems, trainableParams } = await inspectAdapter(directory)
  expect(layers.map(({ name, normA, normDelta }) => [name, normA, normDelta])).toEqual([
    ['good', expect.closeTo(Math.sqrt(1.5), 12), expect.closeTo(2 * Math.sqrt(3), 12)],
    ['nan', Number.NaN, Number.NaN],
  ])
  expect(trainableParams).toBe(28)
  expect(problems).toEqual([
    { code: 'FORMAT', message: expect.stringMatching(/half\.lora_B\.weight: half a pair/) },
    { code: 'NUMERIC', message: expect.stringMatching(/nan\.lora_A\.weight: holds a value that is not finite/) },
  ])
})

const golden = fileURLToPath(new URL('../../golden', import.meta.url))

test.each([
  ...readdirSync(path.join(golden, 'kinds'), { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? `kinds/${entry.name}` : [],
  ),
  'peft/f16',
  'peft/patterns-rslora',
])('%s: inspecting the folder and the loaded adapter say the same', async (name) => {
  const directory = new NodeDirectory(path.join(golden, name))
  const loaded = await inspectAdapter(await loadAdapter(directory))

  expect(await inspectAdapter(directory)).toEqual(loaded)
})

test.each([
  ['.bias', { bias: 'all' }],
  ['bias', { bias: 'all' }],
  ['.token_adapter.trainable_tokens_delta', { trainable_token_indices: [1, 2] }],
])('a tensor without a module: %s is refused by loading and inspecting alike', async (name, settings) => {
  const directory = await folder(settings, {
    'good.lora_A.weight': { shape: [2, 3] },
    'good.lora_B.weight': { shape: [4, 2] },
    [name]: { shape: [2, 3] },
  })
  const expected = expect.objectContaining({ message: expect.stringContaining('no layer claims the tensor') })
  await expect(loadAdapter(directory)).rejects.toThrow(expected)
  expect((await inspectAdapter(directory)).problems).toContainEqual(expected)
})
