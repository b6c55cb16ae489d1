// Parts that most adapters lack: heads, DoRA, biases, embeddings, convolutions, values that replace the base's.

import { LowrankError, UnsupportedError } from '../../core/base/errors.js'
import { transpose } from '../../core/base/tensor.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { ConvolutionLora } from '../../lora/kinds/convolution.js'
import type { EmbeddingLora } from '../../lora/kinds/embedding.js'
import { joinedFactors } from '../../lora/kinds/experts.js'
import type { Replacement, TokenRows } from '../../lora/kinds/stored.js'
import { rowsName } from '../../lora/part.js'
import { requireUnchangedBase } from '../../lora/requirements.js'
import type { LinearValues } from '../../lora/run-adapter.js'
import { affineOf, ownBias } from '../../model/inject/affine.js'
import { checkVector, type VectorPlaces } from '../../model/inject/other-sites.js'
import { isBaseCopy } from '../../model/match/base-copies.js'
import { layerOfExpert, placeExperts, rowOfPeft } from '../../model/match/experts.js'
import { findEmbeddings } from '../../model/match/forms/lookup.js'
import { findPointwise } from '../../model/match/forms/pointwise.js'
import type { Linear } from '../../model/match/linears.js'
import { ofModule } from '../../model/match/module-names.js'
import { type BiasPlace, findConvolutions, shapeError } from '../../model/match/parameters.js'
import { placeAdapter } from '../../model/match/place-adapter.js'
import { readVector } from '../../model/match/read-base-tensor.js'
import { embeddingsOf, type ModelPlaces, placeReplacement, placeTokenRows } from '../../model/match/stored-places.js'
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
  const head = hasHead ? await readHead({ config, graph, linears }, adapter) : undefined
  const names = adapter.parts().flatMap(({ name }) => (head?.tensors.has(name) === true ? [] : [name]))
  const parts = adapter.only(new Set(names))
  requireUnchangedBase(parts, 'adapters of sessions')
  const places = { model: onnx, graph, linears, embeddings: findEmbeddings(graph), config }
  const sites = await adapterSites(places, parts)
  const scaled = [...parts.parts('linear'), ...parts.parts('embedding')]
  const scales = scaled.some(({ magnitude }) => magnitude !== undefined)
  const mixable = mixableOf(sites.factors, scales)
  return { ...sites, about: { head, chatTemplate: adapter.chatTemplate, ...mixable } }
}

export async function hasPlace(session: SessionGraph, adapter: LoraAdapter, part: string): Promise<boolean> {
  try {
    const head = await readHead({ ...session, config: session.base.config ?? {} }, adapter)
    if (head?.tensors.has(part) !== true) await readOtherParts(session, adapter.only(new Set([part])))
    return true
  } catch (error) {
    if (error instanceof LowrankError) return false
    throw error
  }
}

interface LinearParts {
  readonly linear: Linear
  readonly name: string
  layer?: LinearValues
  /** (k, d) or (k, 1 + m) */
  replaced?: ReplacedValues
  bias?: { readonly place: BiasPlace; readonly values: Float32Array }
}

interface LookupParts {
  readonly embedding: Linear
  readonly name: string
  layer?: EmbeddingLora
  /** (1 + m, D) */
  replaced?: ReplacedValues
}

/**
 * Finds the place of each part in the graph. Reads base weights if the adapter has DoRA or replaced biases, and to see
 * if embeddings are tied.
 */
async function adapterSites(places: ModelPlaces, adapter: LoraAdapter): Promise<AdapterSites> {
  const { model, graph } = places
  const linears = new Map<string, LinearParts>()
  const lookups = new Map<string, LookupParts>()
  const vectors = new Map<string, VectorPlaces & { base: Float32Array; values: Float32Array }>()
  const linearOf = (linear: Linear, name = linear.name) =>
    entry<LinearParts>(linears, linear.name, () => ({ linear, name }))
  const lookupOf = (embedding: Linear) =>
    entry<LookupParts>(lookups, embedding.name, () => ({ embedding, name: embedding.name }))
  const layers = adapter.parts('linear')
  const placed = layers.length === 0 ? [] : placeAdapter(graph, places.linears, layers, true)
  for (const { name, layer, linear } of placed) linearOf(linear, name).layer ??= layer
  for (const layer of adapter.parts('embedding')) {
    for (const embedding of embeddingsOf(places, layer.name, [layer.vocabulary, layer.features])) {
      lookupOf(embedding).layer = layer
    }
  }
  for (const layer of adapter.parts('convolution')) {
    for (const linear of pointwiseOf(places, layer)) linearOf(linear).layer = layer.pointwise
  }
  const stacks = new Map<string, SiteFactors>()
  for (const part of adapter.parts('parameter')) {
    const place = placeExperts(graph, places.linears, part, places.config)
    for (const layer of place.layers) linearOf(layer.linear, part.name).layer = layerOfExpert(part, place, layer)
    if (place.stack === undefined) continue
    const { name, rank, scaling, d } = part
    const rows = Array.from({ length: d }, (_, row) => rowOfPeft(place.order, row, d))
    const joined = joinedFactors(part, rows, place.stack.isInputMajor)
    stacks.set(name, { ...NOTHING, ...layerFactors(name, { rank, scaling, ...joined }), kind: 'linear' })
  }
  for (const tensor of adapter.parts('replacement')) {
    const isReplaced = (name: string) => adapter.has(name)
    for (const place of await placeReplacement(places, tensor, adapter.config.fanInFanOut, isReplaced)) {
      if (place.kind === 'weight') {
        if (!tensor.isTrained && (await isBaseCopy(places, place, linesOf(tensor)))) continue
        if (place.linear.form.isLookup) lookupOf(place.linear).replaced = rowsOf(tensor)
        else linearOf(place.linear).replaced = whole(tensor, place.isInputMajor)
      } else if (place.kind === 'bias') {
        linearOf(place.linear).bias = { place: place.bias, values: valuesOf(tensor) }
      } else {
        checkVector(tensor.name, place.place)
        const { offset } = place
        const { node, input } = place.place
        const base = await readVector(model, graph, node.input[input], tensor.name)
        const vector = entry(vectors, tensor.name, () => {
          return { name: tensor.name, places: [], base, values: valuesOf(tensor).map((value) => value + offset) }
        })
        vectors.set(tensor.name, { ...vector, places: [...vector.places, place.place] })
      }
    }
  }
  for (const rows of adapter.parts('token-rows')) {
    for (const place of await placeTokenRows(places, rows, (module) => adapter.has(rowsName(module)))) {
      const parts = place.form.isLookup ? lookupOf(place) : linearOf(place)
      // If the vocabulary has grown, PEFT also saves the whole embedding: the trained rows are written into it.
      const isWhole = parts.replaced !== undefined && parts.replaced.lines === undefined
      if (isWhole) putRows(parts.replaced!, rows, place)
      else parts.replaced = place.form.isLookup ? rowsOf(rows, rows.indices) : columnsOf(rows, place.k)
    }
  }
  const factors = new Map<string, SiteFactors>(stacks)
  for (const [name, parts] of linears) factors.set(name, await linearFactors(places, parts))
  for (const [name, parts] of lookups) factors.set(name, await lookupFactors(places, parts))
  for (const [name, { values }] of vectors) {
    factors.set(name, { ...NOTHING, kind: 'vector', replaced: { data: values, lines: undefined } })
  }
  return { factors, vectors: [...vectors.values()] }
}

function pointwiseOf({ graph }: ModelPlaces, layer: ConvolutionLora): Linear[] {
  const { name, d, channels, kernel, groups } = layer
  const found = layer.pointwise === undefined ? [] : ofModule(findPointwise(graph), name)
  if (found.length === 0) {
    const [convolution] = ofModule(findConvolutions(graph), name)
    throw new UnsupportedError({
      where: name,
      what:
        convolution === undefined
          ? 'the graph has no convolution of this name'
          : 'a session cannot adapt this convolution',
      expected: 'a convolution of kernel 1 and stride 1, in one group, without padding',
      ...(convolution !== undefined && {
        got: `kernel ${kernel.join(' x ')}, ${groups} groups`,
        hint: 'Merge the adapter',
      }),
    })
  }
  for (const linear of found) {
    if (linear.d !== d || linear.k !== channels) throw shapeError(name, [linear.d, linear.k], [d, channels])
  }
  return found
}

function entry<T>(all: Map<string, T>, key: string, make: () => T): T {
  const value = all.get(key) ?? make()
  all.set(key, value)
  return value
}

async function linearFactors(
  { model, graph }: ModelPlaces,
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
    const { place, values } = bias
    const base = await readVector(model, graph, place.node.input[place.input], `${name}.bias`)
    shift = values.map((value, i) => (shift?.[i] ?? 0) + value - base[place.start + i])
  }
  const factors = layer === undefined ? NOTHING : layerFactors(name, layer, ofLayer)
  const weight = replaced && ofLayer ? scaledColumns(replaced, ofLayer) : replaced
  return { ...NOTHING, ...factors, kind: 'linear', scale, shift, replaced: weight, replacesBias: bias !== undefined }
}

function scaledColumns({ data, lines }: ReplacedValues, scale: Float32Array): ReplacedValues {
  return { data: data.map((value, i) => scale[i % scale.length] * value), lines }
}

async function lookupFactors(
  { model, graph }: ModelPlaces,
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

/** Returns a function that reads consecutive rows of the adapter's tensor. */
function linesOf({ weight: { data, shape } }: Replacement) {
  return (first: number, count: number) => data.subarray(first * shape[1], (first + count) * shape[1])
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
