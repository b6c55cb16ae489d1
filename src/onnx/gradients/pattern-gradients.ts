// Gradients of two nodes at once, which take fewer passes over large tensors. Without this file, results would be the
// same up to rounding.

import type { NodeProto } from '../format/tensors.js'
import { isStatic, mapShape } from '../shapes/shapes.js'
import { intAttribute } from '../view/attributes.js'
import type { Value } from '../view/builder.js'
import { nanGuard } from '../view/patterns.js'
import type { GradientContext, GradientRule } from './context.js'
import { REDUCTIONS } from './reduction.js'

export interface PatternContext extends GradientContext {
  /** Returns the nodes through which gradients flow back to a value. */
  readers(value: Value): readonly NodeProto[]
  /** Returns the gradient of a value that is closer to the loss. */
  gradientOf(value: Value): Value | undefined
}

type PatternRule = (context: PatternContext) => ReturnType<GradientRule> | undefined

/** The key is the op type of the node that is closer to the loss. */
export const PATTERNS: Readonly<Record<string, PatternRule>> = {
  // y = x·σ, σ = sigmoid x (SiLU)      dx = dy·(σ + y·(1 − σ)), or dh·(σ·(u − h) + h) where h = y·u alone reads y
  Mul: ({ g, inputs, outputs: [y], dy, shapes, readers, gradientOf }) => {
    const at = inputs.findIndex((input, i) => {
      const maker = g.graph.producer(input)
      return maker?.opType === 'Sigmoid' && maker.input[0] === inputs[1 - i]
    })
    if (at === -1) return undefined
    const sigma = inputs[at]
    const [{ opType, input, output }, ...others] = readers(y)
    const [u, h] = [input.find((value) => value !== y) ?? y, output[0]]
    const isAlone = opType === 'Mul' && others.length === 0 && u !== y
    const isGate = isAlone && shapes.get(u)?.dims.join() === shapes.get(y)?.dims.join()
    const dh = isGate ? gradientOf(h) : undefined
    const gradient = () =>
      dh === undefined
        ? g.mul(dy, g.add(sigma, g.mul(y, g.sub(g.float(1), sigma))))
        : g.mul(dh, g.add(g.mul(sigma, g.sub(u, h)), h))
    return at === 0 ? [undefined, gradient] : [gradient, undefined]
  },

  // p = softmax x, o = p·v      dx = p·(dp − Σ dp·p), and Σ dp·p = Σ do·o along rows that are shorter than p's
  Softmax: (context) => {
    const { g, node, outputs, dy, shapes } = context
    const guard = onlyGuard(context, outputs[0])
    const p = guard ?? outputs[0]
    const plain = guard === undefined ? undefined : REDUCTIONS.Softmax({ ...context, outputs: [guard] })
    // If query heads share keys, they are reshaped to rows of a single product.
    const [view] = context.readers(p)
    const rows = view?.opType === 'Reshape' && context.readers(p).length === 1 ? view.output[0] : p
    const [reader, ...others] = context.readers(rows)
    const isLeft = reader?.opType === 'MatMul' && reader.input[0] === rows && reader.input[1] !== rows
    if (!isLeft || others.length > 0) return plain
    const [o] = reader.output
    const gradient = context.gradientOf(o)
    const from = shapes.get(rows)?.dims
    const to = shapes.get(o)?.dims
    const whole = shapes.get(p)
    if (gradient === undefined || from === undefined || whole === undefined) return plain
    const isAlongRows = [-1, whole.dims.length - 1].includes(intAttribute(node, 'axis', -1))
    if (!isAlongRows || to?.slice(0, -1).join() !== from.slice(0, -1).join()) return plain
    const isGrouped = [from, whole.dims].every((dims) => dims.length === 4 && dims[0] === from[0])
    if (rows !== p && !(isGrouped && isStatic(whole, 1))) return plain
    return [
      () => {
        const sums = g.reduceSum(g.mul(gradient, o), [-1])
        const inPlace = rows === p ? sums : g.reshape(sums, g.int([0, whole.dims[1], -1, 1]))
        const sumShape = mapShape(whole, (dims) => [...dims.slice(0, -1), 1])
        if (rows !== p) shapes.set(inPlace, sumShape)
        return g.mul(p, g.sub(dy, inPlace))
      },
    ]
  },

  // y = 0 where p is not a number, else p, with p = softmax x: the rule of Softmax reads y for p
  Where: (context) => {
    const { g, inputs, dy } = context
    const [, , p] = inputs
    const isGuard = g.graph.producer(p)?.opType === 'Softmax' && onlyGuard(context, p) !== undefined
    return isGuard ? [undefined, undefined, () => dy] : undefined
  },
}

/** Returns the node that guards x against NaN, if gradients flow back to x only through it. */
function onlyGuard({ g, readers }: PatternContext, x: Value): Value | undefined {
  return readers(x).length === 1 ? nanGuard(g.graph, x, readers(x))?.output[0] : undefined
}
