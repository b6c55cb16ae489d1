// Parts that most adapters lack: heads, DoRA, biases, embeddings, convolutions, values that replace the base's.

import { attempt, UnsupportedError } from '../../core/base/errors.js'
import { transpose } from '../../core/base/tensor.js'
import type { AdapterPart, LoraAdapter } from '../../lora/adapter.js'
import type { EmbeddingLora } from '../../lora/kinds/embedding.js'
import { type ExpertLora, joinedFactors } from '../../lora/kinds/experts.js'
import type { Replacement, TokenRows } from '../../lora/kinds/stored.js'
import type { LoraLayer } from '../../lora/layer.js'
import { requireUnchangedBase } from '../../lora/requirements.js'
import type { LinearValues, RunAdapter } from '../../lora/run-adapter.js'
import { affineOf, ownBias } from '../../model/inject/affine.js'
import type { VectorPlaces } from '../../model/inject/other-sites.js'
import { findEmbeddings } from '../../model/match/forms/lookup.js'
import type { Linear } from '../../model/match/linears.js'
import { layerOfPart } from '../../model/match/packed.js'
import { readVector } from '../../model/match/read-base-tensor.js'
import { layerOfExpert, rowOfPeft } from '../../model/place/experts.js'
import { linesOf, readFacts } from '../../model/place/facts.js'
import { place, placedOrThrow } from '../../model/place/place.js'
import {
  type LayerPlacement,
  type PlacedModel,
  placedAdapter,
  type VectorPlacement,
} from '../../model/place/placement.js'
import { type ModelGraph, shareAdapter } from '../../model/place/spread.js'
import type { OnnxModel } from '../../onnx/format/model.js'
import type { Graph } from '../../onnx/view/graph.js'
import { mixableOf } from './choice.js'
import { readHead } from './heads.js'
import type { AdapterParts, SessionGraph } from './parts.js'
import {
  type AdapterSites,
  checkFinite,
  layerFactors,
  NOTHING,
  type ReplacedValues,
  type SiteFactors,
} from './site-factors.js'

export async function readOtherParts(
  { base: { onnx, config = {} }, graph, linears }: SessionGraph,
  adapter: LoraAdapter,
): Promise<AdapterParts> {
  const hasHead = adapter.parts('replacement').length > 0
  const head = hasHead ? readHead({ config, graph, linears }, adapter) : undefined
  const names = adapter.parts().flatMap(({ name }) => (head?.tensors.has(name) === true ? [] : [name]))
  const parts = adapter.only(new Set(names))
  requireUnchangedBase(parts, 'adapters of sessions')
  const model = { graph, linears, embeddings: findEmbeddings(graph), config, use: 'session' } as const
  const sites = await adapterSites(onnx, model, parts)
  const scaled = [...parts.parts('linear'), ...parts.parts('embedding')]
  const scales = scaled.some(({ magnitude }) => magnitude !== undefined)
  const mixable = mixableOf(sites.factors, scales)
  return { ...sites, about: { head, chatTemplate: adapter.chatTemplate, prompts: adapter.prompts, ...mixable } }
}

/** Spreads an adapter over the graphs of a session. `tell` gets the names of layers that are left out. */
export function shareOver(
  graphs: readonly (SessionGraph & { readonly role: string })[],
  adapter: RunAdapter,
  allowsMissing: boolean,
  tell: (layers: readonly string[]) => void,
): Promise<RunAdapter[]> {
  const models = graphs.map(({ base: { onnx, config = {} }, role, graph, linears }): ModelGraph => {
    const model = { graph, linears, embeddings: findEmbeddings(graph), config, use: 'session' } as const
    return { ...model, role: role as ModelGraph['role'], name: onnx.fileName, onnx }
  })
  const headOf = (model: ModelGraph) => attempt(() => readHead(model, adapter as LoraAdapter)).value?.tensors
  return shareAdapter(models, adapter, allowsMissing, tell, headOf)
}

interface LinearParts {
  readonly linear: Linear
  readonly name: string
  layer?: LinearValues
  /** (k, d) or (k, 1 + m) */
  replaced?: ReplacedValues
  bias?: { readonly at: VectorPlacement; readonly values: Float32Array }
}

interface Base {
  readonly onnx: OnnxModel
  readonly graph: Graph
}

interface LookupParts {
  readonly embedding: Linear
  readonly name: string
  layer?: EmbeddingLora
  /** (1 + m, D) */
  replaced?: ReplacedValues
}

/**
 * Gathers what the adapter brings to each place. Reads base weights if the adapter has DoRA or replaced biases, and to
 * see if embeddings are tied.
 */
async function adapterSites(onnx: OnnxModel, model: PlacedModel, adapter: LoraAdapter): Promise<AdapterSites> {
  const { graph } = model
  const base = { onnx, graph }
  const linears = new Map<string, LinearParts>()
  const lookups = new Map<string, LookupParts>()
  const vectors = new Map<string, VectorPlaces & { base: Float32Array; values: Float32Array }>()
  const factors = new Map<string, SiteFactors>()
  const linearOf = (linear: Linear, name = linear.name) =>
    entry<LinearParts>(linears, linear.name, () => ({ linear, name }))
  const lookupOf = (embedding: Linear) =>
    entry<LookupParts>(lookups, embedding.name, () => ({ embedding, name: embedding.name }))
  const placed = placedAdapter(adapter)
  const placements = placedOrThrow(place(model, placed, await readFacts(onnx, model, placed, linesOf(adapter))))
  for (const at of placements) {
    const part = adapter.get(at.part)!
    if (at.kind === 'layer') {
      if (part.kind === 'embedding') lookupOf(at.linear).layer = part
      else linearOf(at.linear, part.name).layer ??= layerOf(part, at)
    } else if (at.kind === 'stack') {
      const { name, rank, scaling, d } = part as ExpertLora
      const rows = Array.from({ length: d }, (_, row) => rowOfPeft(at.order, row, d))
      const joined = joinedFactors(part as ExpertLora, rows, at.stack.isInputMajor)
      factors.set(name, { ...NOTHING, ...layerFactors(name, { rank, scaling, ...joined }), kind: 'linear' })
    } else if (at.kind === 'weight' && part.kind === 'replacement') {
      if (at.linear.form.isLookup) lookupOf(at.linear).replaced = rowsOf(part)
      else linearOf(at.linear).replaced = whole(part, at.isInputMajor)
    } else if (at.kind === 'weight') {
      const rows = part as TokenRows
      const parts = at.linear.form.isLookup ? lookupOf(at.linear) : linearOf(at.linear)
      // If the vocabulary has grown, PEFT also saves the whole embedding: the trained rows are written into it.
      const isWhole = parts.replaced !== undefined && parts.replaced.lines === undefined
      if (isWhole) putRows(parts.replaced!, rows, at.linear)
      else parts.replaced = at.linear.form.isLookup ? rowsOf(rows, rows.indices) : columnsOf(rows, at.linear.k)
    } else if (at.kind === 'vector') {
      const values = valuesOf(part as Replacement)
      if (at.linear !== undefined) {
        linearOf(at.linear).bias = { at, values }
        continue
      }
      const { node, input, offset } = at
      const own = await readVector(onnx, graph, node.input[input], at.part)
      const vector = entry(vectors, at.part, () => {
        return { name: at.part, places: [], base: own, values: values.map((value) => value + offset) }
      })
      vectors.set(at.part, { ...vector, places: [...vector.places, at] })
    }
  }
  for (const [name, parts] of linears) factors.set(name, await linearFactors(base, parts))
  for (const [name, parts] of lookups) factors.set(name, await lookupFactors(base, parts))
  for (const [name, { values }] of vectors) {
    factors.set(name, { ...NOTHING, kind: 'vector', replaced: { data: values, lines: undefined } })
  }
  return { factors, vectors: [...vectors.values()] }
}

function layerOf(part: AdapterPart, at: LayerPlacement): LinearValues {
  if (part.kind === 'parameter') return layerOfExpert(part, at)
  const layer = part.kind === 'convolution' ? part.pointwise! : (part as LoraLayer)
  return layerOfPart({ name: at.name, d: at.d, k: at.linear.k, start: at.start, layer })
}

function entry<T>(all: Map<string, T>, key: string, make: () => T): T {
  const value = all.get(key) ?? make()
  all.set(key, value)
  return value
}

async function linearFactors(
  { onnx: model, graph }: Base,
  { linear, name, layer, replaced, bias }: LinearParts,
): Promise<SiteFactors> {
  if (layer?.magnitude !== undefined && replaced?.lines !== undefined) throw bothOf(name)
  const affine = layer && (await affineOf(model, graph, linear, layer, replaced?.data))
  const ofLayer = layer?.magnitude && affine?.scale
  let scale = ofLayer
  let shift = affine?.shift
  if (replaced !== undefined) {
    // DoRA's shift makes up for a bias that is scaled with the base's output. Here that output is scaled by 0.
    if (ofLayer !== undefined) shift = undefined
    scale = new Float32Array(linear.d).fill(replaced.lines === undefined ? 0 : 1)
    for (const line of replaced.lines ?? []) scale[line] = 0
    const kept = await ownBias(model, graph, linear)
    const added = kept?.map((value, i) => (1 - scale![i]) * value)
    if (added !== undefined) shift = shift?.map((value, i) => value + added[i]) ?? added
  }
  if (bias !== undefined) {
    const { at, values } = bias
    const base = await readVector(model, graph, at.node.input[at.input], `${name}.bias`)
    shift = values.map((value, i) => (shift?.[i] ?? 0) + value - base[(at.start ?? 0) + i])
  }
  const factors = layer === undefined ? NOTHING : layerFactors(name, layer, ofLayer)
  const weight = replaced && ofLayer ? scaledColumns(replaced, ofLayer) : replaced
  return { ...NOTHING, ...factors, kind: 'linear', scale, shift, replaced: weight, replacesBias: bias !== undefined }
}

function scaledColumns({ data, lines }: ReplacedValues, scale: Float32Array): ReplacedValues {
  return { data: data.map((value, i) => scale[i % scale.length] * value), lines }
}

async function lookupFactors(
  { onnx: model, graph }: Base,
  { embedding, name, layer, replaced }: LookupParts,
): Promise<SiteFactors> {
  if (layer === undefined) return { ...NOTHING, kind: 'lookup', replaced }
  if (replaced?.lines !== undefined) throw bothOf(name)
  const table = replaced?.data.subarray(embedding.d)
  const scale = layer.magnitude && (await affineOf(model, graph, embedding, layer.product, table))?.scale
  const { rank, ...factors } = layerFactors(name, layer, scale)
  const weightA = transpose({ data: factors.weightA, shape: [rank, embedding.k] }).data as Float32Array
  const weightB = transpose({ data: factors.weightB, shape: [embedding.d, rank] }).data as Float32Array
  return { ...NOTHING, kind: 'lookup', rank, weightA, weightB, scale, replaced }
}

function bothOf(name: string): UnsupportedError {
  return new UnsupportedError({
    where: name,
    what: 'replaced values and a layer on one tensor are not implemented for sessions',
  })
}

function valuesOf({ name, weight }: Replacement | TokenRows): Float32Array {
  return checkFinite(name, Float32Array.from(weight.data))
}

function whole(tensor: Replacement, isInputMajor: boolean): ReplacedValues {
  const [rows, columns] = tensor.shape
  const data = valuesOf(tensor)
  const turned = isInputMajor ? data : transpose({ data, shape: [rows, columns] }).data
  return { data: turned as Float32Array, lines: undefined }
}

function rowsOf(tensor: Replacement | TokenRows, lines?: readonly number[]): ReplacedValues {
  return { data: behindZeros(valuesOf(tensor), tensor.shape[1]), lines }
}

function putRows({ data }: ReplacedValues, rows: TokenRows, { form, k, d }: Linear): void {
  const values = valuesOf(rows)
  for (const [i, token] of rows.indices.entries()) {
    if (form.isLookup) data.set(values.subarray(i * d, (i + 1) * d), (1 + token) * d)
    else for (let j = 0; j < k; j++) data[j * d + token] = values[i * k + j]
  }
}

function behindZeros(values: Float32Array, width: number): Float32Array {
  const data = new Float32Array(width + values.length)
  data.set(values, width)
  return data
}

/** Transposes the trained rows of an output layer (m, k) to columns (k, 1 + m); the first column is zeros. */
function columnsOf(tensor: TokenRows, k: number): ReplacedValues {
  const shape = [tensor.indices.length + 1, k] as const
  const { data } = transpose({ data: behindZeros(valuesOf(tensor), k), shape })
  return { data: data as Float32Array, lines: tensor.indices }
}
