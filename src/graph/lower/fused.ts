// Operators that fuse a sum with what follows it, taken apart.

import { floatAttribute } from '../view/attributes.js'
import type { Lowering } from './context.js'

export const FUSED: Readonly<Record<string, Lowering>> = {
  // sum = x + skip (+ bias); y = RMS norm of sum
  'com.microsoft:SkipSimplifiedLayerNormalization': ({ g, node, inputs: [x, skip, gamma, bias] }) => {
    const plain = g.add(x, skip)
    const sum = bias ? g.add(plain, bias) : plain
    const epsilon = { float: floatAttribute(node, 'epsilon', 1e-12) }
    return [g.op('SimplifiedLayerNormalization', [sum, gamma], { axis: -1, epsilon }), undefined, undefined, sum]
  },

  // sum = x + skip (+ bias); y = layer norm of sum
  'com.microsoft:SkipLayerNormalization': ({ g, node, inputs: [x, skip, gamma, beta, bias] }) => {
    const plain = g.add(x, skip)
    const sum = bias ? g.add(plain, bias) : plain
    const epsilon = { float: floatAttribute(node, 'epsilon', 1e-12) }
    const scaled = beta ? [sum, gamma, beta] : [sum, gamma]
    return [g.op('LayerNormalization', scaled, { axis: -1, epsilon }), undefined, undefined, sum]
  },

  // y = gelu(x + bias)
  'com.microsoft:BiasGelu': ({ g, inputs: [x, bias] }) => [g.op('com.microsoft:Gelu', [g.add(x, bias)])],
}
