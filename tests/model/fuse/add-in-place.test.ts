import { expect, it } from 'vitest'
import { addInPlace } from '../../../src/model/fuse/for-training.js'
import { type ProbedShape, ShapeMap } from '../../../src/onnx/shapes/shapes.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import {
  addInput,
  addOutput,
  DataType,
  emptyGraph,
  floats,
  floatTensor,
  openGraph,
  valuesOf,
} from '../../onnx/toolkit.js'

const wave = (length: number) => Array.from({ length }, (_, i) => Math.sin(1.3 * i))
const isFixed = (dims: number[]): ProbedShape => ({ dims, second: dims })

/** A graph of y = low·B·2 + x·W with 3 rows and `d` columns. `rows` are the rows of the product that is added to. */
function product(d: number, rows: number) {
  const graph = emptyGraph(17)
  const inputs = { x: [rows, 4], low: [3, 2], b: [2, d] }
  for (const name of Object.keys(inputs)) addInput(graph, name, DataType.FLOAT)
  graph.addInitializer(floatTensor('w', DataType.FLOAT, wave(4 * d), [4, d]))
  const g = new Builder(graph, 'test')
  const base = g.op('Gemm', ['x', 'w'])
  const y = g.op('Gemm', ['low', 'b', base], { alpha: { float: 2 } })
  const last = g.neg(y)
  addOutput(graph, last, DataType.FLOAT)
  const shapes = new ShapeMap([
    ['b', isFixed([2, d])],
    [base, isFixed([rows, d])],
    [y, isFixed([3, d])],
  ])
  const feeds = Object.entries(inputs).map(([name, dims]) => {
    return [name, floats(DataType.FLOAT, wave(dims[0] * dims[1]), dims)] as const
  })
  const run = async () => {
    const session = await openGraph(graph)
    const result = (await session.run(Object.fromEntries(feeds)))[last]
    await session.dispose()
    return valuesOf(result)
  }
  return { graph, g, base, shapes, run }
}

it.each([
  ['a wide product', 512, 3, true],
  ['a narrow one', 256, 3, false],
  ['one whose sum is broadcast', 512, 1, false],
])('%s', async (_, d, rows, isChanged) => {
  const { graph, shapes, run } = product(d, rows)
  const before = await run()
  addInPlace(graph, shapes)
  expect(graph.nodes.some(({ opType }) => opType === 'FusedConv')).toBe(isChanged)
  expect(await run()).toEqual(before)
})

it('keeps a sum that something else reads too', async () => {
  const { graph, g, base, shapes, run } = product(512, 3)
  addOutput(graph, g.neg(base), DataType.FLOAT)
  addInPlace(graph, shapes)
  expect(graph.nodes.map(({ opType }) => opType)).not.toContain('FusedConv')
  await run()
})
