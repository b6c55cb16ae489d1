// Models that only look like causal language models, such as encoders, must not generate text.

import * as ort from 'onnxruntime-node'
import { describe, expect, it } from 'vitest'
import { loadModel, MemoryDirectory, UnsupportedError } from '../../src/api/node.js'
import { readAll, withSource } from '../../src/core/base/bytes.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { serializeModel } from '../../src/onnx/format/model.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { ModelSession } from '../../src/run/model-session.js'
import { train } from '../../src/train/train.js'
import { addInput, addOutput, DataType, emptyGraph, floatTensor } from '../onnx/toolkit.js'

const runtime = { module: ort }

/**
 * Makes a graph of E[ids]·W (batch, sequence, width). With `seesAll`, the mean over all tokens is added, so that a
 * token sees later ones.
 */
function logitsOf(width: number, seesAll: boolean): Uint8Array {
  const graph = emptyGraph(17)
  const g = new Builder(graph, 'lm')
  addInput(graph, 'input_ids', DataType.INT64, ['batch', 'sequence'])
  const numbers = (count: number) => Array.from({ length: count }, (_, i) => Math.sin(i * i))
  graph.addInitializer(floatTensor('embedding', DataType.FLOAT, numbers(2048 * 4), [2048, 4]))
  graph.addInitializer(floatTensor('head', DataType.FLOAT, numbers(4 * width), [4, width]))
  const x = g.op('Gather', ['embedding', 'input_ids'], { axis: 0 })
  const hidden = seesAll ? g.add(x, g.op('ReduceMean', [x], { axes: [1] })) : x
  graph.setOutput(g.node('MatMul', [hidden, 'head']), 0, 'logits')
  addOutput(graph, 'logits', DataType.FLOAT)
  return serializeModel(graph.toModel())
}

async function model(width: number, seesAll: boolean) {
  const union = new NodeDirectory('models/union-3m')
  const read = (name: string) => withSource(union, name, readAll)
  const folder = new MemoryDirectory({
    'config.json': JSON.stringify({ vocab_size: 2048, eos_token_id: 1 }),
    'tokenizer.json': await read('tokenizer.json'),
    'tokenizer_config.json': await read('tokenizer_config.json'),
    'onnx/model.onnx': logitsOf(width, seesAll),
  })
  return loadModel(folder, { runtime })
}

async function generated(width: number, seesAll: boolean) {
  const opened = await model(width, seesAll)
  const session = await ModelSession.open(opened)
  try {
    return await session.generate('And the people', { maxNewTokens: 3 })
  } finally {
    await session.dispose()
    await opened.close()
  }
}

describe('generate', () => {
  it('continues texts with a graph without a cache whose logits see no token to come', async () => {
    expect((await generated(2048, false)).tokens).toBe(3)
  })

  it('refuses logits that change with the tokens behind them', async () => {
    const refusal = generated(2048, true)
    await expect(refusal).rejects.toThrow(UnsupportedError)
    await expect(generated(2048, true)).rejects.toThrow(/logits of a token that change with the tokens after it/)
  })

  it('refuses logits that are not as wide as the vocabulary, though no dimension is declared', async () => {
    await expect(generated(16, false)).rejects.toThrow(/not as wide as its vocabulary.*2048 logits, got 16/)
  })
})

describe('training an encoder as a language model', () => {
  it('names the tasks that the encoder can be trained for', async () => {
    const opened = await loadModel('tests/golden/text-classification/encoder', { runtime })
    await expect(train({ model: opened, data: [{ text: 'And' }] })).rejects.toThrow(
      /it is an encoder, which does not continue texts.*This model can be trained for .*text-classification.*: set `task`/,
    )
    await opened.close()
  })

  it('says of an encoder-decoder that it is one', async () => {
    const opened = await loadModel('tests/golden/graphs/t5', { runtime })
    await expect(train({ model: opened, task: 'causal-lm', data: [{ text: 'And' }] })).rejects.toThrow(
      /it is an encoder-decoder.*can be trained for seq2seq/,
    )
    await opened.close()
  })
})
