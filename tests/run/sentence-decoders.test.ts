// Vectors of models shaped as Qwen3-Embedding and EmbeddingGemma, against `encode` of sentence-transformers
// (scripts/golden/sentence_decoders.py).

import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { loadModel, MemoryDirectory } from '../../src/api/node.js'
import { ModelSession } from '../../src/run/model-session.js'
import { goldenPath } from '../golden.js'
import { directoryOf, inThread } from './models.js'

const FOLDER = 'tests/golden/sentence-decoders'
const { texts, ...golden } = JSON.parse(readFileSync(goldenPath('sentence-decoders', 'golden.json'), 'utf8'))

/** Makes the folder of a case, with some files replaced. */
async function folderOf(name: string, changed: Record<string, string | Uint8Array> = {}) {
  const graph = name === 'lower' ? 'qwen3' : name
  const files: Record<string, string | Uint8Array> = {}
  for (const from of [graph, name]) {
    const directory = directoryOf(`${FOLDER}/${from}`)
    for (const path of [...(await directory.list()), 'onnx/model.onnx', ...MODULES]) {
      if (await directory.has(path)) files[path] = readFileSync(goldenPath('sentence-decoders', from, path))
    }
  }
  return new MemoryDirectory({ ...files, ...changed })
}
const MODULES = ['1_Pooling', '2_Dense', '3_Dense'].flatMap((module) => {
  return [`${module}/config.json`, `${module}/model.safetensors`]
})

function cosine(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const dot = (x: ArrayLike<number>, y: ArrayLike<number>) => Array.from(x).reduce((sum, v, i) => sum + v * y[i], 0)
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))
}

it.each([
  ['qwen3', 'qwen3', {}],
  ['gemma3', 'gemma3', {}],
  ['lower', 'lower', {}],
  // Before version 6, sentence-transformers stored the lower-case setting separately and left the tokenizer unchanged.
  [
    'lower, as older versions wrote it',
    'lower',
    {
      'sentence_bert_config.json': '{"do_lower_case": true}',
      'tokenizer.json': readFileSync(goldenPath('sentence-decoders', 'qwen3', 'tokenizer.json')),
    },
  ],
])('gives the vectors of encode: %s', async (_, name, changed) => {
  const model = await loadModel(await folderOf(name, changed), { runtime: inThread })
  const session = await ModelSession.open(model)
  // Texts of other lengths in the same batch do not change a vector.
  const together: Float32Array[] = await session.embed(texts as string[])
  for (const [i, wanted] of (golden[name] as number[][]).entries()) {
    const alone: Float32Array = await session.embed(texts[i] as string)
    for (const vector of [together[i], alone]) {
      expect(vector).toHaveLength(wanted.length)
      expect(cosine(vector, wanted)).toBeGreaterThan(1 - 1e-6)
    }
  }
  await session.dispose()
  await model.close()
})
