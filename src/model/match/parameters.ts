// Finds where nodes read a module's tensors. Initializers do not tell: exporters let equal tensors share one.

import { MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { formatShape } from '../../core/base/tensor.js'
import { dimsOf, type NodeProto, type TensorProto } from '../../onnx/format/tensors.js'
import { PACKED_ATTENTION } from '../../onnx/lower/packed-attention.js'
import { floatAttribute, intAttribute, intsAttribute } from '../../onnx/view/attributes.js'
import type { Graph } from '../../onnx/view/graph.js'
import { entryOf, operatorOf } from '../../onnx/view/operators.js'
import { sourceOf } from '../../onnx/view/patterns.js'
import { type Linear, nodeScope, parameterModule } from './linears.js'
import { endAlike, ofModule } from './module-names.js'

/** An input of a node that reads a tensor, perhaps through Transpose, Cast or Identity. */
export interface Place {
  readonly node: NodeProto
  readonly input: number
}

/** Returns the initializer or the Constant's output that a value comes from. */
export function storedValue(graph: Graph, value: string): string {
  return sourceOf(graph, value).value
}

function storedTensor(graph: Graph, value: string): { name: string; tensor: TensorProto } | undefined {
  const name = storedValue(graph, value)
  const tensor = graph.constant(name)
  return tensor && { name, tensor }
}

/** Finds convolutions with a constant kernel (d, in/groups, *kernel). */
export function findConvolutions(graph: Graph) {
  return graph.nodes.flatMap((node) => {
    const stored = node.opType === 'Conv' ? storedTensor(graph, node.input[1]) : undefined
    if (stored === undefined) return []
    const name = nodeScope(node) ?? parameterModule(stored.name) ?? node.name
    const [groups, dilations] = [intAttribute(node, 'group', 1), intsAttribute(node, 'dilations') ?? []]
    const bias = (node.input[2] ?? '') !== '' && storedTensor(graph, node.input[2]) !== undefined ? 2 : undefined
    return [{ name, node, input: 1, shape: dimsOf(stored.tensor), groups, dilations, bias }]
  })
}

export function shapeError(where: string, expected: readonly number[], got: readonly number[]): MismatchError {
  return new MismatchError({
    where,
    what: 'the adapter has another shape for this tensor',
    expected: `${formatShape(expected)}, as in the graph`,
    got: formatShape(got),
    hint: 'Its base had another vocabulary or is another model',
  })
}

/** A bias of `width` elements; the layer's elements begin at `start`. */
export interface BiasPlace extends Place {
  readonly start: number
  readonly width: number
}

export const BIAS_INPUTS: Readonly<Record<string, number>> = {
  Gemm: 2,
  Conv: 2,
  [PACKED_ATTENTION]: 2,
  'com.microsoft:MatMulNBits': 5,
  'com.microsoft:DynamicQuantizeMatMul': 4,
  'com.microsoft:MatMulIntegerToFloat': 6,
}

export function ownBiasInput(node: NodeProto): number | undefined {
  const input = entryOf(BIAS_INPUTS, operatorOf(node))
  return input === undefined || (node.input[input] ?? '') === '' ? undefined : input
}

/** Finds the constant that is added to a linear layer's outputs and nothing else. */
export function biasOf(graph: Graph, { node, output, d, fused }: Linear): BiasPlace | undefined {
  const { start, width } = fused ?? { start: 0, width: d }
  const isBias = (value: string) => {
    const dims = storedTensor(graph, value)?.tensor.dims.map(Number)
    return dims !== undefined && dims.at(-1) === width && dims.slice(0, -1).every((dim) => dim === 1)
  }
  const biasInput = ownBiasInput(node)
  if (biasInput !== undefined) {
    const beta = floatAttribute(node, 'beta', 1)
    if (beta !== 1) {
      const what = 'a bias of a Gemm whose beta is not 1 cannot be adapted'
      throw new UnsupportedError({ where: `node ${node.name}`, what, got: `beta ${beta}` })
    }
    return isBias(node.input[biasInput]) ? { node, input: biasInput, start, width } : undefined
  }
  const [next, ...others] = graph.consumers(output)
  const isOutput = graph.outputs.some(({ name }) => name === output)
  if (next === undefined || others.length > 0 || isOutput) return undefined
  const fusedBias = entryOf(FUSED_BIASES, operatorOf(next))
  if (fusedBias !== undefined) {
    if (!fusedBias.layers.includes(next.input.indexOf(output))) return undefined
    return isBias(next.input[fusedBias.bias] ?? '') ? { node: next, input: fusedBias.bias, start, width } : undefined
  }
  if (operatorOf(next) === 'com.microsoft:MultiHeadAttention') {
    // Its bias input joins the biases of query, key and value.
    const layer = next.input.indexOf(output)
    const tensor = storedTensor(graph, next.input[3] ?? '')?.tensor
    if (tensor === undefined || fused !== undefined || layer > 2) return undefined
    const [all] = dimsOf(tensor)
    return { node: next, input: 3, start: layer === 2 ? all - d : layer * d, width: all }
  }
  if (next.opType !== 'Add') return undefined
  const input = next.input.findIndex(isBias)
  return input === -1 ? undefined : { node: next, input, start, width }
}

/** Operators that add the previous layer's bias: the inputs that can be the layer, and the input of the bias. */
const FUSED_BIASES: Readonly<Record<string, { readonly layers: readonly number[]; readonly bias: number }>> = {
  'com.microsoft:BiasGelu': { layers: [0], bias: 1 },
  'com.microsoft:FastGelu': { layers: [0], bias: 1 },
  'com.microsoft:SkipLayerNormalization': { layers: [0, 1], bias: 4 },
  'com.microsoft:SkipSimplifiedLayerNormalization': { layers: [0, 1], bias: 3 },
}

/** Returns what {@link biasOf} does, but only if the graph shows that the constant is the module's bias. */
export function certainBias(graph: Graph, linear: Linear): BiasPlace | undefined {
  const bias = biasOf(graph, linear)
  if (bias === undefined) return undefined
  const { node, input } = bias
  const isModule = (name: string | undefined) =>
    name === linear.name || (name !== undefined && name === linear.fused?.module)
  const isOwn =
    node === linear.node ||
    operatorOf(node) === 'com.microsoft:MultiHeadAttention' ||
    isModule(nodeScope(node)) ||
    isModule(parameterModule(storedValue(graph, node.input[input])))
  return isOwn ? bias : undefined
}

export const NORMS: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  LayerNormalization: { weight: 1, bias: 2 },
  SimplifiedLayerNormalization: { weight: 1 },
  RMSNormalization: { weight: 1 },
  SkipLayerNormalization: { weight: 2, bias: 3 },
  SkipSimplifiedLayerNormalization: { weight: 2 },
  EmbedLayerNormalization: { weight: 5, bias: 6 },
}

/** Operators that broadcast, so that an input may have any shape. */
const ELEMENTWISE: ReadonlySet<string> = new Set(['Add', 'Mul', 'Sub', 'Div'])

/** Throws UnsupportedError if a session cannot give rows of a batch other values at this place. */
export function checkVector(name: string, { node, input }: Place): void {
  const norm = entryOf(NORMS, node.opType)
  if (ELEMENTWISE.has(node.opType) || (norm !== undefined && Object.values(norm).includes(input))) return
  if (isConvolutionBias({ node, input })) return
  throw new UnsupportedError({
    where: name,
    what: 'a session cannot replace this tensor, because of the node that reads it',
    expected: `a norm, ${[...ELEMENTWISE].join(', ')}, or the bias of a Conv`,
    got: `${node.name} (${node.opType})`,
    hint: 'Merge the adapter',
  })
}

export function isConvolutionBias({ node, input }: Place): boolean {
  return node.opType === 'Conv' && input === BIAS_INPUTS.Conv
}

/** Optimum's ending for a tensor that both branches of an `If` read. */
const MERGED = /_merged_\d+$/

/**
 * Finds readers of a tensor such as model.norm.weight: the module's fused norms, nodes of the module whose input's name
 * ends with the member's, or the only reader of an initializer with the tensor's name.
 */
export function placesOf(graph: Graph, tensor: string, shape: readonly number[]): Place[] {
  const at = tensor.lastIndexOf('.')
  const [module, member] = [tensor.slice(0, at), tensor.slice(at + 1)]
  const fits = (value: string) => storedTensor(graph, value)?.tensor.dims.join() === shape.join()
  const scoped = graph.nodes.flatMap((node) => {
    const name = nodeScope(node)
    return name === undefined ? [] : [{ name, node }]
  })
  const found = ofModule(scoped, module).flatMap(({ node }) =>
    node.input.flatMap((value, input) => {
      const norm = entryOf(NORMS, node.opType)
      const isNorm = norm !== undefined && entryOf(norm, member) === input
      const isNamed = storedTensor(graph, value)?.name.replace(MERGED, '').endsWith(`.${member}`) ?? false
      return (isNorm || (norm === undefined && isNamed)) && fits(value) ? [{ node, input }] : []
    }),
  )
  const sources = new Set(found.map(({ node, input }) => storedTensor(graph, node.input[input])?.name))
  if (sources.size === 1) return found
  if (sources.size > 1) return []
  const near = [...graph.initializers.keys()].filter((name) => endAlike(name, tensor))
  const stored = graph.initializers.has(tensor) ? tensor : near.length === 1 ? near[0] : undefined
  if (stored === undefined || !fits(stored)) return []
  const readers = graph.consumers(stored)
  return readers.length === 1 ? [{ node: readers[0], input: readers[0].input.indexOf(stored) }] : []
}
