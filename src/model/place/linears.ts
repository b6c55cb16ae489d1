// Finds an adapter's layers in a graph, for sessions and merges.

import { MismatchError, UnsupportedError } from '../../core/base/errors.js'
import type { LinearValues } from '../../lora/run-adapter.js'
import type { NodeProto } from '../../onnx/format/tensors.js'
import { inseparable, PACKED_ATTENTION } from '../../onnx/lower/packed-attention.js'
import { stringAttribute } from '../../onnx/view/attributes.js'
import type { Graph } from '../../onnx/view/graph.js'
import { operatorOf } from '../../onnx/view/operators.js'
import { withPointwise } from '../match/forms/pointwise.js'
import type { Linear, NamedLayer } from '../match/linears.js'
import { matchLayers, moduleFinder, withoutMissing } from '../match/match.js'
import { type LayerPart, layerOfPart, partsForGraph, unsplitOwner } from '../match/packed.js'
import type { PlacedModel } from './placement.js'

/** The node of a part of the graph that an execution provider compiled together with its weights. */
export const COMPILED = 'EPContext'

/** ONNX Runtime's quantizer makes this node of Attention. Its products stay inside. */
const INTEGER_ATTENTION = 'QAttention'

export const INTEGER_PRODUCTS: readonly string[] = [
  'MatMulNBits',
  'MatMulBnb4',
  'MatMulInteger',
  'MatMulIntegerToFloat',
  'DynamicQuantizeMatMul',
  'QLinearMatMul',
  'QGemm',
  INTEGER_ATTENTION,
]

/** Operators that may hold a layer which no form finds: integer inputs, execution providers, sub-graphs. */
const OPAQUE: ReadonlySet<string> = new Set([
  ...INTEGER_PRODUCTS,
  ...[
    COMPILED,
    'QMoE',
    'PackedAttention',
    'LongformerAttention',
    'DecoderAttention',
    'QOrderedMatMul',
    'QOrderedAttention',
  ],
  ...['Loop', 'Scan'],
])

/** Names of layers that ONNX Runtime's optimizer packs into an Attention node. */
const QUERY_KEY_VALUE = /\b(query|key|value|[qkv]_(proj|lin))$/

/** The layers of an adapter that is fed to a graph, each with the part of it that the graph computes at once. */
export function placeAdapter(
  graph: Graph,
  linears: readonly Linear[],
  layers: readonly LinearValues[],
): { name: string; layer: LinearValues; linear: Linear }[] {
  return placeLayers({ graph, linears, use: 'session' }, layers).map(({ part, linear }) => {
    return { name: part.layer.name, layer: layerOfPart(part), linear }
  })
}

/** Matches by names and shapes. Throws UnsupportedError if a module has a form that cannot be adapted. */
export function placeLayers<T extends NamedLayer>(
  { graph, linears: found, use }: Pick<PlacedModel, 'graph' | 'linears' | 'use'>,
  adapterLayers: readonly T[],
): { part: LayerPart<T>; linear: Linear }[] {
  const names = adapterLayers.map(({ name }) => name)
  const linears = withPointwise(graph, found, names)
  const parts = partsForGraph(linears, adapterLayers, use === 'session')
  const placed = matchOrRefuse(graph, linears, parts).map(({ layer: part, linear }) => ({ part, linear }))
  const owners = new Map<string, string>()
  for (const { part, linear } of placed) {
    const { name } = part.layer
    const owner = owners.get(linear.name)
    if (owner !== undefined && owner !== name) {
      throw new MismatchError({ where: linear.name, what: `two layers of the adapter mean it: ${owner} and ${name}` })
    }
    owners.set(linear.name, name)
  }
  return placed
}

function matchOrRefuse<T extends NamedLayer>(graph: Graph, linears: readonly Linear[], layers: readonly T[]) {
  const { find } = moduleFinder(linears)
  const names = layers.map(({ name }) => name)
  const missing = names.filter((name) => find(name) === undefined)
  for (const name of missing) {
    const whole = unsplitOwner(linears, name)
    if (whole === undefined) continue
    throw new UnsupportedError({
      where: name,
      what: `the graph computes it as a part of ${whole.name}, and does not tell which outputs are its own`,
      expected: 'an attention operator with numbers of heads, or a Split or Slices, after that product',
      got: `node ${whole.node.name} (${whole.node.opType}) with ${whole.d} outputs`,
      hint: 'Use an export that has the layers one by one, such as with fuse_qkv=false of onnxruntime-genai',
    })
  }
  const found = new Set(linears.map(({ node }) => node))
  const asksForQkv = missing.some((name) => QUERY_KEY_VALUE.test(name))
  const isOpaque = (node: NodeProto) => OPAQUE.has(node.opType) || (asksForQkv && operatorOf(node) === PACKED_ATTENTION)
  const opaque = missing.length === 0 ? [] : graph.nodes.filter((node) => isOpaque(node) && !found.has(node))
  if (opaque.length === 0) return matchLayers(linears, layers)
  const shown = opaque.slice(0, 4).map((node) => {
    const problem = operatorOf(node) === PACKED_ATTENTION ? inseparable(graph, node) : undefined
    const maker = node.opType === COMPILED ? stringAttribute(node, 'source', 'an execution provider') : undefined
    const note = problem === undefined ? (maker === undefined ? '' : ` by ${maker}`) : ` with ${problem}`
    return `${node.name} (${node.opType}${note})`
  })
  throw new UnsupportedError({
    where: missing[0],
    what: 'it is missing from the graph, or in a form that cannot be adapted',
    expected: 'linear layers with a float input and a constant weight, outside of sub-graphs',
    got: shown.join(', ') + (opaque.length > 4 ? `, … (${opaque.length} in all)` : ''),
    hint: opaque.some(({ opType }) => opType === INTEGER_ATTENTION)
      ? 'Quantize the graph without its attention (op_types_to_quantize of ONNX Runtime), or quantize the graph that was not fused'
      : (withoutMissing(
          missing,
          names,
          linears.map(({ name }) => name),
        ) ?? 'Use another export of the model'),
  })
}
