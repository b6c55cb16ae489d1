import { expect, it } from 'vitest'
import { UnsupportedError } from '../../src/api/node.js'
import { checkDifferentiable, gradientPath } from '../../src/onnx/gradients/backward.js'
import { lowerFused } from '../../src/onnx/lower/lower.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { labelOf, listByOperator, operatorOf } from '../../src/onnx/view/operators.js'
import { addInput, addOutput, DataType, emptyGraph } from './toolkit.js'

it('the standard domain has two names', () => {
  expect(operatorOf({ domain: '', opType: 'Add' })).toBe('Add')
  expect(operatorOf({ domain: 'ai.onnx', opType: 'Add' })).toBe('Add')
  expect(operatorOf({ domain: 'com.microsoft', opType: 'Gelu' })).toBe('com.microsoft:Gelu')
})

it('its operators are lowered under both', () => {
  const graph = emptyGraph(23)
  const inputs = ['q', 'k', 'v'].map((name) => addInput(graph, name, DataType.FLOAT, [1, 2, 8]))
  const heads = { q_num_heads: 2, kv_num_heads: 2 }
  addOutput(graph, new Builder(graph, 'test').op('ai.onnx:Attention', inputs, heads), DataType.FLOAT)
  lowerFused(graph)
  expect(graph.nodes.map(operatorOf)).not.toContain('Attention')
  expect(graph.nodes.map(operatorOf)).toContain('Softmax')
})

it('nodes are named, the first few of each operator', () => {
  const graph = emptyGraph(17)
  const g = new Builder(graph, 'g')
  for (let i = 0; i < 5; i++) g.neg('x')
  g.add('x', 'x')
  graph.nodes[1].name = ''
  expect(labelOf(graph.nodes[0])).toBe('node g/Neg (Neg)')
  expect(listByOperator(graph.nodes.map((node) => [operatorOf(node), node]))).toBe(
    'Neg (g/Neg, g/Neg_1:0, g/Neg_2 and 2 more); Add (g/Add)',
  )
})

it.each(['__proto__', 'toString', 'constructor', 'hasOwnProperty'])(
  '%s is an operator like others that are not known',
  (op) => {
    const graph = emptyGraph(17)
    const x = addInput(graph, 'x', DataType.FLOAT, [2])
    const y = new Builder(graph, 'test').op(op, [x])
    addOutput(graph, y, DataType.FLOAT)
    lowerFused(graph)
    expect(graph.nodes.map(operatorOf)).toEqual([op])
    const path = gradientPath(graph, [x], [y])
    expect(() => checkDifferentiable(path)).toThrow(UnsupportedError)
    expect(() => checkDifferentiable(path)).toThrow(`no gradient through ${op}`)
  },
)

it.each([
  ['com.microsoft:GroupQueryAttention', { num_heads: 3, kv_num_heads: 2 }],
  ['com.microsoft:GroupQueryAttention', { num_heads: 4 }],
  ['com.microsoft:GroupQueryAttention', { num_heads: -4, kv_num_heads: 2 }],
  ['com.microsoft:MultiHeadAttention', {}],
  ['com.microsoft:Attention', { num_heads: 0 }],
  ['Attention', { q_num_heads: 4 }],
  ['Attention', { q_num_heads: 4, kv_num_heads: 3 }],
])('%s with heads %o is refused by name', (op, heads) => {
  const graph = emptyGraph(23)
  const inputs = ['q', 'k', 'v'].map((name) => addInput(graph, name, DataType.FLOAT, [1, 2, 12]))
  addOutput(graph, new Builder(graph, 'test').op(op, inputs, heads), DataType.FLOAT)
  expect(() => lowerFused(graph)).toThrow(UnsupportedError)
  expect(() => lowerFused(graph)).toThrow(/ query heads for -?\d+ key heads/)
})
