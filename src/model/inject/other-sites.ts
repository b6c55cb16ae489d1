// Places of adapters besides linear layers: embeddings, experts, norms, biases of convolutions. Vectors of a norm or a
// convolution are applied after it, so that each row of a batch can have different ones.

import { create } from '../../onnx/format/protobuf.js'
import { DataType, type NodeProto, TensorProtoSchema } from '../../onnx/format/tensors.js'
import { Builder, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { entryOf } from '../../onnx/view/operators.js'
import { sourceOf } from '../../onnx/view/patterns.js'
import { valueInfo } from '../../onnx/view/value-info.js'
import { findEmbeddings } from '../match/forms/lookup.js'
import type { Linear } from '../match/linears.js'
import { BIAS_INPUTS, isConvolutionBias, NORMS, type Place, placesOf, storedValue } from '../match/parameters.js'
import { stackOf } from '../place/experts.js'
import { ownInput, type Site, type SiteNeeds, SLOTS_INPUT, siteInput } from './sites.js'
import { addToStack } from './stacks.js'

export interface VectorPlaces {
  /** The tensor's name in adapters, such as model.norm.weight. */
  readonly name: string
  readonly places: readonly Place[]
}

/** A tensor that an adapter replaces, with the base's values. */
export type Vector = Pick<VectorPlaces, 'name'> & { readonly base: Float32Array }

/** Finds the places before linear layers are adapted. `inject` adds their inputs. */
export function otherSites(graph: Graph, needs: SiteNeeds, wanted: Iterable<Vector>) {
  const embeddings = findEmbeddings(graph).filter(({ name }) => needs.has(name))
  const vectors = Array.from(wanted, ({ name, base }) => ({ name, base, places: placesOf(graph, name, [base.length]) }))
  const stacks = [...needs.keys()].flatMap((name) => {
    const stack = stackOf(graph, name)
    return stack === undefined ? [] : [{ name, ...stack }]
  })
  return {
    /** See {@link injectLora} for `isInputMajor`. */
    inject(isInputMajor: boolean): Omit<Site, 'roles'>[] {
      const g = new Builder(graph, 'lora')
      const kept = new Set(stacks.map(({ name }) => ownInput([name])))
      for (const input of kept) graph.inputs.push(valueInfo(input, DataType.FLOAT))
      for (const { name, weight, shape } of stacks) {
        for (const role of ['A', 'B'] as const) graph.inputs.push(valueInfo(siteInput(name, role), DataType.FLOAT))
        const [experts, x, y] = shape
        const turned = (value: Value, isTurned: boolean) => (isTurned ? g.transpose(value, [1, 0]) : value)
        const scaled = g.mul(siteInput(name, 'B'), ownInput([name]))
        const left = g.reshape(turned(scaled, !isInputMajor), g.int([0, experts, x]))
        const right = g.reshape(turned(siteInput(name, 'A'), isInputMajor), g.int([0, experts, y]))
        addToStack(graph, g, weight, g.matmul(g.transpose(left, [1, 2, 0]), g.transpose(right, [1, 0, 2])))
      }
      injectEmbeddings(graph, embeddings, needs)
      injectVectors(graph, vectors)
      return [
        ...stacks.map(({ name, shape: [experts, x, y] }) => {
          return {
            kind: 'linear' as const,
            module: name,
            k: experts * y,
            d: experts * x,
            isForAllRows: true,
            isStack: true,
          }
        }),
        ...embeddings.map(({ name, k, d }) => ({ kind: 'lookup' as const, module: name, k, d })),
        ...vectors.map(({ name, base }) => ({ kind: 'vector' as const, module: name, k: 1, d: base.length, base })),
      ]
    },
  }
}

/** Makes each tensor an input, (d) or (rows, 1, d). */
export function injectVectors(graph: Graph, vectors: readonly VectorPlaces[]): void {
  const g = new Builder(graph, 'lora')
  const norms = new Map<NodeProto, Map<'weight' | 'bias', Value>>()
  for (const { name, places } of vectors) {
    const fed = siteInput(name, 'values')
    graph.inputs.push(valueInfo(fed, DataType.FLOAT))
    for (const { node, input } of places) {
      const norm = entryOf(NORMS, node.opType)
      if (isConvolutionBias({ node, input })) addToChannels(graph, g, node, fed)
      else if (norm === undefined) graph.setInput(node, input, typed(graph, g, fed, node.input[input]))
      else {
        const values = norms.get(node) ?? new Map<'weight' | 'bias', Value>()
        norms.set(node, values.set(norm.weight === input ? 'weight' : 'bias', fed))
      }
    }
  }
  for (const [node, values] of norms) openNorm(graph, g, node, values)
}

/** A number of axes that no tensor has. */
const MANY = 99

/** Removes the bias of a convolution, and adds `values`, (d) or (rows, 1, d), to its channels (rows, d, …). */
function addToChannels(graph: Graph, g: Builder, node: NodeProto, values: Value): void {
  const bias = node.input[BIAS_INPUTS.Conv]
  graph.setInputs(node, node.input.slice(0, BIAS_INPUTS.Conv))
  graph.putBehind(node.output[0], (plain) => {
    const lengths = g.op('Slice', [g.shape(plain), g.int([2]), g.int([MANY])])
    const shape = g.concat([g.int([-1, widthOf(graph, bias)]), g.div(lengths, lengths)], 0)
    return g.add(plain, g.reshape(typed(graph, g, values, bias), shape))
  })
}

function widthOf(graph: Graph, value: Value): number {
  return Number(graph.constant(storedValue(graph, value))!.dims[0])
}

/** Applies a norm's replaced weight or bias after it. If the weight is replaced, the bias has to follow it too. */
function openNorm(graph: Graph, g: Builder, node: NodeProto, values: ReadonlyMap<'weight' | 'bias', Value>): void {
  const places = entryOf(NORMS, node.opType)!
  const inputs = [...node.input]
  const [weight, ownBias] = [inputs[places.weight], inputs[places.bias] ?? '']
  const bias = values.get('bias') ?? (values.has('weight') ? ownBias : '')
  // The bias is added after the norm instead. EmbedLayerNormalization must have a bias, so its own becomes 0; other
  // norms lose theirs.
  if (bias !== '') inputs[places.bias] = node.opType === 'EmbedLayerNormalization' ? filled(graph, ownBias, 0) : ''
  while (inputs.at(-1) === '') inputs.pop()
  if (values.has('weight')) inputs[places.weight] = filled(graph, weight, 1)
  graph.setInputs(node, inputs)
  const newWeight = values.get('weight')
  graph.putBehind(node.output[0], (base) => {
    const value = newWeight === undefined ? base : g.mul(base, typed(graph, g, newWeight, weight))
    return bias === '' ? value : g.add(value, bias === ownBias ? bias : typed(graph, g, bias, weight))
  })
}

function typeOf(graph: Graph, value: Value): DataType {
  const { value: stored, castTo } = sourceOf(graph, value)
  return castTo ?? graph.constant(stored)?.dataType ?? DataType.FLOAT
}

function typed(graph: Graph, g: Builder, input: Value, like: Value): Value {
  const type = typeOf(graph, like)
  return type === DataType.FLOAT ? input : g.cast(input, type)
}

function filled(graph: Graph, like: Value, value: 0 | 1): Value {
  const width = widthOf(graph, like)
  const dataType = typeOf(graph, like)
  const name = graph.freshName('lora/filled')
  const unit = dataType === DataType.FLOAT ? 1 : dataType === DataType.FLOAT16 ? 0x3c00 : 0x3f80
  const values = Array<number>(width).fill(value * unit)
  const data = dataType === DataType.FLOAT ? { floatData: values } : { int32Data: values }
  return graph.addInitializer(create(TensorProtoSchema, { name, dataType, dims: [BigInt(width)], ...data }))
}

/**
 * Adapts embeddings E (V, D) for inference. If rows of a batch have different adapters, their t tables are stacked, and
 * a token is looked up in the table of its row's slot; otherwise t is 1.
 *
 * - rowOf (t·V) in int64 and rows (m, D): if rowOf of a token is not 0, it is the row that replaces the base's
 * - scale, (D) or (rows, 1, D): multiplies the rows, for DoRA. B includes it
 * - A (t·V, r) and B (r, D) or (rows, r, D): A[x]·B is added
 *
 * @param needs inputs of each module
 */
function injectEmbeddings(graph: Graph, embeddings: readonly Linear[], needs: SiteNeeds): void {
  if (embeddings.length === 0) return
  const g = new Builder(graph, 'lora')
  graph.inputs.push(valueInfo(SLOTS_INPUT, DataType.INT64))
  for (const { name } of new Map(embeddings.map((embedding) => [embedding.name, embedding])).values()) {
    for (const role of needs.get(name)!) {
      graph.inputs.push(valueInfo(siteInput(name, role), role === 'rowOf' ? DataType.INT64 : DataType.FLOAT))
    }
  }
  for (const { name, input, last, k, dataType } of embeddings) {
    const roles = needs.get(name)!
    const typed = (value: Value) => (dataType === DataType.FLOAT ? value : g.cast(value, dataType))
    const table = (role: 'A' | 'rows' | 'rowOf', index: Value) => g.op('Gather', [siteInput(name, role), index])
    graph.putBehind(last.output[0], (base) => {
      let value = base
      const token = g.add(g.cast(input, DataType.INT64), g.mul(SLOTS_INPUT, g.int(k)))
      if (roles.has('rowOf')) {
        const row = table('rowOf', token)
        value = g.where(g.unsqueeze(g.op('Equal', [row, g.int(0)]), [-1]), value, typed(table('rows', row)))
      }
      if (roles.has('scale')) value = g.mul(value, typed(siteInput(name, 'scale')))
      return roles.has('A') ? g.add(value, typed(g.matmul(table('A', token), siteInput(name, 'B')))) : value
    })
  }
}
