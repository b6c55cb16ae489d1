import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { type Directory, MemoryDirectory, readAll } from '../../src/core/base/bytes.js'
import { FileError, FormatError } from '../../src/core/base/errors.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { loadModel, requireTokenizer } from '../../src/model/model-folder.js'
import type { RuntimeHost } from '../../src/onnx/runtime/host.js'

const folder = new NodeDirectory(fileURLToPath(new URL('../../models/union-3m', import.meta.url)))
const runtime = { specifier: 'none' } as RuntimeHost
const load = (directory: Directory) => loadModel(directory, { runtime })

const read = async (path: string) => {
  const source = await folder.open(path)
  try {
    return await readAll(source)
  } finally {
    await source.close()
  }
}
const files = {
  'config.json': await read('config.json'),
  'tokenizer.json': await read('tokenizer.json'),
  'tokenizer_config.json': await read('tokenizer_config.json'),
  'generation_config.json': await read('generation_config.json'),
  'model.onnx': await read('onnx/model.onnx'),
}
const changed = (changes: Record<string, string | Uint8Array | undefined>) =>
  new MemoryDirectory(
    Object.fromEntries(
      Object.entries({ ...files, ...changes }).filter(([, content]) => content !== undefined),
    ) as never,
    'folder',
  )

describe('loadModel', () => {
  it('opens a folder on disk', async () => {
    const model = await load(folder)
    expect(model.onnxPath).toBe('onnx/model.onnx')
    expect([model.contextLength, model.vocabularySize]).toEqual([256, 2048])
    expect(model.eosTokenIds).toEqual([1])
    expect(model.padTokenId).toBe(2)
    expect(model.config.model_type).toBe('llama')
    expect(model.onnx.proto.graph?.output.map(({ name }) => name).slice(0, 2)).toEqual(['logits', 'present.0.key'])
    await model.close()
  })

  it('finds model.onnx beside the config, and takes a path', async () => {
    expect((await load(changed({}))).onnxPath).toBe('model.onnx')
    const named = changed({ 'other.onnx': files['model.onnx'], 'model.onnx': undefined })
    expect((await loadModel(named, { runtime, onnxPath: 'other.onnx' })).onnxPath).toBe('other.onnx')
  })

  it('collects the tokens that end a text, the tokenizer first', async () => {
    const model = await load(changed({ 'generation_config.json': '{"eos_token_id": [7, 1, 9]}' }))
    expect(model.eosTokenIds).toEqual([1, 7, 9])
    for (const wrong of ['{"eos_token_id": "</s>"}', '{"eos_token_id": [1, "2"]}', '{"temperature": "0.7"}']) {
      const loading = load(changed({ 'generation_config.json': wrong }))
      await expect(loading).rejects.toThrow(/generation_config.json: (eos_token_id|temperature) is not a number.*got/)
    }
    const silent = { 'tokenizer_config.json': undefined, 'generation_config.json': undefined }
    const bare = await load(changed({ ...silent, 'config.json': '{"eos_token_id": 5, "n_positions": 64}' }))
    expect([bare.eosTokenIds, bare.padTokenId, bare.contextLength]).toEqual([[5], 5, 64])
    const none = await load(changed({ ...silent, 'config.json': '{"text_config": {"max_position_embeddings": 32}}' }))
    expect([none.eosTokenIds, none.padTokenId, none.contextLength]).toEqual([[], 0, 32])
  })

  it('fills batches up with no token that the model has not', async () => {
    const model = await load(
      changed({ 'tokenizer_config.json': undefined, 'generation_config.json': '{"pad_token_id": 2048}' }),
    )
    expect([model.vocabularySize, model.padTokenId]).toEqual([2048, 2])
  })

  it('needs no tokenizer until one is asked for', async () => {
    const model = await load(changed({ 'tokenizer.json': undefined, 'tokenizer_config.json': undefined }))
    expect([model.tokenizer, model.eosTokenIds]).toEqual([undefined, [1]])
    expect(() => requireTokenizer(model)).toThrow(/folder: no tokenizer.json in this folder/)
  })

  it('finds the graphs of a model of several by their role, and closes them', async () => {
    const graph = files['model.onnx']
    const parts = {
      'onnx/decoder_model_merged.onnx': graph,
      'onnx/decoder_with_past_model.onnx': graph,
      'onnx/encoder_model.onnx': graph,
      'onnx/encoder_model_fp16.onnx': graph,
    }
    const model = await load(changed({ 'model.onnx': undefined, ...parts }))
    expect(model.graphs).toEqual({
      decoder: 'onnx/decoder_model_merged.onnx',
      decoder_with_past: 'onnx/decoder_with_past_model.onnx',
      encoder: 'onnx/encoder_model.onnx',
    })
    expect(model.onnxPath).toBe('onnx/decoder_model_merged.onnx')
    expect(await model.openGraph('decoder')).toBe(model.onnx)
    const encoder = await model.openGraph('encoder')
    expect(encoder.fileName).toBe('encoder_model.onnx')
    expect(await model.openGraph('encoder')).toBe(encoder)
    await expect(model.openGraph('vision_encoder')).rejects.toThrow(/has no vision_encoder; got decoder, /)
    await model.close()
    const half = await loadModel(changed({ 'model.onnx': undefined, ...parts }), {
      runtime,
      onnxPath: 'onnx/encoder_model_fp16.onnx',
    })
    expect(half.graphs).toEqual({ encoder: 'onnx/encoder_model_fp16.onnx' })
  })

  it.each([
    [{ 'config.json': undefined }, FileError, 'folder: no config.json'],
    [
      { 'model.onnx': undefined },
      FileError,
      'folder: no ONNX model in this folder; expected onnx/model.onnx or model.onnx',
    ],
    [{ 'config.json': '[]' }, FormatError, 'folder/config.json'],
    [{ 'config.json': '{' }, FormatError, 'folder/config.json: not valid JSON'],
    [{ 'model.onnx': 'hello, this is no model' }, FormatError, 'folder/model.onnx'],
  ])('%j: says what is wrong', async (changes, kind, message) => {
    const error = await load(changed(changes)).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(kind)
    expect((error as Error).message).toContain(message)
  })
})
