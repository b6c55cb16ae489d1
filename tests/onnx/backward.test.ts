import { describe, expect, it } from 'vitest'
import { type Feeds, UnsupportedError } from '../../src/api/node.js'
import { serializeModel } from '../../src/onnx/format/model.js'
import { buildBackward, checkDifferentiable, gradientPath } from '../../src/onnx/gradients/backward.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import { probeShapes, type ShapeMap } from '../../src/onnx/shapes/shapes.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { Graph } from '../../src/onnx/view/graph.js'
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

/** Returns the gradients of Σ y·seed with respect to the inputs `wrt`. */
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

  it('ends with the gradient of what is read last, whatever the order that was asked for', async () => {
    const { graph, g } = start('x', 'a', 'b', 'c')
    const y = g.mul(g.mul(g.mul('x', 'a'), 'b'), 'c')
    const feeds = Object.fromEntries(['x', 'a', 'b', 'c'].map((name) => [name, floats(FLOAT, [1, 2], [2])]))
    for (const wrt of [
      ['c', 'a', 'b'],
      ['b', 'c', 'a'],
    ]) {
      const { result } = await gradients(new Graph(graph.toModel()), y, wrt, feeds)
      expect([...result.keys()]).toEqual(['a', 'b', 'c'])
    }
    const { result } = await gradients(graph, y, ['c', 'a', 'b'], feeds)
    const places = ['a', 'b', 'c'].map((name) => graph.nodes.indexOf(graph.producer(result.get(name)!)!))
    expect(places).toEqual(places.toSorted((one, other) => one - other))
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

  it('sums the gradients of slices that overlap or leave a gap', async () => {
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

describe('patterns of two nodes', () => {
  const wave = (dims: number[], phase: number) =>
    floats(
      FLOAT,
      Array.from({ length: dims.reduce((a, b) => a * b) }, (_, i) => Math.sin(phase + 1.3 * i)),
      dims,
    )

  /** Returns the largest difference between gradients and central differences of Σ y. */
  async function worst(graph: Graph, y: string, feeds: Feeds): Promise<{ error: number; added: string[] }> {
    addOutput(graph, y, FLOAT)
    const forward = await openGraph(graph)
    const wrt = Object.keys(feeds)
    const sum = async (input: string, i: number, step: number) => {
      const data = Float32Array.from(valuesOf(feeds[input]))
      data[i] += step
      const outputs = await forward.run({ ...feeds, [input]: { ...feeds[input], data } })
      return valuesOf(outputs[y]).reduce((total, value) => total + value, 0)
    }
    const numeric: number[][] = []
    for (const input of wrt) {
      const slopes: number[] = []
      for (let i = 0; i < feeds[input].data.length; i++) {
        slopes.push(((await sum(input, i, 0.02)) - (await sum(input, i, -0.02))) / 0.04)
      }
      numeric.push(slopes)
    }
    await forward.dispose()
    const { of, added } = await gradients(graph, y, wrt, feeds)
    const errors = wrt.flatMap((input, k) => valuesOf(of(input)).map((value, i) => Math.abs(value - numeric[k][i])))
    return { error: Math.max(...errors), added }
  }

  it.each([
    ['its factors in order', 0, [2, 3], 5],
    ['its factors swapped', 1, [2, 3], 5],
    ['times what is broadcast', 0, [3], 6],
  ])('SiLU, %s', async (_, order, dims, count) => {
    const { graph, g } = start('x', 'z')
    const sigma = g.op('Sigmoid', ['x'])
    const y = g.mul(order === 0 ? g.mul('x', sigma) : g.mul(sigma, 'x'), 'z')
    const forward = graph.nodes.length
    const { error } = await worst(graph, y, { x: wave([2, 3], 0), z: wave(dims, 1) })
    expect(error).toBeLessThan(1e-3)
    expect(graph.nodes).toHaveLength(forward + count)
  })

  it('SiLU whose sigmoid is read elsewhere too', async () => {
    const { graph, g } = start('x')
    const sigma = g.op('Sigmoid', ['x'])
    const { error } = await worst(graph, g.add(g.mul('x', sigma), g.mul(sigma, sigma)), { x: wave([2, 3], 0) })
    expect(error).toBeLessThan(1e-3)
  })

  it('attention', async () => {
    const { graph, g } = start('x', 'v', 'z')
    const p = g.op('Softmax', ['x'], { axis: -1 })
    const y = g.mul(g.matmul(p, 'v'), 'z')
    const feeds = { x: wave([2, 3, 4], 0), v: wave([2, 4, 2], 1), z: wave([2, 3, 2], 2) }
    const { error, added } = await worst(graph, y, feeds)
    expect(error).toBeLessThan(1e-3)
    expect(added.filter((op) => op === 'ReduceSum')).toHaveLength(1)
  })

  it.each([true, false])('attention that exporters guard against rows without a key, %s', async (isProduct) => {
    const { graph, g } = start('x', 'v', 'z')
    const p = g.op('Softmax', ['x'], { axis: -1 })
    const guarded = g.where(g.op('IsNaN', [p]), g.float(0), p)
    const y = g.mul(isProduct ? g.matmul(guarded, 'v') : g.mul(guarded, g.reduceSum('v', [-1], 0)), 'z')
    const feeds = { x: wave([2, 3, 4], 0), v: wave([2, 4, 2], 1), z: wave([2, 3, 2], 2) }
    if (!isProduct) Object.assign(feeds, { v: wave([2, 3, 4, 2], 1), z: wave([2, 3, 4], 2) })
    const { error, added } = await worst(graph, y, feeds)
    expect(error).toBeLessThan(1e-3)
    expect(added).not.toContain('Where')
  })

  it.each<[string, (g: Builder, p: string) => string]>([
    ['read twice', (g, p) => g.add(g.matmul(p, 'v'), g.matmul(p, g.neg('v')))],
    ['multiplied from the left', (g, p) => g.matmul(g.transpose('v', [0, 2, 1]), g.transpose(p, [0, 2, 1]))],
    ['multiplied by a batch that it is broadcast to', (g, p) => g.matmul(p, g.unsqueeze('v', [0]))],
  ])('a softmax %s', async (_, read) => {
    const { graph, g } = start('x', 'v', 'z')
    const y = read(g, g.op('Softmax', ['x'], { axis: -1 }))
    const { error } = await worst(graph, g.mul(y, 'z'), {
      x: wave([2, 3, 4], 0),
      v: wave([2, 4, 2], 1),
      z: wave([1], 2),
    })
    expect(error).toBeLessThan(1e-3)
  })
})
