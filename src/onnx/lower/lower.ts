// Replaces fused operators by operators that have gradient rules. The names of new nodes begin with those of the old,
// so that layers can still be found by name.

import { attempt, type LowrankError, UnsupportedError } from '../../core/base/errors.js'
import type { NodeProto } from '../format/tensors.js'
import type { CustomGradients } from '../gradients/backward.js'
import { range } from '../gradients/context.js'
import { floatAttribute, intAttribute, intsAttribute, stringAttribute } from '../view/attributes.js'
import { Builder, sharedValue, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { entryOf, labelOf, operatorOf } from '../view/operators.js'
import { ATTENTION } from './attention.js'
import { dimsIn, type Lowering, type LoweringContext, refuse } from './context.js'
import { EXPERTS } from './experts.js'
import { LINEAR_ATTENTION } from './linear-attention.js'
import { LOSSES } from './losses.js'

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

  // y = activation(w ∗ x + b), for each channel by itself. Training reads texts from their start, so the state is 0.
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

  // y = R(θ)·x, where each column of θ counts the positions of one of three axes: time, height or width
  'com.microsoft:MRotaryEmbedding': (context) => {
    const { g, node, inputs, shared } = context
    const [x, positions, cosine, sine] = inputs
    const attributes = ['interleaved', 'num_heads', 'rotary_embedding_dim'].map((name) => [
      name,
      intAttribute(node, name, 0),
    ])
    if (intAttribute(node, 'is_packed_batching', 0) === 1 || floatAttribute(node, 'scale', 1) !== 1) {
      refuse(context, 'training with its is_packed_batching or scale is not implemented')
    }
    const axes = axesOfColumns(intsAttribute(node, 'mrope_section') ?? [], intAttribute(node, 'mrope_layout', 0))
    const along = (axis: number) => g.op('Gather', [positions, g.int(axis)], { axis: 0 }) // (B, S)
    // Make a row for each token, so that the ordinary rotary embedding can be used.
    const rows = (cache: Value) =>
      shared(`${cache} at ${positions}, ${axes}`, () => {
        const [time, ...others] = range(3).map((axis) => g.op('Gather', [cache, along(axis)], { axis: 0 }))
        const chosen = others.reduce((values, rowsOfAxis, i) => {
          const isOwn = g.float(axes.map((axis) => (axis === i + 1 ? 1 : 0)))
          return g.where(g.op('Greater', [isOwn, g.float(0)]), rowsOfAxis, values)
        }, time)
        return g.reshape(chosen, g.int([-1, axes.length]))
      })
    const numbers = shared(`tokens of ${positions}`, () => {
      const first = along(0)
      return g.reshape(g.op('Range', [g.int(0), g.op('Size', [first]), g.int(1)]), g.shape(first))
    })
    return [
      g.op('com.microsoft:RotaryEmbedding', [x, numbers, rows(cosine), rows(sine)], Object.fromEntries(attributes)),
    ]
  },
}

/**
 * Returns the axis of positions (time, height or width) for each column of the tables. Layout 0 has a section of
 * columns for each axis. In other layouts, the axes take turns until their sections are used up.
 */
function axesOfColumns(sections: readonly number[], layout: number): number[] {
  if (layout === 0) return sections.flatMap((size, axis) => Array<number>(size).fill(axis))
  const size = sections.reduce((sum, section) => sum + section, 0)
  return range(size).map((column) => (column < 3 * (sections[column % 3] ?? 0) ? column % 3 : 0))
}

export const LOWERINGS: Readonly<Record<string, Lowering>> = {
  ...ATTENTION,
  ...LINEAR_ATTENTION,
  ...EXPERTS,
  ...FUSED,
  ...LOSSES,
}

/**
 * Replaces all fused operators. The names of outputs stay. Gradient rules for values that several new nodes compute are
 * added to `custom`. Throws UnsupportedError with the names of all nodes that cannot be replaced; other nodes may
 * already be replaced then.
 */
export function lowerFused(graph: Graph, custom: CustomGradients = new Map()): void {
  const gradient: LoweringContext['gradient'] = (value, inputs, rule) => void custom.set(value, { inputs, rule })
  const refusals: LowrankError[] = []
  const sharedValues = new Map<string, Value>()
  const shared: LoweringContext['shared'] = (key, make) => sharedValue(sharedValues, key, make)
  for (const node of [...graph.nodes]) {
    const lowering = entryOf(LOWERINGS, operatorOf(node))
    if (lowering !== undefined)
      refusals.push(...attempt(() => replace(graph, node, lowering, { shared, gradient })).problems)
  }
  if (refusals.length === 1) throw refusals[0]
  if (refusals.length > 1) {
    throw new UnsupportedError({ where: 'gradients', what: refusals.map(({ message }) => message).join('; ') })
  }
}

function replace(
  graph: Graph,
  node: NodeProto,
  lowering: Lowering,
  others: Pick<LoweringContext, 'shared' | 'gradient'>,
): void {
  const { output: outputs } = node
  const reads = (output: number) => {
    const name = outputs[output]
    if (!name) return false
    return graph.consumers(name).length > 0 || graph.outputs.some((entry) => entry.name === name)
  }
  const g = new Builder(graph, node.name || outputs[0])
  const values = lowering({ g, node, inputs: [...node.input], ...others })
  for (const [i, name] of outputs.entries()) {
    if (values[i] !== undefined || !reads(i)) continue
    throw new UnsupportedError({
      where: labelOf(node),
      what: `training with its output ${i} (${name}) is not implemented`,
    })
  }
  graph.replace(node, values)
}
