// Fused operators → operators with gradient rules, for training graphs. Node names stay as prefixes, for matching.

import { attempt, type LowrankError, UnsupportedError } from '../../base/errors.js'
import type { NodeProto } from '../../formats/onnx/tensors.js'
import { floatAttribute, stringAttribute } from '../view/attributes.js'
import { Builder, sharedValue, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { entryOf, labelOf, operatorOf } from '../view/operators.js'
import { ATTENTION } from './attention.js'
import { dimsIn, type Lowering, type LoweringContext, refuse } from './context.js'

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

  // y = activation(w ∗ x + b) of each channel alone. Training reads texts from their begin: the state is 0.
  'com.microsoft:CausalConvWithState': (context) => {
    const { g, node, inputs } = context
    const [x, w, bias] = inputs
    const [channels, , width] = dimsIn(g.graph, w) ?? []
    const activation = stringAttribute(node, 'activation', 'none')
    if (channels === undefined || width === undefined || !['none', 'silu', 'swish'].includes(activation)) {
      refuse(context, `training with its activation ${activation}, or a weight of unknown shape, is not implemented`)
    }
    const y = g.op('Conv', bias ? [x, w, bias] : [x, w], { group: channels, pads: [width - 1, 0] })
    return [activation === 'none' ? y : g.mul(y, g.op('Sigmoid', [y])), undefined]
  },
}

export const LOWERINGS: Readonly<Record<string, Lowering>> = { ...ATTENTION, ...FUSED }

/**
 * The names of outputs stay. Throws UnsupportedError naming every node whose form has no lowering; the graph is then
 * half lowered.
 */
export function lowerForTraining(graph: Graph, nodes: readonly NodeProto[] = graph.nodes): void {
  const refusals: LowrankError[] = []
  const sharedValues = new Map<string, Value>()
  const shared: LoweringContext['shared'] = (key, make) => sharedValue(sharedValues, key, make)
  for (const node of [...nodes]) {
    const lowering = entryOf(LOWERINGS, operatorOf(node))
    if (lowering !== undefined) refusals.push(...attempt(() => replace(graph, node, lowering, shared)).problems)
  }
  if (refusals.length === 1) throw refusals[0]
  if (refusals.length > 1) {
    throw new UnsupportedError({ where: 'training', what: refusals.map(({ message }) => message).join('; ') })
  }
}

function replace(graph: Graph, node: NodeProto, lowering: Lowering, shared: LoweringContext['shared']): void {
  const { output: outputs } = node
  const reads = (output: number) => {
    const name = outputs[output]
    if (!name) return false
    return graph.consumers(name).length > 0 || graph.outputs.some((entry) => entry.name === name)
  }
  const g = new Builder(graph, node.name || outputs[0])
  const values = lowering({ g, node, inputs: [...node.input], shared })
  for (const [i, name] of outputs.entries()) {
    if (values[i] !== undefined || !reads(i)) continue
    throw new UnsupportedError({
      where: labelOf(node),
      what: `training with its output ${i} (${name}) is not implemented`,
    })
  }
  graph.replace(node, values)
}
