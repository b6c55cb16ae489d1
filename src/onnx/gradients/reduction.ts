// Gradients of reductions, softmax and normalizations.

import { isStatic } from '../shapes/shapes.js'
import { floatAttribute, intAttribute } from '../view/attributes.js'
import type { Value } from '../view/builder.js'
import {
  axesOf,
  axisOf,
  type GradientContext,
  type GradientRule,
  once,
  range,
  rankOf,
  refuse,
  sameShape,
  shapeOf,
  spread,
} from './context.js'

/** The least norm that is divided by. A vector of zeros then has a finite gradient, so that 0 times it stays 0. */
const LEAST_NORM = 1e-12

export const REDUCTIONS: Readonly<Record<string, GradientRule>> = {
  // y = Σ x      dx = dy over the summed axes
  ReduceSum: (context) => [() => unreduce(context, context.dy), undefined],

  // y = Σ x²      dx = 2x·dy over the summed axes
  ReduceSumSquare: (context) => {
    const { g, inputs, dy } = context
    return [() => g.mul(g.mul(inputs[0], g.float(2)), keepAxes(context, dy)), undefined]
  },

  // y = √Σ x²      dx = x/y·dy over the summed axes
  ReduceL2: (context) => {
    const { g, inputs, outputs, dy } = context
    return [
      () => {
        const size = g.op('Max', [keepAxes(context, outputs[0]), g.float(LEAST_NORM)])
        return g.mul(g.div(inputs[0], size), keepAxes(context, dy))
      },
      undefined,
    ]
  },

  // yᵢ = Σ xⱼ for j ≤ i      dxⱼ = Σ dyᵢ for i ≥ j, and so in the other direction, or without j itself
  CumSum: ({ g, node, inputs: [, axis], dy }) => {
    const exclusive = intAttribute(node, 'exclusive', 0)
    return [() => g.op('CumSum', [dy, axis], { exclusive, reverse: 1 - intAttribute(node, 'reverse', 0) })]
  },

  // y = x/n, n = √Σ x²      dx = (dy − y·Σ dy·y)/n
  LpNormalization: (context) => {
    const { g, node, inputs, outputs, dy } = context
    const [x] = inputs
    const [y] = outputs
    const axes = [axisOf(context, -1)]
    if (intAttribute(node, 'p', 2) !== 2) refuse(context, 'the gradient with another p than 2 is not implemented')
    return [
      () => {
        const size = g.op('Sqrt', [g.reduceSum(g.mul(x, x), axes)])
        const across = g.sub(dy, g.mul(y, g.reduceSum(g.mul(dy, y), axes)))
        return g.div(across, g.op('Max', [size, g.float(LEAST_NORM)]))
      },
    ]
  },

  // y = Σ x / n      dx = dy/n over the averaged axes
  ReduceMean: (context) => [() => unreduce(context, context.g.mul(context.dy, share(context))), undefined],

  // y = max x      dx = dy/n where x = y, n the number of such elements, else 0
  ReduceMax: (context) => [() => evenlyAmongExtremes(context), undefined],
  ReduceMin: (context) => [() => evenlyAmongExtremes(context), undefined],

  // y = eˣ / Σ eˣ      dx = y·(dy − Σ dy·y)
  Softmax: (context) => {
    const { g, outputs, dy } = context
    const [y] = outputs
    return [() => g.mul(y, g.sub(dy, g.reduceSum(g.mul(dy, y), [axisOf(context, -1)])))]
  },

  // y = x − ln Σ eˣ      dx = dy − eʸ·Σ dy
  LogSoftmax: (context) => {
    const { g, outputs, dy } = context
    return [() => g.sub(dy, g.mul(g.op('Exp', [outputs[0]]), g.reduceSum(dy, [axisOf(context, -1)])))]
  },

  // y = x̂·γ + β, x̂ = (x − μ)/σ; e = dy·γ      dx = (e − mean e − x̂·mean(e·x̂))/σ   dγ = dy·x̂   dβ = dy
  LayerNormalization: (context) => {
    const { g, inputs, dy } = context
    const [x, gamma] = inputs
    const axes = normalizedAxes(context)
    const kept = once(() => statistics(context, 2))
    const normalized = once(() => {
      const [mean, inverseDeviation] = kept()
      return g.mul(g.sub(x, mean), inverseDeviation)
    })
    return [
      () => {
        const e = g.mul(dy, gamma)
        const along = g.mul(normalized(), g.reduceMean(g.mul(e, normalized()), axes))
        return g.mul(g.sub(g.sub(e, g.reduceMean(e, axes)), along), kept()[1])
      },
      () => g.mul(dy, normalized()),
      () => dy,
    ]
  },

  // y = x·ρ·γ, ρ = 1/√(mean x² + ε); e = dy·γ      dx = ρ·(e − x·ρ²·mean(e·x))   dγ = dy·x·ρ
  SimplifiedLayerNormalization: (context) => rootMeanSquare(context, () => statistics(context, 1)[0]),
  RMSNormalization: (context) => {
    const { g, inputs, node } = context
    return rootMeanSquare(context, () => {
      const square = g.reduceMean(g.mul(inputs[0], inputs[0]), normalizedAxes(context))
      return g.op('Reciprocal', [g.op('Sqrt', [g.add(square, g.float(floatAttribute(node, 'epsilon', 1e-5)))])])
    })
  },
}

function rootMeanSquare(context: GradientContext, makeRho: () => Value): ReturnType<GradientRule> {
  const { g, inputs, dy } = context
  const [x, gamma] = inputs
  const rho = once(makeRho)
  return [
    () => {
      const e = g.mul(dy, gamma)
      const along = g.mul(g.mul(rho(), rho()), g.reduceMean(g.mul(e, x), normalizedAxes(context)))
      return g.mul(rho(), g.sub(e, g.mul(x, along)))
    },
    () => g.mul(dy, g.mul(x, rho())),
  ]
}

function normalizedAxes(context: GradientContext): number[] {
  const rank = rankOf(context, context.inputs[0])
  return range(rank).slice(axisOf(context, -1))
}

/** The optional outputs of a normalization (mean, inverse deviation). If the node lacks them, they are added. */
function statistics(context: GradientContext, count: number): Value[] {
  const { g, node, dys } = context
  if (dys.slice(1).some((dy) => dy !== undefined)) {
    refuse(context, 'the loss depends on its mean or deviation output, whose gradient is not implemented')
  }
  for (let i = 1; i <= count; i++) {
    if (!node.output[i]) g.graph.setOutput(node, i, g.graph.freshName(`${node.output[0]}/statistic`))
  }
  return node.output.slice(1, count + 1)
}

function unreduce(context: GradientContext, dy: Value): Value {
  const { inputs } = context
  const axes = axesOf(context)
  if (axes.length === 0) return dy
  return isSquare(context) ? keepAxes(context, dy) : spread(context, keepAxes(context, dy), axes, inputs[0])
}

/** True if x is a square, as in RMS norms. Its gradient is then a product, which broadcasts without Expand. */
function isSquare({ g, inputs: [x], shapes }: GradientContext): boolean {
  const maker = g.graph.producer(x)
  if (maker?.opType === 'Mul') return maker.input[0] === maker.input[1]
  if (maker?.opType !== 'Pow' || g.graph.constant(maker.input[1]) === undefined) return false
  const [base, square] = [shapes.get(maker.input[0]), shapes.get(x)]
  return base !== undefined && square !== undefined && sameShape(base, square)
}

function keepAxes(context: GradientContext, value: Value): Value {
  return intAttribute(context.node, 'keepdims', 1) === 1 ? value : context.g.unsqueeze(value, axesOf(context))
}

function share(context: GradientContext): Value {
  const { g, inputs, outputs } = context
  const axes = axesOf(context)
  const shape = shapeOf(context, inputs[0])
  if (axes.every((axis) => isStatic(shape, axis))) {
    return g.float(1 / axes.reduce((product, axis) => product * shape.dims[axis], 1))
  }
  const count = g.div(g.op('Size', [inputs[0]]), g.op('Size', [outputs[0]]))
  return g.op('Reciprocal', [g.cast(count, g.floatType)])
}

function evenlyAmongExtremes(context: GradientContext): Value {
  const { g, inputs, outputs, dy } = context
  const axes = axesOf(context)
  if (axes.length === 0) return dy
  const isExtreme = g.op('Equal', [inputs[0], keepAxes(context, outputs[0])])
  const count = g.reduceSum(g.cast(isExtreme, g.floatType), axes)
  return g.where(isExtreme, g.div(keepAxes(context, dy), count), g.float(0))
}
