// Gradients of a convolution: products over windows, whose gradients are convolutions too.

import { UnsupportedError } from '../../base/errors.js'
import { isStatic } from '../shapes/shapes.js'
import { intAttribute, intsAttribute, stringAttribute } from '../view/attributes.js'
import type { Value } from '../view/builder.js'
import { labelOf } from '../view/operators.js'
import { type GradientContext, type GradientRule, range, shapeOf } from './context.js'

export const CONVOLUTIONS: Readonly<Record<string, GradientRule>> = {
  // y = w ∗ x + b      dx = wᵀ ∗ dy   dw = x ∗ dy   db = Σ dy over all but the channels
  Conv: (context) => {
    const { g, inputs, dy } = context
    const { dims } = shapeOf(context, inputs[0])
    return [
      () => inputGradient(context),
      () => weightGradient(context),
      () => g.reduceSum(dy, [0, ...range(dims.length - 2).map((axis) => axis + 2)], 0),
    ]
  },
}

/** How the windows of a convolution lie, by axis. */
interface Windows {
  readonly kernel: readonly number[]
  readonly strides: readonly number[]
  readonly dilations: readonly number[]
  /** In front of all axes, then behind them. */
  readonly pads: readonly number[]
  readonly group: number
}

function windowsOf(context: GradientContext): Windows {
  const { node, inputs } = context
  const kernel = shapeOf(context, inputs[1]).dims.slice(2)
  const padding = stringAttribute(node, 'auto_pad', 'NOTSET')
  if (padding !== 'NOTSET' && padding !== 'VALID') refuse(context, `its auto_pad ${padding}`)
  return {
    kernel,
    strides: intsAttribute(node, 'strides') ?? kernel.map(() => 1),
    dilations: intsAttribute(node, 'dilations') ?? kernel.map(() => 1),
    pads: intsAttribute(node, 'pads') ?? [...kernel, ...kernel].map(() => 0),
    group: intAttribute(node, 'group', 1),
  }
}

function inputGradient(context: GradientContext): Value {
  const { g, inputs, dy } = context
  const { kernel, strides, dilations, pads, group } = windowsOf(context)
  // Elements that no window reaches, because the stride leaves a rest, lie behind: their gradient is 0.
  const rests = kernel.map((size, i) => {
    if (strides[i] === 1) return 0
    const [length, padded] = [lengthAt(context, i), pads[i] + pads[i + kernel.length]]
    return (length + padded - dilations[i] * (size - 1) - 1) % strides[i]
  })
  return g.op('ConvTranspose', [dy, inputs[1]], { strides, dilations, pads, group, output_padding: rests })
}

/**
 * The windows of x that each element of dy reads, as a convolution of x by dy: batches are its channels, and strides
 * its dilations.
 */
function weightGradient(context: GradientContext): Value {
  const { g, inputs, dy } = context
  const { kernel, strides, dilations, pads, group } = windowsOf(context)
  if (group !== 1) refuse(context, `a trained weight in ${group} groups`)
  const axes = kernel.map((_, i) => i + 2)
  const swap = (value: Value) => g.transpose(value, [1, 0, ...axes])
  const whole = g.op('Conv', [swap(inputs[0]), swap(dy)], { strides: dilations, dilations: strides, pads })
  const cut = g.op('Slice', [whole, g.int(axes.map(() => 0)), g.int([...kernel]), g.int(axes)])
  return swap(cut)
}

/** The length of x along an axis of the windows. */
function lengthAt(context: GradientContext, axis: number): number {
  const shape = shapeOf(context, context.inputs[0])
  if (!isStatic(shape, axis + 2)) refuse(context, 'strides along an axis whose length changes with the input')
  return shape.dims[axis + 2]
}

function refuse({ node }: GradientContext, what: string): never {
  throw new UnsupportedError({
    where: labelOf(node),
    what: `the gradient of a convolution with ${what} is not implemented`,
    hint: 'Train no bias and no module in front of it: `bias: none` or `bias: lora_only`',
  })
}
