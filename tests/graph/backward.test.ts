import { describe, expect, it } from 'vitest'
import { UnsupportedError } from '../../src/base/errors.js'
import { serializeModel } from '../../src/formats/onnx/model.js'
import { buildBackward, checkDifferentiable, gradientPath } from '../../src/graph/backward.js'
import { Builder } from '../../src/graph/builder.js'
import type { Graph } from '../../src/graph/graph.js'
import { probeShapes, type ShapeMap } from '../../src/graph/shapes.js'
import { loadNodeRuntime } from '../../src/runtime/node-runtime.js'
import type { Feeds } from '../../src/runtime/runtime.js'
import { addInput, addOutput, DataType, emptyGraph, floats, floatTensor, openGraph, valuesOf } from './toolkit.js'

const runtime = await loadNodeRuntime()
const FLOAT = DataType.FLOAT

function shapesOf(graph: Graph, feeds: Feeds): Promise<ShapeMap> {
  return probeShapes(graph, (model) => runtime.createSession({ graph: serializeModel(model) }), [feeds, feeds])
}

function start(...names: string[]): { graph: Graph; g: Builder } {
  const graph = emptyGraph(17)
  for (const name of names) addInput(graph, name, FLOAT)
  return { graph, g: new Builder(graph, 'forward') }
}

/** Gradients of Σ y·seed by the inputs `wrt`. */
async function gradients(graph: Graph, y: string, wrt: string[], feeds: Feeds) {
  const shapes = await shapesOf(graph, feeds)
  const before = graph.nodes.length
  const g = new Builder(graph, 'backward')
  const dy = addInput(graph, 'dy', FLOAT)
  const result = buildBackward(g, shapes, new Map([[y, dy]]), wrt)
  graph.outputs = []
  for (const value of result.values()) addOutput(graph, value, FLOAT)
  const added = graph.nodes.slice(before).map(({ opType }) => opType)
  graph.prune()
  const session = await openGraph(graph)
  const { dims } = shapes.get(y)!
  const ones = floats(FLOAT, Array(dims.reduce((a, b) => a * b, 1)).fill(1), dims)
  const outputs = await session.run({ ...feeds, dy: ones })
  await session.dispose()
  return { added, of: (input: string) => outputs[result.get(input)!], result }
}

describe('the walk', () => {
  it('sums what flows back to a value that is read several times', async () => {
    const { graph, g } = start('x')
    const y = g.add(g.mul('x', 'x'), g.neg('x')) // x² − x
    const { of } = await gradients(graph, y, ['x'], { x: floats(FLOAT, [1, 2, 3], [3]) })
    expect(valuesOf(of('x'))).toEqual([1, 3, 5])
  })

  it('sums down what was broadcast, in front and within', async () => {
    const { graph, g } = start('a', 'b', 'c')
    const y = g.mul(g.add('a', 'b'), 'c') // (2, 3) + (3) , · (2, 1)
    const feeds = {
      a: floats(FLOAT, [1, 2, 3, 4, 5, 6], [2, 3]),
      b: floats(FLOAT, [1, 1, 1], [3]),
      c: floats(FLOAT, [2, 3], [2, 1]),
    }
    const { of } = await gradients(graph, y, ['a', 'b', 'c'], feeds)
    expect(valuesOf(of('a'))).toEqual([2, 2, 2, 3, 3, 3])
    expect(valuesOf(of('b'))).toEqual([5, 5, 5])
    expect(of('c').dims).toEqual([2, 1])
    expect(valuesOf(of('c'))).toEqual([9, 18])
  })

  it('builds nothing for what is not asked for', async () => {
    const { graph, g } = start('x', 'a')
    graph.addInitializer(floatTensor('w', FLOAT, [1, 2, 3, 4], [2, 2]))
    const y = g.op('Gemm', [g.op('Gemm', ['x', 'w']), 'a'])
    const feeds = { x: floats(FLOAT, [1, 2], [1, 2]), a: floats(FLOAT, [1, 0, 0, 1], [2, 2]) }
    const { added, of } = await gradients(graph, y, ['a'], feeds)
    expect(added).toEqual(['Gemm'])
    expect(valuesOf(of('a'))).toEqual([7, 7, 10, 10])
  })

  it('stops at a value that is asked for, though it is computed', async () => {
    const { graph, g } = start('x')
    const middle = g.op('Exp', ['x'])
    const y = g.mul(middle, middle)
    const { added, of } = await gradients(graph, y, [middle, 'x'], { x: floats(FLOAT, [0], [1]) })
    expect(valuesOf(of(middle))).toEqual([2])
    expect(added.filter((op) => op === 'Exp')).toEqual([])
  })

  it('joins the gradients of slices that cut a value in halves', async () => {
    const { graph, g } = start('x')
    const cut = (from: number, to: number) => g.op('Slice', ['x', g.int([from]), g.int([to]), g.int([-1])])
    const [left, right] = [cut(0, 2), cut(2, 2 ** 31)]
    const y = g.concat([g.neg(right), left], -1)
    const { added, of } = await gradients(graph, y, ['x'], { x: floats(FLOAT, [1, 2, 3, 4], [1, 4]) })
    expect(valuesOf(of('x'))).toEqual([1, 1, -1, -1])
    expect(added).not.toContain('Pad')
    expect(added).not.toContain('Add')
  })

  it('keeps apart slices that overlap or leave a gap', async () => {
    const { graph, g } = start('x')
    const cut = (from: number, to: number) => g.op('Slice', ['x', g.int([from]), g.int([to]), g.int([-1])])
    const y = g.add(g.add(cut(0, 2), cut(1, 3)), cut(1, 3))
    const { of } = await gradients(graph, y, ['x'], { x: floats(FLOAT, [1, 2, 3, 4], [1, 4]) })
    expect(valuesOf(of('x'))).toEqual([1, 3, 2, 0])
  })

  it('gives nothing for a value that the seed does not depend on', async () => {
    const { graph, g } = start('x', 'z')
    const y = g.neg('x')
    const { result } = await gradients(graph, y, ['x', 'z'], {
      x: floats(FLOAT, [1], [1]),
      z: floats(FLOAT, [1], [1]),
    })
    expect([...result.keys()]).toEqual(['x'])
  })
})

describe('the check before the walk', () => {
  it('names all nodes without a rule at once, by op', () => {
    const { graph, g } = start('x', 'other')
    const first = g.op('Det', ['x'], {}, 'one')
    const y = g.op('Det', [g.op('Mish', [first], {}, 'two')], {}, 'three')
    g.op('Celu', ['other'])
    const check = () => checkDifferentiable(gradientPath(graph, ['x'], [y]))
    expect(check).toThrow(UnsupportedError)
    expect(check).toThrow(/no gradient through Det \(forward\/one, forward\/three\); Mish \(forward\/two\)/)
    expect(check).not.toThrow(/Celu/)
  })

  it('passes shapes and other values that carry no gradient', () => {
    const { graph, g } = start('x')
    const y = g.reshape(g.neg('x'), g.op('Concat', [g.shape('x'), g.int([1])], { axis: 0 }))
    const path = gradientPath(graph, ['x'], [y])
    expect(path.nodes.map(({ opType }) => opType)).toEqual(['Neg', 'Reshape'])
    expect(() => checkDifferentiable(path)).not.toThrow()
  })
})
