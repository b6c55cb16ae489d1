import { expect, it } from 'vitest'
import { findLinears } from '../../src/graph/match/linears.js'
import { valuesWithoutGradient } from '../../src/graph/training/reach.js'
import { Builder } from '../../src/graph/view/builder.js'
import { Graph } from '../../src/graph/view/graph.js'
import { addInput, addOutput, DataType, emptyGraph } from './toolkit.js'

/** Layers whose output no gradient reaches, where `between` stands in front of the last one. */
function unreached(between: (g: Builder, x: string) => string): string[] {
  const graph = emptyGraph(23)
  const g = new Builder(graph, 'test')
  const layer = (name: string, x: string) => {
    const weight = g.op('Identity', [g.float(Array(16).fill(0.5), [4, 4])])
    const node = g.node('MatMul', [x, weight])
    node.name = `/${name}/MatMul`
    return node.output[0]
  }
  const first = layer('first', addInput(graph, 'x', DataType.FLOAT, [2, 4]))
  const beside = layer('beside', first)
  const last = layer('last', g.add(beside, between(g, first)))
  addOutput(graph, g.op('Identity', [last]), DataType.FLOAT)
  const model = graph.toModel()
  const values = valuesWithoutGradient(model)
  return findLinears(new Graph(model)).flatMap(({ name, output }) => (values.has(output) ? [name] : []))
}

it('tells the layers in front of an operator without a gradient, and no others', () => {
  expect(unreached((g, x) => g.op('Hardmax', [x]))).toEqual(['first'])
  expect(unreached((g, x) => g.op('com.microsoft:Unheard', [x]))).toEqual(['first'])
})

it('does not stop at operators with a gradient, with a lowering, or whose output is constant almost everywhere', () => {
  expect(unreached((g, x) => g.op('Softmax', [x]))).toEqual([])
  expect(unreached((g, x) => g.op('com.microsoft:BiasGelu', [x, g.float([1, 2, 3, 4])]))).toEqual([])
  expect(unreached((g, x) => g.cast(g.op('Greater', [g.op('Hardmax', [x]), g.float(0)]), DataType.FLOAT))).toEqual([])
})
