// inspect of ONNX models: every linear layer with its form and what is possible with it, all graphs, and the types in a
// folder.

import { describe, expect, it } from 'vitest'
import { inspect, MemoryDirectory } from '../../src/api/node.js'
import { readAll, withSource } from '../../src/core/base/bytes.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { goldenPath } from '../golden.js'
import { graphsFolder } from '../several-graphs.js'

async function onnx(source: Parameters<typeof inspect>[0]) {
  const report = await inspect(source)
  if (report.kind !== 'onnx') throw new Error(report.kind)
  return report
}

describe('a folder', () => {
  it('of several graphs: each with its inputs, and each layer once though two branches compute it', async () => {
    const { graphs, linears, dtypes } = await onnx(graphsFolder('t5'))
    expect(graphs.map(({ role, file }) => [role, file])).toEqual([
      ['decoder', 'onnx/decoder_model_merged.onnx'],
      ['encoder', 'onnx/encoder_model.onnx'],
    ])
    expect(graphs[1].inputs).toEqual(['input_ids', 'attention_mask'])
    expect(dtypes).toEqual({ decoder_model_merged: ['fp32'], encoder_model: ['fp32'] })
    const names = linears.map(({ graph, name }) => `${graph} ${name}`)
    expect(new Set(names).size).toBe(names.length)
    // Of two layers each: q, k, v, o of the encoder and twice of the decoder, and three of both feed-forwards; and the
    // head.
    expect(linears.filter(({ graph }) => graph === 'encoder')).toHaveLength(14)
    expect(linears.filter(({ graph }) => graph === 'decoder')).toHaveLength(23)
    expect(linears.every(({ run, merge, train }) => run && merge[0] === 'weights' && train)).toBe(true)
  })

  it('with a graph in several types: their names', async () => {
    const golden = new NodeDirectory(goldenPath('models', 'llama-q4'))
    const read = (path: string) => withSource(golden, path, readAll)
    const graph = await read('onnx/model.onnx')
    const folder = new MemoryDirectory({
      'config.json': await read('config.json'),
      'onnx/model_q4.onnx': graph,
      'onnx/model_fp16.onnx': graph,
    })
    expect((await onnx(folder)).dtypes).toEqual({ model: ['fp16', 'q4'] })
  })
})

describe('the forms of layers', () => {
  it.each([
    ['llama-fp16', 'MatMul'],
    ['llama-q4', 'MatMulNBits'],
    ['llama-q8', 'MatMulInteger'],
    ['merged-if', 'MatMul'],
  ])('%s has no silent layer', async (name, form) => {
    const { linears } = await onnx(goldenPath('models', name))
    const layers = linears.filter((linear) => linear.name.startsWith('model.layers.0.'))
    expect(layers.map((linear) => linear.name.split('.').at(-1)).sort()).toEqual([
      'down_proj',
      'gate_proj',
      'k_proj',
      'o_proj',
      'q_proj',
      'up_proj',
      'v_proj',
    ])
    expect(layers.every((linear) => linear.form === form && linear.run)).toBe(true)
    // quantize_dynamic lets the head read a transposed copy of the embedding's integers, which no form finds yet.
    expect(linears.some(({ isHead }) => isHead)).toBe(name !== 'llama-q8')
  })
})

describe('an adapter against a model of several graphs', () => {
  it('fits where each part is in one of them', async () => {
    const report = await inspect(`${graphsFolder('t5')}/golden/adapter`, { base: graphsFolder('t5') })
    if (report.kind !== 'adapter') throw new Error(report.kind)
    expect(report.fit?.fits).toBe(true)
    const other = await inspect(`${graphsFolder('bart')}/golden/adapter`, { base: graphsFolder('t5') })
    if (other.kind !== 'adapter') throw new Error(other.kind)
    expect(other.fit?.parts.every(({ problem }) => problem !== null)).toBe(true)
  })
})
