// The bundled model as a repository of the Hub: the requests of loading it, and the outputs of a session.

import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { expect, test } from 'vitest'
import { openSession } from '../../src/api/index.js'
import { loadModel } from '../../src/model/model-folder.js'
import { sessionModel } from '../../src/model/session-model.js'
import type { RuntimeHost } from '../../src/onnx/runtime/host.js'
import { MODEL, publish } from '../files/io/hub/publish.js'
import { current, open, text, useHub } from '../files/io/hub/toolkit.js'
import { oneThread } from '../run/models.js'

useHub()

const runtime = { specifier: 'none' } as RuntimeHost

const OTHERS = {
  'model.safetensors': text('large'),
  'onnx/model_fp16.onnx': text('other'),
  'README.md': text('# Model'),
}

test('only what is needed comes, and ONNX Runtime maps it from the cache', async () => {
  publish(current.hub, 'org/union', MODEL, OTHERS)
  const model = await loadModel(await open('org/union'), { runtime })
  expect(model.name).toBe('org/union')
  expect(model.onnxPath).toBe('onnx/model.onnx')
  expect(current.hub.loaded.sort()).toEqual(
    ['config.json', 'generation_config.json', 'onnx/model.onnx', 'tokenizer.json', 'tokenizer_config.json'].sort(),
  )
  const { weightsFolder } = await sessionModel(model.onnx, model.onnx.proto)
  expect(weightsFolder).toBe(path.join(current.home, 'hub', 'models--org--union', 'blobs'))
  expect(await readdir(weightsFolder!)).toHaveLength(5)
  await model.close()
})

test('a type that is not published names those that are, before anything large comes', async () => {
  publish(current.hub, 'org/union', MODEL, OTHERS)
  const wanted = loadModel(await open('org/union'), { runtime, dtype: 'q4' })
  await expect(wanted).rejects.toThrow(/org\/union: no graph in q4; expected onnx\/model_q4.onnx, got fp32, fp16/)
  expect(current.hub.loaded).toEqual(['config.json'])
})

test('a session brings the file with the weights, and runs from the cache', async () => {
  const folder = path.join(MODEL, '../../tests/golden/models/llama-genai')
  publish(current.hub, 'org/genai', folder, { 'onnx/other.onnx_data': text('other') })
  const model = await loadModel(await open('org/genai'), { runtime: { module: oneThread } })
  expect(current.hub.loaded).not.toContain('onnx/model.onnx.data')
  const session = await openSession(model)
  expect(current.hub.loaded).toContain('onnx/model.onnx.data')
  expect(current.hub.loaded).not.toContain('onnx/other.onnx_data')
  const { logits } = await session.run({ input_ids: { type: 'int64', data: BigInt64Array.of(1n, 2n), dims: [1, 2] } })
  expect(logits.dims.slice(0, 2)).toEqual([1, 2])
  await session.dispose()
  await model.close()
})
