// Gradients of elementwise operators. If inputs are broadcast, backward.ts sums the gradients down to their shapes.

import { DataType } from '../format/tensors.js'
import { floatAttribute, intAttribute, stringAttribute } from '../view/attributes.js'
import type { Builder, Value } from '../view/builder.js'
import { operatorOf } from '../view/operators.js'
import { scalarOf } from '../view/patterns.js'
import { type GradientContext, type GradientRule, once } from './context.js'

const FLOATS: ReadonlySet<number> = new Set([DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16, DataType.BFLOAT16])

export const ELEMENTWISE: Readonly<Record<string, GradientRule>> = {
  // y = a + b      da = dy   db = dy
  Add: ({ dy }) => [() => dy, () => dy],

  // y = a − b      da = dy   db = −dy
  Sub: ({ g, dy }) => [() => dy, () => g.neg(dy)],

  // y = a·b      da = dy·b   db = dy·a
  Mul: ({ g, inputs: [a, b], dy }) => [() => g.mul(dy, b), () => g.mul(dy, a)],

  // y = a/b      da = dy/b   db = −(dy/b)·y
  Div: ({ g, inputs: [, b], outputs: [y], dy }) => [() => g.div(dy, b), () => g.neg(g.mul(g.div(dy, b), y))],

  // y = −x      dx = −dy
  Neg: ({ g, dy }) => [() => g.neg(dy)],

  // y = xᵖ      dx = dy·p·xᵖ⁻¹, 0 where p = 0   dp = dy·y·ln x, 0 where x = 0 and p ≥ 0
  Pow: (context) => {
    const { g, inputs, outputs, dy } = context
    const [x, p] = inputs
    const exponent = scalarOf(g.graph, p)
    return [
      () => g.mul(dy, exponent === undefined ? slopes(g, x, g.cast(p, g.floatType)) : slope(g, x, exponent)),
      () => {
        const isFlat = g.op('And', [g.op('Equal', [x, g.float(0)]), g.op('GreaterOrEqual', [p, g.float(0)])])
        return g.where(isFlat, g.float(0), g.mul(dy, g.mul(outputs[0], g.op('Log', [x]))))
      },
    ]
  },

  // y = √x      dx = dy/(2y)
  Sqrt: ({ g, outputs: [y], dy }) => [() => g.div(g.mul(dy, g.float(0.5)), y)],

  // y = 1/x      dx = −dy·y²
  Reciprocal: ({ g, outputs: [y], dy }) => [() => g.neg(g.mul(dy, g.mul(y, y)))],

  // y = eˣ      dx = dy·y
  Exp: ({ g, outputs: [y], dy }) => [() => g.mul(dy, y)],

  // y = ln x      dx = dy/x
  Log: ({ g, inputs: [x], dy }) => [() => g.div(dy, x)],

  // y = |x|      dx = dy where x > 0, −dy where x < 0, 0 at 0 (Sign has no WebGPU kernel)
  Abs: ({ g, inputs: [x], dy }) => [
    () => {
      const zero = g.float(0)
      return g.where(g.op('Less', [x, zero]), g.neg(dy), g.where(g.op('Greater', [x, zero]), dy, zero))
    },
  ],

  // y = sin x      dx = dy·cos x
  Sin: ({ g, inputs: [x], dy }) => [() => g.mul(dy, g.op('Cos', [x]))],

  // y = cos x      dx = −dy·sin x
  Cos: ({ g, inputs: [x], dy }) => [() => g.neg(g.mul(dy, g.op('Sin', [x])))],

  // y = erf x      dx = dy·2/√π·e^(−x²)
  Erf: ({ g, inputs: [x], dy }) => [
    () => g.mul(dy, g.mul(g.float(2 / Math.sqrt(Math.PI)), g.op('Exp', [g.neg(g.mul(x, x))]))),
  ],

  // y = x      dx = dy
  Identity: ({ dy }) => [() => dy],

  // At inference y = x      dx = dy
  Dropout: ({ dy }) => [() => dy, undefined, undefined],

  // y = x in another type      dx = dy in x's
  Cast: ({ g, node, inputs: [x], dy }) => {
    if (!FLOATS.has(intAttribute(node, 'to', DataType.FLOAT))) return [undefined]
    return [() => (g.graph.opset() < 15 ? g.cast(dy, g.floatType) : g.op('CastLike', [dy, x]))]
  },

  // y = x in the type of another value      dx = dy in x's
  CastLike: ({ g, inputs: [x], dy }) => [() => g.op('CastLike', [dy, x]), undefined],

  // y = a where c, else b      da = dy where c, else 0   db = 0 where c, else dy
  Where: ({ g, inputs: [c], dy }) => [undefined, () => g.where(c, dy, g.float(0)), () => g.where(c, g.float(0), dy)],

  // y = max(x₁, x₂, …)      dxᵢ = dy/n where xᵢ = y, n the number of such inputs, else 0
  Max: evenlyAmongEqual,
  Min: evenlyAmongEqual,

  // y = min(max(x, low), high)      dx = dy where low < x < high, else 0
  //                                 dlow = dy where x < low   dhigh = dy where x > high
  Clip: ({ g, inputs: [x, low, high], dy }) => {
    const zero = g.float(0)
    return [
      () => {
        const aboveLow = low ? g.where(g.op('Greater', [x, low]), dy, zero) : dy
        return high ? g.where(g.op('Less', [x, high]), aboveLow, zero) : aboveLow
      },
      () => g.where(g.op('Less', [x, low]), dy, zero),
      () => g.where(g.op('Greater', [x, high]), dy, zero),
    ]
  },

  // y = max(x, 0)      dx = dy where x > 0, else 0
  Relu: ({ g, inputs: [x], dy }) => [() => g.where(g.op('Greater', [x, g.float(0)]), dy, g.float(0))],

  // y = σ(x)      dx = dy·(y − y²)
  Sigmoid: ({ g, outputs: [y], dy }) => [() => g.mul(dy, g.sub(y, g.mul(y, y)))],

  // y = tanh x      dx = dy·(1 − y²)
  Tanh: ({ g, outputs: [y], dy }) => [() => g.mul(dy, g.sub(g.float(1), g.mul(y, y)))],

  // y = ln(1 + eˣ)      dx = dy·σ(x)
  Softplus: ({ g, inputs: [x], dy }) => [() => g.mul(dy, g.op('Sigmoid', [x]))],

  // y = αx + β, cut to [0, 1]      dx = α·dy where 0 < y < 1, else 0
  HardSigmoid: ({ g, node, outputs: [y], dy }) => [
    () => {
      const isInside = g.op('And', [g.op('Greater', [y, g.float(0)]), g.op('Less', [y, g.float(1)])])
      return g.where(isInside, g.mul(g.float(floatAttribute(node, 'alpha', 0.2)), dy), g.float(0))
    },
  ],

  // y = x·Φ(x), or its approximation by tanh
  Gelu: ({ g, node, inputs: [x], outputs: [y], dy }) => [
    () => g.mul(dy, stringAttribute(node, 'approximate', 'none') === 'tanh' ? tanhGeluSlope(g, x, y) : geluSlope(g, x)),
  ],
  'com.microsoft:Gelu': ({ g, inputs: [x], dy }) => [() => g.mul(dy, geluSlope(g, x))],
  'com.microsoft:FastGelu': ({ g, inputs: [x, bias], outputs: [y], dy }) => {
    const gradient = () => g.mul(dy, tanhGeluSlope(g, bias ? g.add(x, bias) : x, y))
    return [gradient, gradient]
  },

  // y = x·s, s = σ(αx)      dx = dy·(s + αy·(1 − s))
  'com.microsoft:QuickGelu': ({ g, node, inputs: [x], outputs: [y], dy }) => [
    () => {
      const alpha = g.float(floatAttribute(node, 'alpha', 1.702))
      const s = g.op('Sigmoid', [g.mul(alpha, x)])
      return g.mul(dy, g.add(s, g.mul(g.mul(alpha, y), g.sub(g.float(1), s))))
    },
  ],

  // y = R(θ)·x      dx = R(−θ)·dy
  RotaryEmbedding: (context) => [() => rotateBack(context, 2)],
  'com.microsoft:RotaryEmbedding': (context) => [() => rotateBack(context, 3)],
}

/** Φ(x) + x·φ(x), with Φ(x) = (1 + erf(x/√2))/2 and φ(x) = e^(−x²/2)/√(2π). */
function geluSlope(g: Builder, x: Value): Value {
  const erf = g.op('Erf', [g.mul(x, g.float(Math.SQRT1_2))])
  const below = g.mul(g.float(0.5), g.add(g.float(1), erf))
  const density = g.mul(g.float(1 / Math.sqrt(2 * Math.PI)), g.op('Exp', [g.mul(g.float(-0.5), g.mul(x, x))]))
  return g.add(below, g.mul(x, density))
}

/** With y = x·s, s = σ(2κ(x + λx³)): s + y·(1 − s)·2κ(1 + 3λx²); κ = √(2/π), λ = 0.044715. */
function tanhGeluSlope(g: Builder, x: Value, y: Value): Value {
  const [kappa, lambda] = [Math.sqrt(2 / Math.PI), 0.044715]
  const square = g.mul(x, x)
  const quadratic = (factor: number) => g.add(g.mul(square, g.float(factor)), g.float(2 * kappa))
  const s = g.op('Sigmoid', [g.mul(x, quadratic(2 * kappa * lambda))])
  return g.add(s, g.mul(g.sub(y, g.mul(y, s)), quadratic(6 * kappa * lambda)))
}

function evenlyAmongEqual({ g, inputs, outputs: [y], dy }: GradientContext): ReturnType<GradientRule> {
  const isExtreme = inputs.map((x) => once(() => g.op('Equal', [x, y])))
  const share = once(() => g.div(dy, isExtreme.map((make) => g.cast(make(), g.floatType)).reduce(g.add)))
  return isExtreme.map((make) => () => g.where(make(), share(), g.float(0)))
}

/** Computes p·xᵖ⁻¹ for a constant p. */
function slope(g: Builder, x: Value, p: number): Value {
  if (p === 0) return slopes(g, x, g.float(0))
  if (p === 2) return g.mul(x, g.float(2))
  if (p === 3) return g.mul(g.mul(x, x), g.float(3))
  return g.mul(g.op('Pow', [x, g.float(p - 1)]), g.float(p))
}

/** Computes p·xᵖ⁻¹, and 0 if p is 0: there x⁻¹ may be infinite, and 0 times infinity is not a number. */
function slopes(g: Builder, x: Value, p: Value): Value {
  const isFlat = g.op('Equal', [p, g.float(0)])
  return g.where(isFlat, g.float(0), g.mul(p, g.op('Pow', [x, g.sub(p, g.float(1))])))
}

function rotateBack(context: GradientContext, sineIndex: number): Value {
  const { g, node, inputs, dy } = context
  // Make −sine only once in a graph: the table for a long context is large, and every layer reads it.
  const sine = inputs[sineIndex]
  const negated = g.graph.consumers(sine).find(({ opType }) => opType === 'Neg')?.output[0] ?? g.neg(sine)
  const others = inputs.map((input, i) => (i === sineIndex ? negated : input)).slice(1)
  const rotated = g.node(operatorOf(node), [dy, ...others])
  rotated.attribute = [...node.attribute]
  return rotated.output[0]
}
