// `gradients` of lowrank/onnx on graphs that PyTorch exported, in plain onnxruntime-node: against PyTorch's gradients,
// against central differences, and what it refuses.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as ort from 'onnxruntime-node'
import { afterAll, describe, expect, it } from 'vitest'
import { serializeModel } from '../../src/onnx/format/model.js'
import { fromBinary } from '../../src/onnx/format/protobuf.js'
import { externalTensor, inlineBytes, ModelProtoSchema } from '../../src/onnx/format/tensors.js'
import { type Feeds, type GradientOptions, gradients } from '../../src/onnx/node/onnx.js'
import { gradients as inPages } from '../../src/onnx/onnx.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { addInput, addOutput, DataType, emptyGraph, floatTensor } from './toolkit.js'

const SPIRALS = 'examples/spirals.onnx'
const TRANSFORMER = 'tests/golden/onnx-gradients/transformer.onnx'

interface Truth {
  inputs: { dims: number[]; data: number[] }[]
  loss: number
  gradients: Record<string, number[]>
}
const golden: Record<'spirals' | 'transformer', Truth> = JSON.parse(
  readFileSync('tests/golden/onnx-gradients/gradients.json', 'utf8'),
)

const folder = mkdtempSync(join(tmpdir(), 'lowrank-gradients-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const floats = (data: ArrayLike<number>, dims: readonly number[]) =>
  new ort.Tensor('float32', Float32Array.from(data), dims)
const int64s = (data: readonly number[], dims: readonly number[]) =>
  new ort.Tensor('int64', BigInt64Array.from(data, BigInt), dims)
const tensorsOf = (feeds: Feeds) =>
  Object.fromEntries(
    Object.entries(feeds).map(([name, { type, data, dims }]) => [
      name,
      new ort.Tensor(type as 'float32', data as Float32Array, dims),
    ]),
  )

const spirals = (size: number) => ({
  points: floats(new Float32Array(2 * size), [size, 2]),
  labels: int64s(Array(size).fill(0), [size]),
})
const transformer = (size: number) => ({ tokens: int64s(Array(2 * size * size).fill(1), [size, 2 * size]) })

/** Runs a graph and returns the numbers of its outputs. */
async function run(graph: Uint8Array, feeds: Record<string, ort.Tensor>): Promise<Record<string, number[]>> {
  const session = await ort.InferenceSession.create(graph)
  const results = await session.run(feeds)
  await session.release()
  return Object.fromEntries(
    Object.entries(results).map(([name, { data }]) => [name, Array.from(data as Float32Array, Number)]),
  )
}

function expectClose(got: readonly number[], wanted: readonly number[], tolerance: number): void {
  expect(got).toHaveLength(wanted.length)
  const largest = Math.max(...wanted.map(Math.abs))
  expect(Math.max(...wanted.map((value, i) => Math.abs(value - got[i])))).toBeLessThanOrEqual(tolerance * largest)
}

describe('gradients that PyTorch computes in float64', () => {
  it('of a network, by all of its weights and by its input', async () => {
    const { inputs, loss, gradients: wanted } = golden.spirals
    const weights = Object.keys(wanted).filter((name) => !name.startsWith('input'))
    const result = await gradients(SPIRALS, { of: 'loss', by: [...weights, 'points'], feeds: spirals })
    expect(Object.keys(result.weights)).toEqual(weights)
    const feeds = { points: floats(inputs[0].data, inputs[0].dims), labels: int64s(inputs[1].data, inputs[1].dims) }
    const got = await run(result.graph, { ...feeds, ...tensorsOf(result.weights) })
    expectClose(got.loss, [loss], 1e-6)
    expect(got.logits).toHaveLength(6)
    for (const name of weights) expectClose(got[result.gradients[name]], wanted[name], 1e-5)
    expectClose(got[result.gradients.points], wanted['input 0'], 1e-5)
  })

  it('of a layer with attention, by all of its weights', async () => {
    const { inputs, loss, gradients: wanted } = golden.transformer
    const by = Object.keys(wanted)
    const result = await gradients(readFileSync(TRANSFORMER), { of: 'loss', by, feeds: transformer })
    const got = await run(result.graph, {
      tokens: int64s(inputs[0].data, inputs[0].dims),
      ...tensorsOf(result.weights),
    })
    expectClose(got.loss, [loss], 1e-6)
    for (const name of by) expectClose(got[result.gradients[name]], wanted[name], 1e-5)
  })
})

describe('a graph of float64', () => {
  /** y = Σ tanh(x·w)·x over the last axis, (n) for x (n, 3) */
  function graphOf(): Uint8Array {
    const graph = emptyGraph(17)
    const g = new Builder(graph, 'forward', DataType.DOUBLE)
    addInput(graph, 'x', DataType.DOUBLE, ['n', 3])
    graph.addInitializer(floatTensor('w', DataType.DOUBLE, [0.3, -0.2, 0.5, 0.9, -0.4, 0.1, 0.7, 0.2, -0.6], [3, 3]))
    const hidden = g.op('Tanh', [g.matmul('x', 'w')], {}, 'hidden')
    graph.rename(hidden, 'h')
    graph.rename(g.reduceSum(g.mul('h', 'x'), [1], 0), 'y')
    addOutput(graph, 'y', DataType.DOUBLE)
    return serializeModel(graph.toModel())
  }
  const x = Float64Array.of(0.4, -1.2, 0.8, 0.3, 0.5, -0.7)
  const doubles = (data: ArrayLike<number>, dims: number[]) => new ort.Tensor('float64', Float64Array.from(data), dims)
  const feeds = (size: number) => ({ x: doubles(new Float64Array(3 * size), [size, 3]) })

  it.each([
    ['the sum of its elements', undefined, [1, 1]],
    ['a seed that is fed', 'dy', [2, -0.5]],
  ])('has the slopes of central differences, for %s', async (_, seed, weights) => {
    const options: GradientOptions = { of: 'y', by: ['x', 'w'], feeds, ...(seed && { seed }) }
    const result = await gradients(graphOf(), options)
    const w = Array.from(result.weights.w.data as Float64Array)
    const at = (x: ArrayLike<number>, w: ArrayLike<number>) =>
      run(result.graph, {
        x: doubles(x, [2, 3]),
        w: doubles(w, [3, 3]),
        ...(seed && { [seed]: doubles(weights, [2]) }),
      })
    const loss = async (x: ArrayLike<number>, w: ArrayLike<number>) => {
      const { y } = await at(x, w)
      return y.reduce((sum, value, i) => sum + value * weights[i], 0)
    }
    const got = await at(x, w)
    const step = 1e-5
    for (const [name, values, moved] of [
      ['x', x, (changed: number[]) => loss(changed, w)],
      ['w', w, (changed: number[]) => loss(x, changed)],
    ] as const) {
      for (const i of values.keys()) {
        const [up, down] = [step, -step].map((by) => moved(Array.from(values).with(i, values[i] + by)))
        expect(got[result.gradients[name]][i]).toBeCloseTo(((await up) - (await down)) / (2 * step), 8)
      }
    }
  })

  it('differentiates by a value in between, and gives out a value that was no output', async () => {
    const result = await gradients(graphOf(), { of: 'y', by: ['h'], feeds, runtime: ort })
    expect(result.weights).toEqual({})
    const got = await run(result.graph, { x: doubles(x, [2, 3]) })
    expect(got[result.gradients.h]).toEqual([...x])
    const ofHidden = await gradients(graphOf(), { of: 'h', by: ['x'], feeds })
    expect(Object.keys(await run(ofHidden.graph, { x: doubles(x, [2, 3]) })).sort()).toEqual(['dh/dx', 'h', 'y'])
  })
})

it('takes a static graph without feeds, and weights in another file', async () => {
  const model = fromBinary(ModelProtoSchema, readFileSync(SPIRALS))
  const graph = model.graph!
  for (const input of graph.input) {
    const type = input.type!.value
    if (type.case === 'tensorType') type.value.shape!.dim[0].value = { case: 'dimValue', value: 3n }
  }
  const contents = graph.initializer.map((tensor) => inlineBytes(tensor, SPIRALS))
  let offset = 0
  graph.initializer = graph.initializer.map((tensor, i) => {
    const { byteLength } = contents[i]
    offset += byteLength
    return externalTensor(tensor, { location: 'spirals.bin', offset: offset - byteLength, byteLength })
  })
  writeFileSync(join(folder, 'spirals.bin'), Buffer.concat(contents))
  writeFileSync(join(folder, 'spirals.onnx'), serializeModel(model))
  const by = ['out.weight']
  const { graph: bytes, weights, gradients: names } = await gradients(join(folder, 'spirals.onnx'), { of: 'loss', by })
  writeFileSync(join(folder, 'with-gradients.onnx'), bytes)
  const session = await ort.InferenceSession.create(join(folder, 'with-gradients.onnx'))
  const { inputs, gradients: wanted } = golden.spirals
  const got = await session.run({
    points: floats(inputs[0].data, inputs[0].dims),
    labels: int64s(inputs[1].data, inputs[1].dims),
    ...tensorsOf(weights),
  })
  await session.release()
  expectClose(Array.from(got[names['out.weight']].data as Float32Array), wanted['out.weight'], 1e-5)
  await expect(gradients(readFileSync(join(folder, 'spirals.onnx')), { of: 'loss', by })).rejects.toThrow(
    /out\.weight: its values are in another file.*Give the path/,
  )
})

describe('what is refused, and how', () => {
  const options = { of: 'loss', by: ['points'], feeds: spirals }
  const halves = () => {
    const graph = emptyGraph(17)
    addInput(graph, 'x', DataType.FLOAT16, [2])
    graph.rename(new Builder(graph, 'g').op('Tanh', ['x']), 'y')
    addOutput(graph, 'y', DataType.FLOAT16)
    return serializeModel(graph.toModel())
  }
  const rounded = () => {
    const graph = emptyGraph(17)
    addInput(graph, 'x', DataType.FLOAT, [2])
    graph.rename(new Builder(graph, 'g').op('Floor', ['x']), 'y')
    addOutput(graph, 'y', DataType.FLOAT)
    return serializeModel(graph.toModel())
  }
  it.each<[string, Uint8Array | string, GradientOptions, RegExp]>([
    ['an unknown value', SPIRALS, { ...options, of: 'los' }, /^of: the graph has no value "los"\. Did you mean loss\?/],
    ['an unknown input', SPIRALS, { ...options, by: ['point'] }, /^by: .*"point"\. Did you mean points\?/],
    ['an unknown option', SPIRALS, { ...options, wrt: [] } as never, /wrt/],
    [
      'feeds that lack an input',
      SPIRALS,
      { of: 'loss', by: ['points'] },
      /^feeds: .*must give them: points, labels; exp/,
    ],
    ['integers', SPIRALS, { ...options, by: ['labels'] }, /^labels: .*float32 or float64; expected FLOAT, got INT64/],
    ['16-bit floats', halves(), { of: 'y', by: ['x'] }, /^[xy]: .*got FLOAT16\. If the graph .*float32/],
    ['what has no slope', rounded(), { of: 'y', by: ['x'] }, /^by: y does not depend on x, .* such as Floor/],
    ['a seed that is taken', SPIRALS, { ...options, seed: 'logits' }, /^seed: the graph has a value logits already/],
    ['bytes of something else', new Uint8Array(64), { ...options }, /^graph: not an ONNX model/],
    ['a missing file', 'nowhere.onnx', options, /^nowhere\.onnx: cannot be read: ENOENT/],
  ])('%s', async (_, graph, given, message) => {
    await expect(gradients(graph, given)).rejects.toThrow(message)
  })

  it('names all nodes without a gradient before anything else', async () => {
    const graph = emptyGraph(17)
    const g = new Builder(graph, 'g')
    addInput(graph, 'x', DataType.FLOAT, [2])
    graph.rename(g.op('Asinh', [g.op('Atan', ['x'])]), 'y')
    addOutput(graph, 'y', DataType.FLOAT)
    await expect(gradients(serializeModel(graph.toModel()), { of: 'y', by: ['x'] })).rejects.toThrow(
      /^gradients: no gradient through Atan \(g\/Atan\); Asinh \(g\/Asinh\)\. Export the graph in another way/,
    )
  })

  it('in pages, a path, and a missing runtime', async () => {
    await expect(inPages(SPIRALS, options)).rejects.toThrow(/^graph: outside of Node, .*Uint8Array/)
    await expect(inPages(readFileSync(SPIRALS), options)).rejects.toThrow(/^runtime: .*onnxruntime-web/)
    const { gradients: names } = await inPages(readFileSync(SPIRALS), { ...options, runtime: ort })
    expect(names).toEqual({ points: 'dloss/dpoints' })
  })
})
