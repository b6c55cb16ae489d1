// Gradient of the rotary position embedding (Su et al. 2021, arXiv 2104.09864): a rotation's gradient is the rotation
// back, so the same operator with the negated sine serves every form of input, position and layout.

import type { Value } from '../view/builder.js'
import { operatorOf } from '../view/operators.js'
import type { GradientContext, GradientRule } from './context.js'

export const ROTARY: Readonly<Record<string, GradientRule>> = {
  // y = R(θ)·x      dx = R(−θ)·dy
  RotaryEmbedding: (context) => [() => rotateBack(context, 2)],
  'com.microsoft:RotaryEmbedding': (context) => [() => rotateBack(context, 3)],
}

function rotateBack(context: GradientContext, sineIndex: number): Value {
  const { g, node, inputs, dy } = context
  const others = inputs.map((input, i) => (i === sineIndex ? negated(context, input) : input)).slice(1)
  const rotated = g.node(operatorOf(node), [dy, ...others])
  rotated.attribute = [...node.attribute]
  return rotated.output[0]
}

/** −sine, once a graph: the table of a long context is large, and every layer reads it. */
function negated({ g }: GradientContext, sine: Value): Value {
  return g.graph.consumers(sine).find(({ opType }) => opType === 'Neg')?.output[0] ?? g.neg(sine)
}
