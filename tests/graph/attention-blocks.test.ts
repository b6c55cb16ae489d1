// Attention in blocks of queries against attention whole: masks that hide keys before and behind a block's, squashed
// scores, shared key heads, more rows in a block than there are queries.

import { expect, it } from 'vitest'
import { Random } from '../../src/base/random.js'
import { serializeModel } from '../../src/formats/onnx/model.js'
import { buildBackward, type CustomGradients, gradientPath } from '../../src/graph/gradients/backward.js'
import { probeShapes } from '../../src/graph/shapes/shapes.js'
import { attendInBlocks } from '../../src/graph/training/attention-blocks.js'
import { Builder, type Value } from '../../src/graph/view/builder.js'
import { loadNodeRuntime } from '../../src/runtime/node/runtime.js'
import type { Feeds } from '../../src/runtime/runtime.js'
import { relativeError } from './golden.js'
import { addInput, addOutput, DataType, emptyGraph, normals, openGraph } from './toolkit.js'

const runtime = await loadNodeRuntime()
const LOWEST = -3.4028234663852886e38

interface Case {
  /** Whether a query sees a key; undefined: there is no mask. */
  sees?: (query: number, key: number) => boolean
  /** What is added to the score of a key that is not seen. Default: the lowest float. */
  hidden?: number
  /** Axes before those of queries and keys. */
  leading?: readonly number[]
  keyLeading?: readonly number[]
  squash?: boolean
  /** Zero in place of a number that is none, as exporters do. */
  guard?: boolean
}

const causal = (query: number, key: number) => key <= query
const CASES: Record<string, Case> = {
  'no mask': {},
  'a causal mask': { sees: causal },
  'a sliding window': { sees: (query, key) => causal(query, key) && query - key < 3, hidden: Number.NEGATIVE_INFINITY },
  'records in one row': { sees: (query, key) => causal(query, key) && query >> 2 === key >> 2, hidden: -1e9 },
  'keys that nobody sees': { sees: (_, key) => key < 6 },
  'a mask too weak to hide': { sees: causal, hidden: -3 },
  'squashed scores': { sees: causal, squash: true },
  'shared key heads': { sees: causal, leading: [2, 2, 3], keyLeading: [2, 2, 1] },
  'a guard': { sees: causal, guard: true },
}

const WIDTH = 4

it.each(Object.entries(CASES))('%s', async (_, { sees, hidden = LOWEST, ...shapes }) => {
  const { leading = [2, 3], keyLeading = leading, squash, guard } = shapes
  const build = () => {
    const graph = emptyGraph(18)
    const axes = leading.map((_, i) => `axis ${i}`)
    for (const name of ['q', 'k', 'v', 'weights']) addInput(graph, name, DataType.FLOAT, [...axes, 'tokens', WIDTH])
    const g = new Builder(graph, 'test')
    const swap = [...leading.keys(), leading.length + 1, leading.length]
    let scores = g.mul(g.matmul('q', g.transpose('k', swap)), g.float(0.5))
    if (squash) scores = g.mul(g.op('Tanh', [g.div(scores, g.float(2))]), g.float(2))
    if (sees) scores = g.add(scores, addInput(graph, 'mask', DataType.FLOAT, ['one', 'alone', 'tokens', 'keys']))
    let p = g.op('Softmax', [scores], { axis: -1 })
    if (guard) p = g.where(g.op('IsNaN', [p]), g.float(0), p)
    return { graph, g, output: g.matmul(p, 'v') }
  }
  const feedsOf = (tokens: number): Feeds => {
    const random = new Random(tokens, 'attention')
    const [own, ofKeys] = [leading, keyLeading].map((axes) => [...axes, tokens, WIDTH])
    const mask = Array.from({ length: tokens ** 2 }, (_, i) =>
      sees === undefined || sees(Math.floor(i / tokens), i % tokens) ? 0 : hidden,
    )
    return {
      ...{ q: normals(random, own), k: normals(random, ofKeys), v: normals(random, ofKeys) },
      weights: normals(random, own),
      ...(sees && { mask: { type: 'float32', data: Float32Array.from(mask), dims: [1, 1, tokens, tokens] } }),
    }
  }
  const run = async (rows: number | undefined, tokens: number) => {
    const { graph, g, output } = build()
    const wrt = ['q', 'k', 'v']
    const { values } = gradientPath(graph, wrt, [output])
    const points = [3, 7].map(feedsOf) as [Feeds, Feeds]
    for (const point of points) delete point.weights
    const inputs = graph.inputs
    graph.inputs = inputs.filter(({ name }) => name !== 'weights')
    addOutput(graph, output, DataType.FLOAT)
    const shapes = await probeShapes(graph, (model) => runtime.createSession({ graph: serializeModel(model) }), points)
    graph.inputs = inputs
    const custom: CustomGradients = new Map()
    if (rows !== undefined) attendInBlocks({ graph, shapes, rows, customGradients: custom, onPath: values })
    const gradients = buildBackward(g, shapes, new Map<Value, Value>([[output, 'weights']]), wrt, { custom })
    for (const name of gradients.values()) addOutput(graph, name, DataType.FLOAT)
    graph.prune()
    expect(graph.nodes.some(({ opType }) => opType === 'Softmax')).toBe(rows === undefined)
    const session = await openGraph(graph)
    const results = await session.run(feedsOf(tokens))
    await session.dispose()
    return [output, ...wrt.map((name) => gradients.get(name) as Value)].map(
      (name) => results[name].data as Float32Array,
    )
  }
  for (const [rows, tokens] of [
    [4, 11],
    [3, 9],
    [20, 11],
  ] as const) {
    const [whole, parted] = [await run(undefined, tokens), await run(rows, tokens)]
    whole.forEach((expected, i) => {
      expect(relativeError(parted[i], expected), `${['output', 'q', 'k', 'v'][i]}, ${rows} rows`).toBeLessThan(1e-5)
    })
  }
})
