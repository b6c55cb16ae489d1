// Lists a graph's tensors by their names in the PyTorch model, for adapters that train some tensors whole.

import { didYouMean, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { dimsOf } from '../../onnx/format/tensors.js'
import type { Graph } from '../../onnx/view/graph.js'
import { entryOf, operatorOf } from '../../onnx/view/operators.js'
import { isConv1d, modelType } from '../families/families.js'
import { FLOAT_DTYPES } from '../match/forms/float-product.js'
import { type Linear, nodeScope, parameterModule } from '../match/linears.js'
import { endAlike } from '../match/module-names.js'
import {
  type BiasPlace,
  certainBias,
  NORMS,
  type Place,
  placesOf,
  shapeError,
  storedValue,
} from '../match/parameters.js'
import type { PlacedModel } from './placement.js'

/** The initializer that stores a tensor of the model. A vector may be `part` of a longer one. */
export type TensorPlace =
  | { readonly kind: 'weight'; readonly linear: Linear }
  | { readonly kind: 'vector'; readonly place: Place; readonly part: BiasPlace | undefined; readonly linear?: Linear }

export interface BaseTensor {
  /** The tensor's name, for example model.norm.weight. */
  readonly name: string
  readonly module: string
  /** The shape in PyTorch: (d, k), for an embedding (V, D), for a vector (d). */
  readonly shape: readonly number[]
  readonly places: readonly TensorPlace[]
  /** What the graph's values exceed PyTorch's by. */
  readonly offset: number
  /** Why it cannot be trained; undefined if it can. */
  readonly problem: string | undefined
}

/** Lists tensors in any order. If the graph calls a module twice, its tensor has two places. */
export function baseTensors({ graph, linears, embeddings, config }: Omit<PlacedModel, 'use'>): BaseTensor[] {
  const tensors = new Map<string, BaseTensor>()
  const add = (module: string, member: string, tensor: Omit<BaseTensor, 'name' | 'module' | 'offset'>, offset = 0) => {
    const name = `${module}.${member}`
    const known = tensors.get(name)
    const places = [...(known?.places ?? []), ...tensor.places]
    tensors.set(name, { ...(known ?? { ...tensor, name, module, offset }), places })
  }
  for (const linear of [...linears, ...embeddings]) {
    const { name, d, k, form } = linear
    const shape = form.isLookup ? [k, d] : [d, k]
    if (form.isLookup && tensors.has(`${name}.weight`)) continue
    add(name, 'weight', { shape, places: [{ kind: 'weight', linear }], problem: weightProblem(linear) })
    if (form.isLookup) continue
    const bias = certainBias(graph, linear)
    if (bias === undefined) continue
    const part = bias.width === d ? undefined : bias
    add(name, 'bias', { shape: [d], places: [{ kind: 'vector', place: bias, part, linear }], problem: undefined })
  }
  for (const [name, shape] of vectorNames(graph)) {
    if (tensors.has(name)) continue
    const at = name.lastIndexOf('.')
    const places = placesOf(graph, name, shape).map((place) => ({ kind: 'vector', place, part: undefined }) as const)
    if (places.length === 0) continue
    const offset = normOffset(graph, config, name)
    const problem = offset === undefined ? UNKNOWN_OFFSET : undefined
    add(name.slice(0, at), name.slice(at + 1), { shape, places, problem }, offset)
  }
  return [...tensors.values()]
}

function weightProblem({ name, form, fused }: Linear): string | undefined {
  if (isConv1d(name)) return 'PyTorch has a Conv1D there, whose weight is stored (k, d)'
  if (form.isQuantized) return 'its weight is stored as integers'
  if (fused !== undefined) return 'the graph has its weight and those of other layers in one tensor'
  return ['MatMul', 'Gemm', 'Gather'].includes(form.name) ? undefined : `a ${form.name} computes it`
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

/** Finds a tensor by name or by the only name that ends alike. Throws if it cannot be trained. */
export function trainableTensor(tensors: readonly BaseTensor[], name: string, shape: readonly number[]): BaseTensor {
  const near = tensors.filter((tensor) => endAlike(tensor.name, name))
  const found = tensors.find((tensor) => tensor.name === name) ?? (near.length === 1 ? near[0] : undefined)
  if (found === undefined) {
    const names = tensors.map((tensor) => tensor.name)
    throw new MismatchError({
      where: name,
      what: 'the graph has no tensor that is certain to be this one',
      hint: didYouMean(name, names, 3),
    })
  }
  if (found.shape.join() !== shape.join()) throw shapeError(name, found.shape, shape)
  return requireTrainable(found, name)
}

/** Throws UnsupportedError for a tensor that cannot be trained. */
export function requireTrainable<T extends BaseTensor>(tensor: T, where = tensor.name): T {
  const { problem, places } = tensor
  if (problem === undefined) return tensor
  const [place] = places
  const { node } = place.kind === 'weight' ? place.linear : place.place
  throw new UnsupportedError({
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
