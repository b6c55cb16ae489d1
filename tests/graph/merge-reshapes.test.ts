import { expect, it } from 'vitest'
import { mergeReshapes } from '../../src/graph/shapes/plain-shapes.js'
import { ShapeMap } from '../../src/graph/shapes/shapes.js'
import { Builder } from '../../src/graph/view/builder.js'
import { addInput, addOutput, DataType, emptyGraph, floats, openGraph, valuesOf } from './toolkit.js'

const x = floats(
  DataType.FLOAT,
  Array.from({ length: 24 }, (_, i) => i),
  [2, 3, 4],
)

it.each<[string, (g: Builder) => string, string[], number[]]>([
  ['two in a row', (g) => g.reshape(g.reshape('x', g.int([6, 4])), g.int([3, 8])), ['Reshape'], [3, 8]],
  [
    'three in a row',
    (g) => g.reshape(g.reshape(g.reshape('x', g.int([-1])), g.int([4, 6])), g.int([-1, 2])),
    ['Reshape'],
    [12, 2],
  ],
  [
    'one back to a shape',
    (g) => g.reshape(g.reshape('x', g.int([6, 4])), g.shape('x')),
    ['Shape', 'Reshape'],
    [2, 3, 4],
  ],
  [
    'one that keeps a dimension',
    (g) => g.reshape(g.reshape('x', g.int([6, 4])), g.int([0, 2, 2])),
    ['Reshape', 'Reshape'],
    [6, 2, 2],
  ],
  [
    'one to a shape that is not known',
    (g) => g.reshape(g.reshape('x', g.int([6, 4])), g.concat([g.int([8]), g.int([3])], 0)),
    ['Reshape', 'Concat', 'Reshape'],
    [8, 3],
  ],
])('%s', async (_, build, ops, dims) => {
  const graph = emptyGraph(17)
  addInput(graph, 'x', DataType.FLOAT)
  const y = build(new Builder(graph, 'test'))
  addOutput(graph, y, DataType.FLOAT)
  mergeReshapes(graph, new ShapeMap())
  graph.prune()
  expect(graph.nodes.map(({ opType }) => opType)).toEqual(ops)
  const session = await openGraph(graph)
  const result = (await session.run({ x }))[y]
  expect(result.dims).toEqual(dims)
  expect(valuesOf(result)).toEqual(valuesOf(x))
  await session.dispose()
})
