// Gradients of matrix products. ONNX Runtime would precompute the Transpose of a weight and keep a second copy of it,
// so products with a 2-D right side use Gemm, whose transB costs nothing.

import { mapShape } from '../shapes/shapes.js'
import { floatAttribute, intAttribute, intsAttribute, stringAttribute } from '../view/attributes.js'
import type { Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import {
  type GradientContext,
  type GradientRule,
  once,
  range,
  rankOf,
  refuse,
  reshapeLike,
  shapeOf,
  sumTo,
} from './context.js'

export const PRODUCTS: Readonly<Record<string, GradientRule>> = {
  // y = a·b      da = dy·bᵀ   db = aᵀ·dy
  MatMul: (context) => {
    const [a, b] = context.inputs
    if (rankOf(context, a) === 1 || rankOf(context, b) === 1) return vectorProduct(context)
    return rankOf(context, b) === 2 ? linearProduct(context) : batchedProduct(context)
  },

  // y = α·a'·b' + β·c, a' = a or aᵀ      da' = α·dy·b'ᵀ   db' = α·a'ᵀ·dy   dc = β·dy
  Gemm: (context) => {
    const { g, node, inputs, outputs, dy } = context
    const beta = floatAttribute(node, 'beta', 1)
    return [
      ...transposingProduct(context, 'Gemm'),
      () => {
        const dc = beta === 1 ? dy : g.mul(dy, g.float(beta))
        return sumTo(g, dc, shapeOf(context, outputs[0]), shapeOf(context, inputs[2]))
      },
    ]
  },

  // y = Σ a·b·… over the letters that y lacks      da = Σ dy·b·… over the letters that a lacks
  Einsum: (context) => {
    const { g, node, inputs, dy } = context
    const equation = stringAttribute(node, 'equation', '').replaceAll(' ', '')
    const [left, right] = equation.split('->')
    const terms = left.split(',')
    if (right === undefined || equation.includes('.') || terms.some((term) => new Set(term).size < term.length)) {
      refuse(context, `the gradient of ${equation} is not implemented`)
    }
    return terms.map((term, i) => () => {
      const factors = [right, ...terms.toSpliced(i, 1)]
      const isGiven = (letter: string) => factors.some((factor) => factor.includes(letter))
      const kept = [...term].filter(isGiven).join('')
      const given = [dy, ...inputs.toSpliced(i, 1)]
      const product = g.op('Einsum', given, { equation: `${factors.join()}->${kept}` })
      const summed = range(term.length).filter((axis) => !isGiven(term[axis]))
      return summed.length === 0 ? product : g.expand(g.unsqueeze(product, summed), g.shape(inputs[i]))
    })
  },

  // y = α·a'·b', leading axes broadcast      da' = α·dy·b'ᵀ   db' = α·a'ᵀ·dy
  'com.microsoft:FusedMatMul': (context) => {
    const { node, inputs } = context
    const ranks = inputs.map((input) => rankOf(context, input))
    if (Math.min(...ranks) < 2 || intAttribute(node, 'transBatchA', 0) || intAttribute(node, 'transBatchB', 0)) {
      refuse(context, 'the gradient with a vector or with transposed batch axes is not implemented')
    }
    return transposingProduct(context, 'com.microsoft:FusedMatMul').map(
      (thunk, i) => () => sumBatch(context, thunk(), inputs[i]),
    )
  },
}

function transposingProduct({ g, node, inputs: [a, b], dy }: GradientContext, op: string): [() => Value, () => Value] {
  const alpha = { float: floatAttribute(node, 'alpha', 1) }
  const transA = intAttribute(node, 'transA', 0)
  const transB = intAttribute(node, 'transB', 0)
  return [
    () =>
      transA
        ? g.op(op, [b, dy], { alpha, transA: transB, transB: 1 })
        : g.op(op, [dy, b], { alpha, transB: 1 - transB }),
    () =>
      transB
        ? g.op(op, [dy, a], { alpha, transA: 1, transB: transA })
        : g.op(op, [a, dy], { alpha, transA: 1 - transA }),
  ]
}

/** a (…, n, k) @ b (k, d): a is flattened to the rows of a 2-D product. */
function linearProduct(context: GradientContext): ReturnType<GradientRule> {
  const { g, inputs, outputs, dy } = context
  const [a, b] = inputs
  const dyRows = once(() => inRows(context, dy, rankOf(context, outputs[0])))
  return [
    () => outOfRows(context, g.op('Gemm', [dyRows(), b], { transB: 1 }), a),
    () => g.op('Gemm', [inRows(context, a, rankOf(context, a)), dyRows()], { transA: 1 }),
  ]
}

/** The gradients of a (…, n, k) @ b (…, k, d), whose leading axes broadcast. */
function batchedProduct(context: GradientContext): ReturnType<GradientRule> {
  const { g, inputs, dy } = context
  const [a, b] = inputs
  return [
    () => sumBatch(context, g.matmul(dy, transposeLast(context, b, rankOf(context, b))), a),
    () => sumBatch(context, g.matmul(transposeLast(context, a, rankOf(context, a)), dy), b),
  ]
}

function sumBatch(context: GradientContext, gradient: Value, input: Value): Value {
  const y = shapeOf(context, context.outputs[0])
  const to = shapeOf(context, input)
  const stretch = (dims: readonly number[], last: readonly number[]) => [...dims.slice(0, -2), ...last.slice(-2)]
  return sumTo(context.g, gradient, { dims: stretch(y.dims, to.dims), second: stretch(y.second, to.second) }, to)
}

/** The gradients of products with a vector, a (…, n, k) @ b (k) or a (k) @ b (…, k, d), by Mul and sums, not MatMul. */
function vectorProduct(context: GradientContext): ReturnType<GradientRule> {
  const { g, inputs, dy } = context
  const [a, b] = inputs
  if (rankOf(context, b) === 1) {
    const column = once(() => g.unsqueeze(dy, [-1])) // (…, n, 1)
    return [() => g.mul(column(), b), () => sumTo(g, g.mul(column(), a), shapeOf(context, a), shapeOf(context, b))]
  }
  const row = once(() => g.unsqueeze(dy, [-2])) // (…, 1, d)
  const rank = rankOf(context, b)
  return [
    () => g.reduceSum(g.mul(row(), b), [...range(rank - 2), rank - 1], 0),
    () => g.mul(row(), g.unsqueeze(a, [1])),
  ]
}

/** (…, n, k) → (rows, k) */
export function inRows({ g }: GradientContext, value: Value, rank: number): Value {
  return rank === 2 ? value : g.op('Flatten', [value], { axis: rank - 1 })
}

/** (rows, k) → the shape of `input` (…, n, k) */
export function outOfRows(context: GradientContext, rows: Value, input: Value): Value {
  const flat = (dims: readonly number[]) => [dims.slice(0, -1).reduce((n, dim) => n * dim, 1), dims[dims.length - 1]]
  return reshapeLike(context, rows, mapShape(shapeOf(context, input), flat), input)
}

/** Swaps the last two axes. If the value is the result of such a swap, its input is returned. */
export function transposeLast(context: GradientContext, value: Value, rank: number): Value {
  return beforeSwap(context.g.graph, value) ?? context.g.transpose(value, lastSwapped(rank))
}

export function beforeSwap(graph: Graph, value: Value): Value | undefined {
  const maker = graph.producer(value)
  const perm = maker?.opType === 'Transpose' ? intsAttribute(maker, 'perm') : undefined
  return perm?.join() === lastSwapped(perm?.length ?? 0).join() ? maker?.input[0] : undefined
}

export function lastSwapped(rank: number): number[] {
  return [...range(rank - 2), rank - 1, rank - 2]
}
