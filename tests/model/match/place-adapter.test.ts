// Layers of an adapter for which the graph has a form that cannot be adapted.

import { describe, expect, it } from 'vitest'
import { LoraAdapter, MemoryDirectory, UnsupportedError } from '../../../src/api/node.js'
import { findLinears } from '../../../src/model/match/linears.js'
import { placeAdapter } from '../../../src/model/place/linears.js'
import { loadOnnx, serializeModel } from '../../../src/onnx/format/model.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { mergeOnnx } from '../../merge/toolkit.js'
import { addInput, addOutput, DataType, emptyGraph, floatTensor } from '../../onnx/toolkit.js'
import { inThread } from '../../run/models.js'

function adapterOf(module: string): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 1 })
  adapter.addFactors(module, [[1, 2, 3, 4]], [[1], [2], [3], [4]])
  return adapter
}

describe('query, key and value in one Attention node', () => {
  it('are refused by the name of the node where it cannot be taken apart', () => {
    const graph = emptyGraph(17)
    const g = new Builder(graph, 'fused')
    addInput(graph, 'x', DataType.FLOAT, ['batch', 'sequence', 4])
    graph.addInitializer(floatTensor('qkv', DataType.FLOAT, Array(48).fill(0.1), [4, 12]))
    graph.addInitializer(floatTensor('bias', DataType.FLOAT, Array(12).fill(0), [12]))
    const [y] = g.node('com.microsoft:Attention', ['x', 'qkv', 'bias'], { num_heads: 2, do_rotary: 1 }).output
    addOutput(graph, y, DataType.FLOAT)
    const adapter = adapterOf('encoder.layer.0.attention.self.query')
    const place = () => placeAdapter(graph, findLinears(graph), adapter.parts('linear'))
    expect(place).toThrow(UnsupportedError)
    expect(place).toThrow(/in a form that cannot be adapted.*got fused\/Attention \(Attention with do_rotary\)/)
  })
})

describe('several modules in one product', () => {
  it.each([
    ['qkv_proj', 'k_proj', 12],
    ['gate_up_proj', 'up_proj', 8],
  ])(
    'are refused by the name of %s where its outputs cannot be told apart, before anything is written',
    async (whole, part, d) => {
      const graph = emptyGraph(17)
      addInput(graph, 'x', DataType.FLOAT, ['batch', 'sequence', 4])
      graph.addInitializer(floatTensor('w', DataType.FLOAT, Array(4 * d).fill(0.1), [4, d]))
      const product = new Builder(graph, `/model/layers.0/block/${whole}`).matmul('x', 'w')
      addOutput(graph, new Builder(graph, 'tail').op('Tanh', [product]), DataType.FLOAT)
      const adapter = adapterOf(`model.layers.0.block.${part}`)
      const message = new RegExp(
        `block\\.${part}: the graph computes it as a part of model\\.layers\\.0\\.block\\.${whole}.*${d} outputs`,
      )
      expect(() => placeAdapter(graph, findLinears(graph), adapter.parts('linear'))).toThrow(UnsupportedError)
      const [onnx, out] = [
        await loadOnnx(new MemoryDirectory({ 'm.onnx': serializeModel(graph.toModel()) }), 'm.onnx'),
        new MemoryDirectory(),
      ]
      await expect(ModelSession.open({ onnx, runtime: inThread }, { adapters: { adapter } })).rejects.toThrow(message)
      await expect(mergeOnnx(onnx, adapter, out)).rejects.toThrow(message)
      expect(out.files.size).toBe(0)
    },
  )
})
