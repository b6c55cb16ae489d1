// Compares the estimate with the peak memory of training steps, measured by bench/train-step on a machine with 2 cores.

import { statSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import type { OnnxModel } from '../../src/api/node.js'
import { chooseCopies, memoryWarning, sessionMemory, trainingMemory, weightBytes } from '../../src/model/memory.js'
import { keepMapped } from '../../src/model/session-model.js'
import { ModelProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { create } from '../../src/onnx/format/protobuf.js'
import { byteLengthOf, TensorProtoSchema } from '../../src/onnx/format/tensors.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { addOutput, DataType, emptyGraph } from '../onnx/toolkit.js'
import { openModel } from '../run/models.js'

describe('memory', () => {
  it('counts the bytes of all weights, external ones and shared ones once', async () => {
    const model = await openModel('models/union-3m')
    const file = statSync('models/union-3m/onnx/model.onnx').size
    expect(weightBytes(model.onnx)).toBeGreaterThan(0.95 * file)
    expect(weightBytes(model.onnx)).toBeLessThan(file)
    expect(sessionMemory(model.onnx, false).total).toBe(2 * weightBytes(model.onnx))
    expect(sessionMemory(model.onnx, true).total).toBe(weightBytes(model.onnx))
    await model.close()
  })

  // A Llama of 135 million parameters with 650 MB of weights: megabytes measured at 1×256 and 1×512.
  it.each([
    [256, false, 1585],
    [512, false, 1862],
    [256, true, 1090],
    [512, true, 1314],
  ])('of training on %i tokens, low memory %s: within a quarter of %i MB', async (sequence, lowMemory, measured) => {
    const model = await openModel('models/union-3m')
    const config = { hidden_size: 576, num_hidden_layers: 30, intermediate_size: 1536, num_attention_heads: 9 }
    const need = trainingMemory({ onnx: model.onnx, config, vocabularySize: 49152 }, { batch: 1, sequence, lowMemory })
    const weights = lowMemory ? 650e6 : 1300e6
    const total = need.total - sessionMemory(model.onnx, lowMemory).total + weights
    expect(Math.abs(total / 1e6 / measured - 1)).toBeLessThan(0.25)
    await model.close()
  })

  it('copies the weights of small models, and some of large ones, where there is room', () => {
    const limits = [{ bytes: 1e9, of: 'this machine has free' }]
    expect(chooseCopies({ weights: 90e6, total: 5e8 }, limits)).toBe(Number.POSITIVE_INFINITY)
    expect(chooseCopies({ weights: 90e6, total: 2e9 }, limits)).toBe(0)
    expect(chooseCopies({ weights: 500e6, total: 12e8 }, limits)).toBe(225e6)
    expect(chooseCopies({ weights: 500e6, total: 14e8 }, limits)).toBe(0)
  })

  it('counts the logits of a large vocabulary by blocks', () => {
    const config = { hidden_size: 8, num_hidden_layers: 1 }
    const need = (vocabularySize: number, sequence: number) => {
      const model = { onnx: { proto: create(ModelProtoSchema) } as OnnxModel, config, vocabularySize }
      return trainingMemory(model, { batch: 1, sequence, lowMemory: false }).total
    }
    expect(need(32_000, 2048)).toBeGreaterThan(2 * need(32_000, 512))
    expect(need(262_144, 2048)).toBeLessThan(1.1 * need(262_144, 512))
  })

  it('says what is needed, what there is, and what helps', () => {
    const need = { weights: 3e9, total: 6.04e9 }
    const limits = [
      { bytes: 8e9, of: 'this machine has free' },
      { bytes: 2 ** 32, of: 'WebAssembly has at most' },
    ]
    expect(memoryWarning(need, limits, { what: 'The model', help: ['a', 'b'] })).toBe(
      'The model needs about 6.0 GB of memory, and WebAssembly has at most 4.3 GB. What helps: a, or b',
    )
    expect(memoryWarning(need, limits.slice(0, 1), { what: 'The model', help: [] })).toBeUndefined()
  })
})

it('lets quantized weights be repacked, and small ones', () => {
  const graph = emptyGraph(17)
  const { FLOAT, FLOAT16, UINT8 } = DataType
  const kinds = [
    [FLOAT, 512],
    [FLOAT16, 512],
    [UINT8, 512],
    [FLOAT, 8],
  ] as const
  const tensors = kinds.map(([dataType, rows]) => {
    const rawData = new Uint8Array(byteLengthOf(dataType, [rows, 256])!)
    return create(TensorProtoSchema, { name: `${rows} of ${dataType}`, dataType, dims: [BigInt(rows), 256n], rawData })
  })
  for (const tensor of tensors) {
    graph.addInitializer(tensor)
    addOutput(graph, new Builder(graph, 'test').cast(tensor.name, DataType.FLOAT), DataType.FLOAT)
  }
  const inputs = keepMapped(graph.toModel(), 0).graph?.input.map(({ name }) => name)
  expect(inputs).toEqual([tensors[0].name, tensors[1].name])
})

it('lets the largest weights be repacked for which there is room, but for shapes that are there once', () => {
  const graph = emptyGraph(17)
  const g = new Builder(graph, 'test')
  const add = (name: string, d: number, products: number) => {
    const [dims, rawData] = [[256n, BigInt(d)], new Uint8Array(4 * 256 * d)]
    graph.addInitializer(create(TensorProtoSchema, { name, dataType: DataType.FLOAT, dims, rawData }))
    for (let i = 0; i < products; i++) addOutput(graph, g.op('Gemm', ['x', name]), DataType.FLOAT)
  }
  add('head', 2048, 2)
  for (const layer of [0, 1]) {
    add(`${layer}.q`, 256, 2)
    add(`${layer}.up`, 1024, 2)
    add(`${layer}.down`, 512, layer + 1)
  }
  const mapped = (bytes: number) => keepMapped(graph.toModel(), bytes).graph?.input.map(({ name }) => name)
  // If a weight has only one product, its copy replaces its mapped pages.
  expect(mapped(0)).toHaveLength(7)
  expect(mapped(1)).toEqual(['head', '0.q', '0.up', '1.q', '1.up', '1.down'])
  expect(mapped(1.5 * 2 ** 20)).toEqual(['head', '0.q', '1.q', '1.up'])
  expect(mapped(2 ** 28)).toEqual(['head'])
})
