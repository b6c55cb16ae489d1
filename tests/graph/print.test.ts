import { expect, it } from 'vitest'
import { Builder } from '../../src/graph/builder.js'
import { printGraph } from '../../src/graph/print.js'
import { addInput, addOutput, DataType, emptyGraph, floatTensor } from './toolkit.js'

it('prints one line for each tensor and node', () => {
  const graph = emptyGraph(17)
  const g = new Builder(graph, 'test')
  addInput(graph, 'x', DataType.FLOAT)
  graph.addInitializer(floatTensor('w', DataType.FLOAT, Array(12).fill(1), [3, 4]))
  const y = g.op('Gemm', ['x', 'w'], { alpha: { float: 0.5 }, transB: 1 })
  addOutput(graph, g.reduceSum(y, [0, 1], 0), DataType.FLOAT)
  expect(printGraph(graph)).toBe(
    [
      'inputs x',
      'w = float[3, 4]',
      'test/constant = int64[2] 0 1',
      'test/Gemm:0 = Gemm(x, w) {alpha: 0.5, transB: 1} # test/Gemm',
      'test/ReduceSum:0 = ReduceSum(test/Gemm:0, test/constant) {keepdims: 0} # test/ReduceSum',
      'outputs test/ReduceSum:0',
    ].join('\n'),
  )
})
