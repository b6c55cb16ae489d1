// Layers that the graph joins or splits: several modules in one product, or one module as several products.

import type { LinearValues } from '../../lora/run-adapter.js'
import type { NodeProto } from '../../onnx/format/tensors.js'
import { attentionWidths } from '../../onnx/lower/packed-attention.js'
import { intAttribute, intsAttribute } from '../../onnx/view/attributes.js'
import type { Graph } from '../../onnx/view/graph.js'
import { ALL } from '../families/families.js'
import type { ModelType } from '../families/family.js'
import { ATTENTION } from './forms/attention.js'
import type { Linear, NamedLayer } from './forms/form.js'
import { endAlike, hasEnd, nameInPyTorch, withEnd } from './module-names.js'

/** Modules that may also be several modules, with these in order: `qkv_proj` and `q_proj`, `k_proj`, `v_proj`. */
const PACKED = ALL.flatMap(({ packed = {} }) => Object.entries(packed))

/** Returns the names of the modules that a graph may have instead of this one. */
export function partNames(name: string): string[] | undefined {
  const [wholeEnd, parts] = PACKED.find(([whole]) => hasEnd(name, whole)) ?? []
  return parts?.map((part) => withEnd(name, wholeEnd!, part))
}

/** Names and joins layers as transformers does for this type of model. */
export function modulesInPyTorch(type: ModelType, linears: readonly Linear[]): Linear[] {
  const widths = new Map(linears.map(({ name, d }) => [name, d]))
  return linears.flatMap((linear) => {
    const { name } = linear
    for (const [whole, parts] of Object.entries(type.packed ?? {})) {
      const partEnd = parts.find((part) => hasEnd(name, part))
      if (partEnd === undefined) continue
      const d = parts.reduce((sum, part) => sum + (widths.get(withEnd(name, partEnd, part)) ?? Number.NaN), 0)
      if (Number.isNaN(d)) continue
      return partEnd === parts[0] ? [{ ...linear, name: withEnd(name, partEnd, whole), d, fused: undefined }] : []
    }
    return [{ ...linear, name: nameInPyTorch(type, name) }]
  })
}

/**
 * Splits a product of several layers by what reads its output: an attention operator with numbers of heads, a Split or
 * Slices. Returns undefined for a single layer.
 */
export function packedParts(graph: Graph, linear: Linear): Linear[] | undefined {
  if (linear.form === ATTENTION) return attentionParts(linear)
  const names = partNames(linear.name)
  if (names === undefined) return undefined
  let output = linear.output
  let consumers = graph.consumers(output)
  if (consumers.length === 1 && consumers[0].opType === 'Add') {
    output = consumers[0].output[0]
    consumers = graph.consumers(output)
  }
  const widths = headWidths(consumers, linear.d) ?? cutWidths(graph, consumers, linear.d)
  const total = widths?.reduce((sum, width) => sum + width, 0)
  if (widths === undefined || widths.length !== names.length || total !== linear.d) return undefined
  return partsOf(linear, names, widths)
}

function partsOf(linear: Linear, names: readonly string[], widths: readonly number[]): Linear[] {
  let start = 0
  return names.map((name, i) => {
    const fused = { module: linear.name, start, width: linear.d }
    start += widths[i]
    return { ...linear, name, d: widths[i], fused }
  })
}

const BERT_NAMES = ['query', 'key', 'value']

/** The layers of an Attention operator, which is named after the module that contains them. */
function attentionParts(linear: Linear): Linear[] {
  const { name: module, node, d } = linear
  const names = ALL.find(({ attention }) => attention?.[0].test(module))?.attention?.[1] ?? BERT_NAMES
  const partModules = names.map((name) => `${module}.${name}`)
  return partModules.length === 1
    ? [{ ...linear, name: partModules[0] }]
    : partsOf(linear, partModules, attentionWidths(node, d))
}

function headWidths(consumers: readonly NodeProto[], width: number): number[] | undefined {
  const attention = consumers.find(({ opType }) => opType === 'GroupQueryAttention' || opType === 'MultiHeadAttention')
  if (attention === undefined) return undefined
  const heads = intAttribute(attention, 'num_heads', 1)
  const kvHeads = intAttribute(attention, 'kv_num_heads', heads)
  const headSize = width / (heads + 2 * kvHeads)
  if (!Number.isInteger(headSize)) return undefined
  return [heads * headSize, kvHeads * headSize, kvHeads * headSize]
}

/** Widths of the parts that a Split or several Slices cut; undefined if they leave gaps. */
function cutWidths(graph: Graph, consumers: readonly NodeProto[], width: number): number[] | undefined {
  const split = consumers.find(({ opType }) => opType === 'Split')
  const cuts = (split === undefined ? consumers : [split]).flatMap((node) => columnsOf(graph, node, width) ?? [])
  const sorted = cuts.sort((a, b) => a[0] - b[0])
  const isGapless = sorted.every(([start], i) => start === (i === 0 ? 0 : sorted[i - 1][1]))
  return sorted.length > 0 && isGapless ? sorted.map(([start, end]) => end - start) : undefined
}

/** Returns the columns [start, end) of (…, sequence, width) that each output of a Split or a Slice has. */
export function columnsOf(graph: Graph, node: NodeProto, width: number): [start: number, end: number][] | undefined {
  if (node.opType === 'Split') {
    if (![-1, 2].includes(intAttribute(node, 'axis', 0))) return undefined
    const equal = (node.input[1] ?? '') === '' ? node.output.map(() => width / node.output.length) : undefined
    let end = 0
    return (intsAttribute(node, 'split') ?? graph.integers(node.input[1]) ?? equal)?.map((size) => {
      end += size
      return [end - size, end]
    })
  }
  if (node.opType !== 'Slice') return undefined
  const [starts, ends, axes] = [1, 2, 3].map((input) => graph.integers(node.input[input]))
  if (starts === undefined || ends === undefined || axes?.length !== 1 || ![-1, 2].includes(axes[0])) return undefined
  const place = (at: number) => Math.min(at < 0 ? at + width : at, width)
  return [[place(starts[0]), place(ends[0])]]
}

/** Finds the product that computes a module together with others, if the graph does not tell their columns. */
export function unsplitOwner(linears: readonly Linear[], module: string): Linear | undefined {
  const wholes = PACKED.flatMap(([whole, parts]) => {
    return parts.filter((part) => hasEnd(module, part)).map((part) => withEnd(module, part, whole))
  })
  return linears.find(({ name, fused }) => fused === undefined && wholes.some((whole) => endAlike(name, whole)))
}

/** A layer, or `d` of its outputs from `start` on. */
export interface LayerPart<T> extends NamedLayer {
  readonly layer: T
  readonly start: number
}

/**
 * Splits modules that the graph computes as several products: one part for each, with the same A and its rows of B.
 * With `splitsWholes`, also splits what the graph computes at once, so that adapters of the whole and of its parts can
 * share a graph.
 */
export function partsForGraph<T extends NamedLayer>(
  linears: readonly Linear[],
  layers: readonly T[],
  splitsWholes: boolean,
): LayerPart<T>[] {
  const modules = linears.map(({ name, fused }) => (splitsWholes ? name : (fused?.module ?? name)))
  return layers.flatMap((layer): LayerPart<T>[] => {
    const { name, d, k } = layer
    const parts = partNames(name) ?? []
    const found = parts.flatMap((part) => linears.find((linear) => endAlike(linear.name, part)) ?? [])
    const total = found.reduce((sum, linear) => sum + linear.d, 0)
    const isOne = found.length < parts.length || total !== d || modules.some((module) => endAlike(module, name))
    if (isOne) return [{ name, d, k, layer, start: 0 }]
    const starts = found.map((_, i) => found.slice(0, i).reduce((sum, linear) => sum + linear.d, 0))
    return found.map((linear, i) => ({ name: linear.name, d: linear.d, k, layer, start: starts[i] }))
  })
}

export function layerOfPart({ name, d, layer, start }: LayerPart<LinearValues>): LinearValues {
  if (d === layer.d) return layer
  const { kind, k, weightA, weightB, rank, scaling, magnitude, biasB } = layer
  const end = start + d
  return {
    ...{ kind, name, d, k, rank, scaling, weightA },
    weightB: { data: weightB.data.slice(start * rank, end * rank), shape: [d, rank] },
    magnitude: magnitude?.slice(start, end),
    biasB: biasB?.slice(start, end),
  }
}
