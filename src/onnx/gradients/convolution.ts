// Gradients of a convolution. They are convolutions too.

import { isStatic } from '../shapes/shapes.js'
import { intAttribute, intsAttribute, stringAttribute } from '../view/attributes.js'
import type { Value } from '../view/builder.js'
import { type GradientContext, type GradientRule, range, refuse, shapeOf } from './context.js'

export const CONVOLUTIONS: Readonly<Record<string, GradientRule>> = {
  // y = w ∗ x + b      dx = wᵀ ∗ dy   db = Σ dy over all but the channels
  Conv: (context) => {
    const { g, inputs, dy } = context
    const { dims } = shapeOf(context, inputs[0])
    return [
      () => inputGradient(context),
      () => refuseWith(context, 'a trained weight'),
      () => g.reduceSum(dy, [0, ...range(dims.length - 2).map((axis) => axis + 2)], 0),
    ]
  },
}

function inputGradient(context: GradientContext): Value {
  const { g, node, inputs, dy } = context
  const shape = shapeOf(context, inputs[0])
  const kernel = shapeOf(context, inputs[1]).dims.slice(2)
  const padding = stringAttribute(node, 'auto_pad', 'NOTSET')
  if (padding !== 'NOTSET' && padding !== 'VALID') refuseWith(context, `its auto_pad ${padding}`)
  const strides = intsAttribute(node, 'strides') ?? kernel.map(() => 1)
  const dilations = intsAttribute(node, 'dilations') ?? kernel.map(() => 1)
  // The pads before all axes, then the pads after them.
  const pads = intsAttribute(node, 'pads') ?? [...kernel, ...kernel].map(() => 0)
  // If the stride does not divide the length, no window reaches the last elements. Their gradient is 0.
  const rests = kernel.map((size, i) => {
    if (strides[i] === 1) return 0
    if (!isStatic(shape, i + 2)) refuseWith(context, 'strides along an axis whose length changes with the input')
    const padded = shape.dims[i + 2] + pads[i] + pads[i + kernel.length]
    return (padded - dilations[i] * (size - 1) - 1) % strides[i]
  })
  const group = intAttribute(node, 'group', 1)
  return g.op('ConvTranspose', [dy, inputs[1]], { strides, dilations, pads, group, output_padding: rests })
}

function refuseWith(context: GradientContext, what: string): never {
  const hint = 'Ask for no gradient of its weight, nor of values in front of it'
  return refuse(context, `the gradient of a convolution with ${what} is not implemented`, hint)
}
