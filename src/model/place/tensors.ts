// Lists a graph's tensors by their names in the PyTorch model, for adapters that train some tensors whole.

import { UnsupportedError } from '../../core/base/errors.js'
import { dimsOf, type NodeProto } from '../../onnx/format/tensors.js'
import type { Graph } from '../../onnx/view/graph.js'
import { entryOf, operatorOf } from '../../onnx/view/operators.js'
import { isConv1d, modelType } from '../families/families.js'
import { FLOAT_DTYPES } from '../match/forms/float-product.js'
import { type Linear, nodeScope, parameterModule } from '../match/linears.js'
import { certainBias, NORMS, placesOf, storedValue } from '../match/parameters.js'
import type { PlacedModel } from './placement.js'

export interface BaseTensor {
  /** The tensor's name, for example model.norm.weight. */
  readonly name: string
  readonly module: string
  /** The shape in PyTorch: (d, k), for an embedding (V, D), for a vector (d). */
  readonly shape: readonly number[]
}

/** Lists tensors in any order. `place` tells where they are, and whether they can be trained. */
export function baseTensors({ graph, linears, embeddings }: Pick<PlacedModel, 'graph' | 'linears' | 'embeddings'>) {
  const tensors = new Map<string, BaseTensor>()
  const add = (module: string, member: string, shape: readonly number[]) => {
    const name = `${module}.${member}`
    if (!tensors.has(name)) tensors.set(name, { name, module, shape })
  }
  for (const linear of linears) {
    add(linear.name, 'weight', [linear.d, linear.k])
    if (certainBias(graph, linear) !== undefined) add(linear.name, 'bias', [linear.d])
  }
  for (const { name, k, d } of embeddings) add(name, 'weight', [k, d])
  for (const [name, shape] of vectorNames(graph)) {
    const at = name.lastIndexOf('.')
    if (!tensors.has(name) && placesOf(graph, name, shape).length > 0) add(name.slice(0, at), name.slice(at + 1), shape)
  }
  return [...tensors.values()]
}

/** Throws UnsupportedError if a weight cannot be trained whole. */
export function requireTrainable({ name, form, fused, node }: Linear, where: string): void {
  if (isConv1d(name)) throw untrainable(where, 'PyTorch has a Conv1D there, whose weight is stored (k, d)', node)
  if (form.isQuantized) throw untrainable(where, 'its weight is stored as integers', node)
  if (fused !== undefined) {
    throw untrainable(where, 'the graph has its weight and those of other layers in one tensor', node)
  }
  if (!['MatMul', 'Gemm', 'Gather'].includes(form.name)) throw untrainable(where, `a ${form.name} computes it`, node)
}

/** Finds names and shapes of vectors, by the names of their nodes or initializers. */
function vectorNames(graph: Graph): Map<string, readonly number[]> {
  const found = new Map<string, readonly number[]>()
  for (const node of graph.nodes) {
    node.input.forEach((value, input) => {
      const stored = storedValue(graph, value)
      const tensor = graph.constant(stored)
      if (tensor === undefined || tensor.dims.length !== 1 || FLOAT_DTYPES[tensor.dataType] === undefined) return
      const norm = Object.entries(entryOf(NORMS, node.opType) ?? {}).find(([, at]) => at === input)?.[0]
      const member = norm ?? /\.(weight|bias)$/.exec(stored)?.[1]
      const module = nodeScope(node) ?? parameterModule(stored)
      if (member !== undefined && module !== undefined) found.set(`${module}.${member}`, dimsOf(tensor))
    })
  }
  return found
}

/** The error for a tensor that cannot be trained. */
export function untrainable(where: string, problem: string, node: NodeProto): UnsupportedError {
  return new UnsupportedError({
    where,
    what: `it cannot be trained whole on this graph: ${problem}`,
    got: `${node.name} (${operatorOf(node)})`,
    hint: "Leave its module out of modulesToSave, or train on another export: optimum's in float32 has each weight by itself",
  })
}

/** Returns what the graph's value exceeds PyTorch's by, or undefined if that is not known. */
export function normOffset(
  { producerName }: Pick<Graph, 'producerName'>,
  config: Readonly<Record<string, unknown>>,
  name: string,
): number | undefined {
  if (producerName !== 'onnxruntime-genai' || !name.endsWith('.weight')) return 0
  return modelType(config.model_type).normOffset
}

export const UNKNOWN_OFFSET =
  'for this type of model, it is not known whether onnxruntime-genai has added 1 to the weights of norms'
