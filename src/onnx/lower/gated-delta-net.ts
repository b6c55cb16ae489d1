// Replaces GatedDeltaNet, which onnxruntime-genai writes for CUDA, by LinearAttention, which also runs on CPUs.

import { UnsupportedError } from '../../core/base/errors.js'
import type { NodeProto } from '../format/tensors.js'
import { floatAttribute, intAttribute, stringAttribute } from '../view/attributes.js'
import { Builder, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { labelOf } from '../view/operators.js'

const swapped = (g: Builder, state: Value) => g.transpose(state, [0, 1, 3, 2])

/** Throws UnsupportedError if texts are packed into a row, or if a setting is not known. */
export function toLinearAttention(graph: Graph): void {
  for (const node of graph.nodes.filter(({ opType }) => opType === 'GatedDeltaNet')) {
    const [output, state] = rewritten(graph, node)
    graph.replace(node, [output, state])
  }
}

function rewritten(graph: Graph, node: NodeProto): [output: Value, state: Value] {
  const [query, key, value, packed, decay, beta, past, logarithm, bias] = node.input
  const g = new Builder(graph, node.name || node.output[0])
  const refuse = (what: string, hint: string): never => {
    throw new UnsupportedError({ where: labelOf(node), what, hint })
  }
  if (packed) refuse('it reads several texts in one row, by cu_seqlens', 'Export the graph without packed batches')
  const activations = ['gate_activation', 'beta_activation'].map((name) => stringAttribute(node, name, 'none'))
  if (intAttribute(node, 'state_window', 0) > 0 || !/^(qwen|none),(sigmoid|none)$/.test(activations.join())) {
    refuse(
      `its state_window or its activations ${activations.join(' and ')} are not known`,
      'Export the graph for the CPU',
    )
  }
  const [, heads, valueSize] = graph.declared(past ?? '')?.dims ?? []
  const queryHeads = graph.declared(query)?.dims?.[2] ?? graph.integers(graph.producer(query)?.input[1])?.[2]
  if (heads === undefined || valueSize === undefined || queryHeads === undefined) {
    return refuse('the graph does not tell the sizes of its heads', 'Export the graph for the CPU')
  }
  const flat = (x: Value) => g.reshape(x, g.int([0, 0, -1])) // (B, T, heads, d) → (B, T, heads·d)
  const normalized = (x: Value) =>
    intAttribute(node, 'qk_l2_norm', 0) === 1 ? g.op('LpNormalization', [x], { axis: -1, p: 2 }) : x
  const gate = () => g.mul(g.neg(g.op('Exp', [logarithm])), g.op('Softplus', [g.add(decay, bias)]))
  const { output } = g.node(
    'com.microsoft:LinearAttention',
    [
      ...[flat(normalized(query)), flat(normalized(key)), flat(value), swapped(g, past)],
      ...[activations[0] === 'qwen' ? gate() : decay, activations[1] === 'sigmoid' ? g.op('Sigmoid', [beta]) : beta],
    ],
    {
      q_num_heads: queryHeads,
      kv_num_heads: heads,
      update_rule: stringAttribute(node, 'update_rule', 'gated_delta'),
      scale: { float: floatAttribute(node, 'scale', 0) },
    },
    2,
  )
  return [g.reshape(output[0], g.int([0, 0, heads, valueSize])), swapped(g, output[1])]
}
