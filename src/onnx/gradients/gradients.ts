// The table of gradient rules: for each operator, how its inputs' gradients follow from its outputs'.

import { PREDICATES } from '../view/operators.js'
import type { GradientRule } from './context.js'
import { CONVOLUTIONS } from './convolution.js'
import { ELEMENTWISE } from './elementwise.js'
import { LAYOUT } from './layout.js'
import { PRODUCTS } from './matmul.js'
import { REDUCTIONS } from './reduction.js'

/** The key is the op type. Outside the standard domain, the domain and a colon come first. */
export const GRADIENTS: Readonly<Record<string, GradientRule>> = {
  ...PRODUCTS,
  ...CONVOLUTIONS,
  ...ELEMENTWISE,
  ...REDUCTIONS,
  ...LAYOUT,
}

/** Operators whose rules return gradients in the output's shape; `sumTo` sums them down to the input's shape. */
export const BROADCASTING: ReadonlySet<string> = new Set([
  ...'Add Sub Mul Div Pow Where Clip Max Min Expand com.microsoft:FastGelu LayerNormalization'.split(' '),
  ...'SimplifiedLayerNormalization RMSNormalization'.split(' '),
])

/** Operators through which no gradient flows: their outputs are integers, booleans, or constant almost everywhere. */
export const NON_DIFFERENTIABLE: ReadonlySet<string> = new Set([
  ...PREDICATES,
  ...'ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Constant ConstantOfShape'.split(' '),
  ...'EyeLike Floor NonZero OneHot RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range'.split(' '),
  ...'Round Shape Sign Size'.split(' '),
])
