// Finds an adapted parameter of experts (target_parameters) in a graph: a layer for each expert, or a single tensor.

import { MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { formatShape } from '../../core/base/tensor.js'
import { chosenRows, type ExpertLora, expertFactors, parameterLayout } from '../../lora/kinds/experts.js'
import { type LinearValues, linearValues } from '../../lora/run-adapter.js'
import { dimsOf, type NodeProto } from '../../onnx/format/tensors.js'
import { intAttribute } from '../../onnx/view/attributes.js'
import type { Graph } from '../../onnx/view/graph.js'
import { operatorOf } from '../../onnx/view/operators.js'
import { expertForm, modelType } from '../families/families.js'
import { type Linear, nodeScope } from '../match/linears.js'
import { type Place, storedValue } from '../match/parameters.js'

type Config = Readonly<Record<string, unknown>>

/** E linear layers of the same shape. */
export interface Parameter {
  readonly name: string
  readonly experts: number
  readonly d: number
  readonly k: number
}

/** How the rows of gate and up lie in B, if the graph has another order: in turn, or one half after the other. */
export type RowOrder = 'in turn' | 'in halves' | undefined

/** The tensor (E, x, y) with the weights of all experts, and one place that reads it. */
export interface ExpertStack extends Place {
  readonly weight: string
  readonly shape: readonly number[]
  readonly hasTurns: boolean
}

/** The layer of an expert. `start`: the first row of B, in the graph's order, that belongs to it. */
export interface ExpertLayer {
  readonly linear: Linear
  readonly expert: number
  readonly start: number
}

export interface ExpertPlace {
  readonly order: RowOrder
  readonly layers: readonly ExpertLayer[]
  readonly stack: (ExpertStack & { readonly isInputMajor: boolean }) | undefined
}

/**
 * The parameters of a layer's experts. `layers`: the names of the layers that graphs have instead. Each list is one way
 * to name them.
 */
const PARAMETERS: readonly { readonly name: RegExp; readonly layers: readonly (readonly string[])[] }[] = [
  { name: /\.gate_up_proj$/, layers: [['gate_up_proj'], ['gate_proj', 'up_proj'], ['w1', 'w3']] },
  { name: /\.down_proj$/, layers: [['down_proj'], ['w2']] },
]

const IN_LAYER = /^(?:.*\.)?layers\.\d+(?=\.)/
const OF_EXPERT = /\bexperts\.(\d+)\.(\w+)$/

/** Throws UnsupportedError if the graph has no place for a parameter, and MismatchError if it has another shape. */
export function placeExperts(graph: Graph, linears: readonly Linear[], wanted: Parameter, config: Config): ExpertPlace {
  const { name, experts, d, k } = wanted
  const form = expertForm(config)
  const found = expertLayers(linears, name)
  if (found !== undefined) {
    const { layers, shape } = found
    if (shape.join() !== [experts, d, k].join()) throw otherShape(wanted, shape)
    return { order: form.hasTurns && isOfTwo(name) ? 'in halves' : undefined, layers, stack: undefined }
  }
  const stack = stackOf(graph, name, form.hasTurns)
  if (stack === undefined) throw noPlace(graph, name)
  const layout = parameterLayout(stack.shape, { experts, d, k }, form.isInputMajor && !isMoE(stack.node))
  if (layout === undefined) throw otherShape(wanted, stack.shape)
  const isSame = !isOfTwo(name) || stack.hasTurns === form.hasTurns
  return {
    order: isSame ? undefined : stack.hasTurns ? 'in turn' : 'in halves',
    layers: [],
    stack: { ...stack, ...layout },
  }
}

/** Returns all parameters of experts in a graph, with their names in transformers. */
export function findParameters(graph: Graph, linears: readonly Linear[], config: Config): Parameter[] {
  const { experts: names = ['mlp.experts.gate_up_proj', 'mlp.experts.down_proj'] } = modelType(config.model_type)
  const scopes = [...linears.map(({ name }) => name), ...graph.nodes.map((node) => nodeScope(node) ?? '')]
  const layers = new Set(scopes.flatMap((scope) => IN_LAYER.exec(`${scope}.`)?.[0] ?? []))
  const { isInputMajor, hasTurns } = expertForm(config)
  return [...layers].flatMap((layer) =>
    names.flatMap((end): Parameter[] => {
      const name = `${layer}.${end}`
      const found = expertLayers(linears, name)
      if (found !== undefined) {
        const [experts, d, k] = found.shape
        return [{ name, experts, d, k }]
      }
      const { shape, node } = stackOf(graph, name, hasTurns) ?? {}
      if (shape === undefined || node === undefined) return []
      const [experts, x, y] = shape
      return [isInputMajor && !isMoE(node) ? { name, experts, d: y, k: x } : { name, experts, d: x, k: y }]
    }),
  )
}

/** Finds the tensor (E, x, y) of a parameter, whatever its layout. */
export function stackOf(graph: Graph, name: string, modelHasTurns = false): ExpertStack | undefined {
  const index = PARAMETERS.findIndex((parameter) => parameter.name.test(name))
  const isHere = inLayerOf(name)
  const found = new Map<string, ExpertStack>()
  for (const node of index < 0 ? [] : graph.nodes) {
    const scope = nodeScope(node)
    if (scope === undefined || !isHere(scope)) continue
    const inputs = isMoE(node) ? [2, 4] : scope.endsWith('.experts') ? node.input.keys() : []
    for (const input of inputs) {
      const weight = storedValue(graph, node.input[input])
      const stored = graph.constant(weight)
      if (stored?.dims.length !== 3) continue
      const hasTurns = isMoE(node) ? intAttribute(node, 'swiglu_fusion', 0) === 1 : modelHasTurns
      found.set(weight, { node, input, weight, shape: dimsOf(stored), hasTurns })
    }
  }
  return found.size === 2 ? [...found.values()][index] : undefined
}

export function isMoE(node: NodeProto): boolean {
  return operatorOf(node) === 'com.microsoft:MoE' && (node.input[6] ?? '') === ''
}

/** Returns the layer of an expert with the factors that a parameter has for it. */
export function layerOfExpert(
  part: ExpertLora,
  {
    linear,
    expert = 0,
    start,
    order,
  }: Omit<ExpertLayer, 'expert'> & { readonly expert?: number; readonly order?: RowOrder },
): LinearValues {
  const [a, b] = expertFactors(part, expert)
  const rows = Array.from({ length: linear.d }, (_, row) => rowOfPeft(order, start + row, part.d))
  return linearValues(linear.name, part.config, a, chosenRows(b, rows))
}

/** Returns the row of PEFT's B that is row `row` of `d` in the graph. */
export function rowOfPeft(order: RowOrder, row: number, d: number): number {
  const half = d / 2
  if (order === 'in turn') return (row % 2) * half + Math.floor(row / 2)
  return order === 'in halves' ? (row < half ? 2 * row : 2 * (row - half) + 1) : row
}

/** Finds the layers that a graph has for a parameter, and the parameter's shape (E, d, k). */
function expertLayers(linears: readonly Linear[], name: string) {
  const isHere = inLayerOf(name)
  const byName = new Map<string, Linear>()
  for (const linear of linears) {
    const [, expert, projection] = (isHere(linear.name) && OF_EXPERT.exec(linear.name)) || []
    if (expert !== undefined) byName.set(`${expert}.${projection}`, linear)
  }
  const parameter = PARAMETERS.find((candidate) => candidate.name.test(name))
  const projections = parameter?.layers.find((names) => names.every((projection) => byName.has(`0.${projection}`)))
  if (projections === undefined) return undefined
  const layers = Array.from({ length: byName.size }, (_, expert) => {
    let start = 0
    return projections.flatMap((projection) => {
      const linear = byName.get(`${expert}.${projection}`)
      if (linear === undefined) return []
      start += linear.d
      return [{ linear, expert, start: start - linear.d }]
    })
  }).flat()
  const ofFirst = layers.filter(({ expert }) => expert === 0)
  const d = ofFirst.reduce((sum, { linear }) => sum + linear.d, 0)
  return { layers, shape: [Math.floor(layers.length / ofFirst.length), d, ofFirst[0].linear.k] }
}

/** Says whether names are of the same layer as a parameter, such as `layers.3`. */
function inLayerOf(name: string): (scope: string) => boolean {
  const [, layer = name] = /\b(layers\.\d+)\./.exec(name) ?? []
  return (scope) => `.${scope}.`.includes(`.${layer}.`)
}

const isOfTwo = (name: string) => PARAMETERS[0].name.test(name)

function otherShape({ name, experts, d, k }: Parameter, shape: readonly number[]): MismatchError {
  const what = 'the adapter has another shape for this parameter'
  return new MismatchError({ where: name, what, expected: formatShape(shape), got: formatShape([experts, d, k]) })
}

function noPlace(graph: Graph, name: string): UnsupportedError {
  const isHere = inLayerOf(name)
  const fused = graph.nodes.find((node) => /MoE$/.test(node.opType) && isHere(nodeScope(node) ?? ''))
  return new UnsupportedError({
    where: name,
    what:
      fused === undefined
        ? 'the graph has neither layers of experts nor a tensor of all of them for this parameter'
        : `the graph computes these experts by ${fused.opType}, whose stored form cannot be adapted`,
    hint: `${fused === undefined ? '' : 'Use a float export of the model, or '}${fused === undefined ? 'M' : 'm'}erge the adapter into the checkpoint, and export that`,
  })
}
