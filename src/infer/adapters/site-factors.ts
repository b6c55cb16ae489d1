// The arrays that a session feeds for one adapter: factors as they are multiplied, scales and shifts of outputs, and
// values in the place of the base's. sites.ts of the graph says which part becomes which input.

import { NumericError, UnsupportedError } from '../../base/errors.js'
import { affineOf, ownBias } from '../../graph/inject/affine.js'
import type { Site, SiteNeeds, SiteRole } from '../../graph/inject/sites.js'
import { checkVector, type VectorPlaces } from '../../graph/inject/vectors.js'
import { findPointwise } from '../../graph/match/forms/pointwise.js'
import type { Linear } from '../../graph/match/linears.js'
import { type BiasPlace, findConvolutions, ofModule, shapeError } from '../../graph/match/parameters.js'
import { placeAdapter } from '../../graph/match/place-adapter.js'
import { readVector } from '../../graph/match/read-base-tensor.js'
import { embeddingsOf, type ModelPlaces, placeReplacement, placeTokenRows } from '../../graph/match/stored-places.js'
import { transpose } from '../../linalg/product.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { ConvolutionLora } from '../../lora/kinds/convolution.js'
import type { EmbeddingLora } from '../../lora/kinds/embedding.js'
import { type Replacement, rowsName, type TokenRows } from '../../lora/kinds/stored.js'
import type { LoraLayer } from '../../lora/layer.js'

export interface SiteFactors {
  readonly kind: Site['kind']
  readonly rank: number
  /** Aᵀ (k, r) */
  readonly weightA: Float32Array
  /** s·Bᵀ (r, d), with DoRA's scale in it. */
  readonly weightB: Float32Array
  /** Factors of outputs (d); undefined: 1. */
  readonly scale: Float32Array | undefined
  /** Values added to outputs (d); undefined: 0. */
  readonly shift: Float32Array | undefined
  readonly replaced: ReplacedValues | undefined
  /** The shift is what a replaced bias differs by, or holds it. */
  readonly replacesBias: boolean
}

export interface ReplacedValues {
  /** (k, d), or (k, 1 + m) for m outputs; (1 + m, D) for m tokens: column or row 0 is zeros; (d) for a vector. */
  readonly data: Float32Array
  /** Which outputs or tokens; undefined: all. */
  readonly lines: readonly number[] | undefined
}

/** Factors by module. Sites without an entry stay as the base has them. */
export type AdapterFactors = ReadonlyMap<string, SiteFactors>

export interface AdapterSites {
  readonly factors: AdapterFactors
  /** The vectors that it replaces, and what reads them. */
  readonly vectors: readonly (VectorPlaces & { readonly base: Float32Array })[]
}

const NOTHING = {
  rank: 0,
  weightA: new Float32Array(),
  weightB: new Float32Array(),
  scale: undefined,
  shift: undefined,
  replacesBias: false,
}

interface LinearParts {
  readonly linear: Linear
  readonly name: string
  layer?: LoraLayer
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

/** Reads the base for DoRA and replaced biases, and to tell whether embeddings are tied. */
export async function adapterSites(places: ModelPlaces, adapter: LoraAdapter): Promise<AdapterSites> {
  const { model, graph } = places
  const linears = new Map<string, LinearParts>()
  const lookups = new Map<string, LookupParts>()
  const vectors = new Map<string, VectorPlaces & { base: Float32Array; values: Float32Array }>()
  const linearOf = (linear: Linear, name = linear.name) =>
    entry<LinearParts>(linears, linear.name, () => ({ linear, name }))
  const lookupOf = (embedding: Linear) =>
    entry<LookupParts>(lookups, embedding.name, () => ({ embedding, name: embedding.name }))
  const own = adapter.parts('linear').length === 0 ? [] : placeAdapter(graph, places.linears, adapter, true)
  for (const { name, layer, linear } of own) linearOf(linear, name).layer ??= layer
  for (const layer of adapter.parts('embedding')) {
    for (const embedding of embeddingsOf(places, layer.name, [layer.vocabulary, layer.features])) {
      lookupOf(embedding).layer = layer
    }
  }
  for (const layer of adapter.parts('convolution')) {
    for (const linear of pointwiseOf(places, layer)) linearOf(linear).layer = layer.pointwise
  }
  for (const tensor of adapter.parts('replacement')) {
    const isReplaced = (other: string) => adapter.has(other)
    for (const place of await placeReplacement(places, tensor, adapter.config.fanInFanOut, isReplaced)) {
      if (place.kind === 'weight') {
        if (place.linear.form.isLookup) lookupOf(place.linear).replaced = wholeLookup(tensor)
        else linearOf(place.linear).replaced = whole(tensor, place.isInputMajor)
      } else if (place.kind === 'bias') {
        linearOf(place.linear).bias = { place: place.bias, values: valuesOf(tensor) }
      } else {
        checkVector(tensor.name, place.place)
        const { offset } = place
        const { node, input } = place.place
        const base = await readVector(model, graph, node.input[input])
        if (base === undefined)
          throw new UnsupportedError({ where: tensor.name, what: 'the base’s values cannot be read' })
        const vector = entry(vectors, tensor.name, () => {
          return { name: tensor.name, places: [], base, values: valuesOf(tensor).map((value) => value + offset) }
        })
        vectors.set(tensor.name, { ...vector, places: [...vector.places, place.place] })
      }
    }
  }
  for (const rows of adapter.parts('token-rows')) {
    for (const place of await placeTokenRows(places, rows, (other) => adapter.has(rowsName(other)))) {
      if (place.form.isLookup) lookupOf(place).replaced = rowsOf(rows)
      else linearOf(place).replaced = columnsOf(rows, place.k)
    }
  }
  const factors = new Map<string, SiteFactors>()
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
    const [one] = ofModule(findConvolutions(graph), name)
    throw new UnsupportedError({
      where: name,
      what: one === undefined ? 'the graph has no convolution of this name' : 'a session cannot adapt this convolution',
      expected: 'a convolution of kernel 1 and stride 1, in one group, without padding',
      ...(one !== undefined && { got: `kernel ${kernel.join(' x ')}, ${groups} groups`, hint: 'Merge the adapter' }),
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
  const isSum = replaced?.lines === undefined && layer?.magnitude === undefined
  if (layer !== undefined && replaced !== undefined && !isSum) throw bothOf(name)
  const affine = layer && (await affineOf(model, graph, linear, layer))
  let scale = layer?.magnitude && affine?.scale
  let shift = affine?.shift
  if (replaced !== undefined) {
    scale = new Float32Array(linear.d).fill(replaced.lines === undefined ? 0 : 1)
    for (const line of replaced.lines ?? []) scale[line] = 0
    const kept = await ownBias(model, graph, linear)
    const added = kept?.map((value, i) => (1 - scale![i]) * value)
    shift = addVectors(shift, added)
  }
  if (bias !== undefined) {
    const { place, values } = bias
    const base = await readVector(model, graph, place.node.input[place.input])
    if (base === undefined)
      throw new UnsupportedError({ where: `${name}.bias`, what: 'the base’s bias cannot be read' })
    shift = values.map((value, i) => (shift?.[i] ?? 0) + value - base[place.start + i])
  }
  const own = layer === undefined ? NOTHING : layerFactors(name, layer, scale)
  return { ...NOTHING, ...own, kind: 'linear', scale, shift, replaced, replacesBias: bias !== undefined }
}

async function lookupFactors(
  { model, graph }: ModelPlaces,
  { embedding, name, layer, replaced }: LookupParts,
): Promise<SiteFactors> {
  if (layer === undefined) return { ...NOTHING, kind: 'lookup', replaced }
  if (replaced?.lines !== undefined) throw bothOf(name)
  const own = replaced?.data.subarray(embedding.d)
  const scale = layer.magnitude && (await affineOf(model, graph, embedding, layer.product, own))?.scale
  return { ...NOTHING, ...layerFactors(name, layer, scale), kind: 'lookup', scale, replaced }
}

function addVectors(a: Float32Array | undefined, b: Float32Array | undefined): Float32Array | undefined {
  return a === undefined || b === undefined ? (a ?? b) : a.map((value, i) => value + b[i])
}

function bothOf(name: string): UnsupportedError {
  return new UnsupportedError({
    where: name,
    what: 'replaced values and a layer of the same adapter on one tensor are not implemented for adapters of sessions',
  })
}

function layerFactors(
  name: string,
  { weightA, weightB, rank, scaling }: Pick<LoraLayer, 'weightA' | 'weightB' | 'rank' | 'scaling'>,
  scale: Float32Array | undefined,
): Pick<SiteFactors, 'rank' | 'weightA' | 'weightB'> {
  const d = weightB.shape[0]
  const a = Float32Array.from(transpose(weightA).data)
  const b = Float32Array.from(transpose(weightB).data, (value, i) => scaling * value * (scale?.[i % d] ?? 1))
  checkFinite(name, a)
  checkFinite(name, b)
  return { rank, weightA: a, weightB: b }
}

function checkFinite(name: string, values: Float32Array): Float32Array {
  if (values.every(Number.isFinite)) return values
  throw new NumericError({ where: name, what: 'the adapter holds values that are not finite' })
}

function valuesOf({ name, weight }: Replacement | TokenRows): Float32Array {
  return checkFinite(name, Float32Array.from(weight.data))
}

function whole(tensor: Replacement, isInputMajor: boolean): ReplacedValues {
  const [rows, columns] = tensor.shape
  const data = valuesOf(tensor)
  const own = isInputMajor ? data : transpose({ data, shape: [rows, columns] }).data
  return { data: own as Float32Array, lines: undefined }
}

function wholeLookup(tensor: Replacement): ReplacedValues {
  return { data: behindZeros(valuesOf(tensor), tensor.shape[1]), lines: undefined }
}

function rowsOf(tensor: TokenRows): ReplacedValues {
  return { data: behindZeros(valuesOf(tensor), tensor.shape[1]), lines: tensor.indices }
}

function behindZeros(values: Float32Array, width: number): Float32Array {
  const data = new Float32Array(width + values.length)
  data.set(values, width)
  return data
}

/** Rows of a head (m, k) as columns (k, 1 + m). */
function columnsOf(tensor: TokenRows, k: number): ReplacedValues {
  const shape = [tensor.indices.length + 1, k] as const
  const { data } = transpose({ data: behindZeros(valuesOf(tensor), k), shape })
  return { data: data as Float32Array, lines: tensor.indices }
}

export function needsOf(factors: AdapterFactors): SiteNeeds {
  return new Map(Array.from(factors, ([module, own]) => [module, rolesOf(own)]))
}

function rolesOf({ kind, rank, scale, shift, replaced }: SiteFactors): Set<SiteRole> {
  if (kind === 'vector') return new Set(['values'])
  const roles: SiteRole[] = rank > 0 ? ['A', 'B'] : []
  if (scale !== undefined) roles.push('scale')
  if (shift !== undefined) roles.push('shift')
  if (replaced !== undefined) roles.push(...(kind === 'linear' ? (['weight'] as const) : (['rows', 'rowOf'] as const)))
  if (replaced?.lines !== undefined && kind === 'linear') roles.push('columns')
  return new Set(roles)
}

export function buffersOf(factors: AdapterFactors): ArrayBufferLike[] {
  const buffers = [...factors.values()].flatMap(({ weightA, weightB, scale, shift, replaced }) =>
    [weightA, weightB, scale, shift, replaced?.data].flatMap((values) => values?.buffer ?? []),
  )
  return [...new Set(buffers)].filter((buffer) => buffer.byteLength > 0)
}
