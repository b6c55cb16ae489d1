// Experts as products of all of them, whose outputs are weighted: those that a token did not choose have the weight 0.
// That is E/k times the products of ONNX Runtime's operator, which has no gradient.

import { DataType } from '../format/tensors.js'
import { range } from '../gradients/context.js'
import { floatAttribute, intAttribute, stringAttribute } from '../view/attributes.js'
import type { Builder, Value } from '../view/builder.js'
import { dimsIn, type Lowering, type LoweringContext, refuse } from './context.js'

const ACTIVATIONS: Readonly<Record<string, (g: Builder, x: Value) => Value>> = {
  identity: (_, x) => x,
  relu: (g, x) => g.op('Relu', [x]),
  silu: (g, x) => g.mul(x, g.op('Sigmoid', [x])),
  gelu: (g, x) => g.op('com.microsoft:FastGelu', [x]),
}

export const EXPERTS: Readonly<Record<string, Lowering>> = {
  // y = Σ w_e·(W2_e·act(W1_e·x + b1_e) + b2_e) over the k experts with the largest router logits
  'com.microsoft:MoE': (context) => {
    const [x, router, first, firstBias, second, secondBias, third] = context.inputs
    const shape = dimsIn(context.g.graph, first)
    return writeOut(context, { x, router, first, firstBias, second, secondBias, third, shape })
  },

  // The same as MoE, with weights in 4 or 8 bits
  'com.microsoft:QMoE': (context) => {
    const { g, node, inputs } = context
    const [x, router, first, firstScales, firstBias, second, secondScales, secondBias, third] = inputs
    if (inputs.slice(11).some(Boolean)) refuse(context, 'training with its zero points is not implemented')
    const bits = intAttribute(node, 'expert_weight_bits', 4)
    if (bits !== 4 && bits !== 8) refuse(context, `training with weights of ${bits} bits is not implemented`)
    const weight = (packed: Value, scales: Value) => {
      const [experts = 0, d = 0, bytes] = dimsIn(g.graph, packed) ?? []
      const rank = dimsIn(g.graph, scales)?.length
      if (bytes === undefined || rank === undefined) {
        return refuse(context, 'training needs the shape of its weights, which the graph does not tell')
      }
      const k = (bytes * 8) / bits
      const block = rank === 3 ? intAttribute(node, 'block_size', k) || k : k
      const values = g.cast(packed, DataType.FLOAT)
      const high = g.op('Floor', [g.div(values, g.float(16))])
      const pairs = [g.sub(values, g.mul(high, g.float(16))), high].map((half) => g.unsqueeze(half, [3]))
      const steps = bits === 8 ? values : g.reshape(g.concat(pairs, 3), g.int([experts, d, k]))
      const ofBlocks = rank === 3 ? scales : g.unsqueeze(scales, [2])
      const ofValues = g.op('Gather', [ofBlocks, g.int(range(k).map((i) => Math.floor(i / block)))], { axis: 2 })
      return g.mul(g.sub(steps, g.float(2 ** (bits - 1))), ofValues)
    }
    const [experts, wide, bytes] = dimsIn(g.graph, first) ?? []
    const shape = [experts, wide, bytes && (bytes * 8) / bits]
    return writeOut(context, {
      ...{ x, router, firstBias, secondBias, third, shape },
      ...{ first: weight(first, firstScales), second: weight(second, secondScales) },
    })
  },
}

interface ExpertWeights {
  readonly x: Value
  readonly router: Value
  /** (E, wide, size), in float */
  readonly first: Value
  readonly firstBias: Value | undefined
  readonly second: Value
  readonly secondBias: Value | undefined
  readonly third: Value | undefined
  /** The shape of `first`. */
  readonly shape: readonly (number | undefined)[] | undefined
}

function writeOut(context: LoweringContext, weightsOf: ExpertWeights): Value[] {
  const { g, node } = context
  const { x, router, first, firstBias, second, secondBias, third, shape } = weightsOf
  const [experts, wide, size] = shape ?? []
  const kind = stringAttribute(node, 'activation_type', 'relu')
  const isGated = kind === 'swiglu' && intAttribute(node, 'swiglu_fusion', 0) === 1
  const isPlain = Object.hasOwn(ACTIVATIONS, kind)
  if (third || intAttribute(node, 'use_sparse_mixer', 0) === 1 || !(isGated || isPlain)) {
    refuse(context, `training with its activation ${kind}, a third weight or a sparse mixer is not implemented`)
  }
  if (experts === undefined || wide === undefined || size === undefined) {
    return refuse(context, 'training needs the shape of its weights, which the graph does not tell')
  }
  const shares = g.op('Softmax', [router], { axis: -1 })
  const most = g.node('TopK', [shares, g.int([intAttribute(node, 'k', 1)])], { axis: -1 }, 2).output[1]
  const isChosen = g.op('Equal', [g.unsqueeze(most, [2]), g.int(range(experts))])
  const chosen = g.mul(shares, g.reduceSum(g.cast(isChosen, DataType.FLOAT), [1], 0))
  const isNormalized = intAttribute(node, 'normalize_routing_weights', 0) === 1
  const weights = isNormalized ? g.div(chosen, g.reduceSum(chosen, [1])) : chosen // (tokens, E)

  /** (E, tokens, in) or (1, tokens, in) → (E, tokens, out) */
  const product = (values: Value, weight: Value, bias: Value | undefined) => {
    const y = g.matmul(values, g.transpose(weight, [0, 2, 1]))
    return bias ? g.add(y, g.unsqueeze(bias, [1])) : y
  }
  const hidden = product(g.reshape(x, g.int([1, -1, size])), first, firstBias)
  const gated = () => {
    const pairs = g.reshape(hidden, g.int([experts, -1, wide / 2, 2]))
    const limit = floatAttribute(node, 'swiglu_limit', Number.POSITIVE_INFINITY)
    const half = (i: number, least: number) => {
      const values = g.reshape(g.slice(pairs, i, i + 1, 3), g.int([experts, -1, wide / 2]))
      return limit === Number.POSITIVE_INFINITY ? values : g.op('Clip', [values, g.float(least), g.float(limit)])
    }
    const gate = half(0, Number.NEGATIVE_INFINITY)
    const sigmoid = g.op('Sigmoid', [g.mul(gate, g.float(floatAttribute(node, 'activation_alpha', 1)))])
    return g.mul(g.mul(gate, sigmoid), g.add(half(1, -limit), g.float(floatAttribute(node, 'activation_beta', 0))))
  }
  const outputs = product(isGated ? gated() : ACTIVATIONS[kind](g, hidden), second, secondBias)
  const weighted = g.mul(outputs, g.unsqueeze(g.transpose(weights, [1, 0]), [2]))
  return [g.reshape(g.reduceSum(weighted, [0], 0), g.shape(x))]
}
