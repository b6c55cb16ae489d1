// Layers of an adapter that a graph has in a form which takes none.

import { describe, expect, it } from 'vitest'
import { UnsupportedError } from '../../src/base/errors.js'
import { findLinears } from '../../src/graph/match/linears.js'
import { placeAdapter } from '../../src/graph/match/place-adapter.js'
import { Builder } from '../../src/graph/view/builder.js'
import { LoraAdapter } from '../../src/lora/adapter.js'
import { addInput, addOutput, DataType, emptyGraph, floatTensor } from './toolkit.js'

describe('query, key and value in one Attention node', () => {
  it('are refused by the name of the node where it cannot be taken apart', () => {
    const graph = emptyGraph(17)
    const g = new Builder(graph, 'fused')
    addInput(graph, 'x', DataType.FLOAT, ['batch', 'sequence', 4])
    graph.addInitializer(floatTensor('qkv', DataType.FLOAT, Array(48).fill(0.1), [4, 12]))
    graph.addInitializer(floatTensor('bias', DataType.FLOAT, Array(12).fill(0), [12]))
    const [y] = g.node('com.microsoft:Attention', ['x', 'qkv', 'bias'], { num_heads: 2, do_rotary: 1 }).output
    addOutput(graph, y, DataType.FLOAT)
    const adapter = new LoraAdapter({ rank: 1 })
    const [row, column] = [[[1, 2, 3, 4]], [[1], [2], [3], [4]]]
    adapter.addFactors('encoder.layer.0.attention.self.query', row, column)
    const place = () => placeAdapter(graph, findLinears(graph), adapter)
    expect(place).toThrow(UnsupportedError)
    expect(place).toThrow(/in a form that cannot be adapted.*got fused\/Attention \(Attention with do_rotary\)/)
  })
})
