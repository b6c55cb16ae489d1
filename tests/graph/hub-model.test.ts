// The bundled model as a repository of the Hub: what loading it asks for, and what a session gets.

import { readdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import { expect, test } from 'vitest'
import { loadModel } from '../../src/graph/model-folder.js'
import { sessionModel } from '../../src/graph/session-model.js'
import type { RuntimeHost } from '../../src/runtime/host.js'
import { current, open, text } from '../io/hub/toolkit.js'

const MODEL = path.join(import.meta.dirname, '../../models/union-3m')
const runtime = { specifier: 'none' } as RuntimeHost

async function publish(): Promise<void> {
  const names = ['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'onnx/model.onnx']
  const files = await Promise.all(names.map(async (name) => [name, await readFile(path.join(MODEL, name))]))
  const others = {
    'model.safetensors': text('large'),
    'onnx/model_fp16.onnx': text('other'),
    'README.md': text('# Model'),
  }
  current.hub.repositories.set('org/union', {
    files: { ...Object.fromEntries(files), ...others },
    lfs: ['onnx/model.onnx'],
  })
}

test('only what is needed comes, and ONNX Runtime maps it from the cache', async () => {
  await publish()
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
  await publish()
  const wanted = loadModel(await open('org/union'), { runtime, dtype: 'q4' })
  await expect(wanted).rejects.toThrow(/org\/union: no graph in q4; expected onnx\/model_q4.onnx, got fp32, fp16/)
  expect(current.hub.loaded).toEqual(['config.json'])
})
