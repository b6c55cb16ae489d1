// THE table of gradient rules: op type → how the gradients of its inputs follow from those of its outputs.

import { PREDICATES } from '../view/operators.js'
import type { GradientRule } from './context.js'
import { CONVOLUTIONS } from './convolution.js'
import { ELEMENTWISE } from './elementwise.js'
import { LAYOUT } from './layout.js'
import { PRODUCTS } from './matmul.js'
import { REDUCTIONS } from './reduction.js'

/** Key: the op type, after its domain and a colon outside the standard domain. */
export const GRADIENTS: Readonly<Record<string, GradientRule>> = {
  ...PRODUCTS,
  ...CONVOLUTIONS,
  ...ELEMENTWISE,
  ...REDUCTIONS,
  ...LAYOUT,
}

/** Gradients may come in the output's shape, to be summed down to the input's by `sumTo`. */
export const BROADCASTING: ReadonlySet<string> = new Set([
  'Add',
  'Sub',
  'Mul',
  'Div',
  'Pow',
  'Where',
  'Clip',
  'Max',
  'Min',
  'Expand',
  'com.microsoft:FastGelu',
  'LayerNormalization',
  'SimplifiedLayerNormalization',
  'RMSNormalization',
])

/** Outputs are integers, truths, or constant almost everywhere. */
export const NON_DIFFERENTIABLE: ReadonlySet<string> = new Set([
  ...PREDICATES,
  'ArgMax',
  'ArgMin',
  'BitShift',
  'BitwiseAnd',
  'BitwiseNot',
  'BitwiseOr',
  'BitwiseXor',
  'Ceil',
  'Constant',
  'ConstantOfShape',
  'EyeLike',
  'Floor',
  'NonZero',
  'OneHot',
  'RandomNormal',
  'RandomNormalLike',
  'RandomUniform',
  'RandomUniformLike',
  'Range',
  'Round',
  'Shape',
  'Sign',
  'Size',
])
