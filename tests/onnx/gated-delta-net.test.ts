// GatedDeltaNet has no CPU kernel, so its rewritten form is compared with the recurrence, token by token.

import { expect, it } from 'vitest'
import { Random } from '../../src/core/base/random.js'
import { toLinearAttention } from '../../src/onnx/lower/gated-delta-net.js'
import { Builder } from '../../src/onnx/view/builder.js'
import type { Graph } from '../../src/onnx/view/graph.js'
import { relativeError } from '../model/golden.js'
import { addInput, addOutput, DataType, emptyGraph, floatTensor, normals, openGraph } from './toolkit.js'

const [TOKENS, KEY_HEADS, HEADS, KEY, VALUE] = [5, 2, 4, 3, 6]
const SHAPES = {
  query: [1, TOKENS, KEY_HEADS, KEY],
  key: [1, TOKENS, KEY_HEADS, KEY],
  value: [1, TOKENS, HEADS, VALUE],
  decay: [1, TOKENS, HEADS],
  beta: [1, TOKENS, HEADS],
  past: [1, HEADS, VALUE, KEY],
}
const A_LOG = [0.3, -0.5, 0.1, 0.8]
const BIAS = [0.2, 0.4, -0.3, 0.1]

function graphOf(packed: string): Graph {
  const graph = emptyGraph(22)
  const g = new Builder(graph, 'test')
  for (const [name, dims] of Object.entries(SHAPES)) addInput(graph, name, DataType.FLOAT, dims)
  graph.addInitializer(floatTensor('logarithm', DataType.FLOAT, A_LOG, [HEADS]))
  graph.addInitializer(floatTensor('bias', DataType.FLOAT, BIAS, [HEADS]))
  const { output } = g.node(
    'com.microsoft:GatedDeltaNet',
    ['query', 'key', 'value', packed, 'decay', 'beta', 'past', 'logarithm', 'bias'],
    { gate_activation: 'qwen', beta_activation: 'sigmoid', qk_l2_norm: 1, update_rule: 'gated_delta' },
    2,
  )
  for (const name of output) addOutput(graph, name, DataType.FLOAT)
  return graph
}

it('gives the outputs and the state of the recurrence', async () => {
  const random = new Random(5, 'gated delta net')
  const feeds = Object.fromEntries(Object.entries(SHAPES).map(([name, dims]) => [name, normals(random, dims)]))
  const graph = graphOf('')
  const [output, present] = graph.outputs.map(({ name }) => name)
  toLinearAttention(graph)
  const session = await openGraph(graph)
  const results = await session.run(feeds)
  await session.dispose()

  const at = (name: keyof typeof SHAPES, ...place: number[]) => {
    const dims = SHAPES[name]
    return Number(feeds[name].data[place.reduce((index, entry, axis) => index * dims[axis + 1] + entry, 0)])
  }
  const vector = (name: 'query' | 'key' | 'value', token: number, head: number, size: number) =>
    Array.from({ length: size }, (_, i) => at(name, token, head, i))
  const unit = (values: number[]) => values.map((value) => value / Math.hypot(...values))
  const dot = (a: number[], b: number[]) => a.reduce((sum, value, i) => sum + value * b[i], 0)
  const outputs = new Float32Array(TOKENS * HEADS * VALUE)
  const states = new Float32Array(HEADS * VALUE * KEY)
  for (let head = 0; head < HEADS; head++) {
    const keyHead = Math.floor(head / (HEADS / KEY_HEADS))
    let state = Array.from({ length: VALUE }, (_, i) => Array.from({ length: KEY }, (_, j) => at('past', head, i, j)))
    for (let token = 0; token < TOKENS; token++) {
      const [q, k] = (['query', 'key'] as const).map((name) => unit(vector(name, token, keyHead, KEY)))
      const v = vector('value', token, head, VALUE)
      const kept = Math.exp(-Math.exp(A_LOG[head]) * Math.log1p(Math.exp(at('decay', token, head) + BIAS[head])))
      const share = 1 / (1 + Math.exp(-at('beta', token, head)))
      state = state.map((row) => row.map((entry) => kept * entry))
      state = state.map((row, i) => row.map((entry, j) => entry + share * (v[i] - dot(row, k)) * k[j]))
      state.forEach((row, i) => {
        outputs[(token * HEADS + head) * VALUE + i] = dot(row, q) / Math.sqrt(KEY)
      })
    }
    state.flat().forEach((entry, i) => {
      states[head * VALUE * KEY + i] = entry
    })
  }
  expect(results[output].dims).toEqual(SHAPES.value)
  expect(results[present].dims).toEqual(SHAPES.past)
  expect(relativeError(results[output].data as Float32Array, outputs)).toBeLessThan(1e-5)
  expect(relativeError(results[present].data as Float32Array, states)).toBeLessThan(1e-5)
})

it('refuses packed texts by name', () => {
  const graph = graphOf('query')
  expect(() => toLinearAttention(graph)).toThrow(/GatedDeltaNet.*: it reads several texts in one row, by cu_seqlens/)
})
