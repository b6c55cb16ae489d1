// Reads what only the values of a base tell: which embeddings are tied, and which tensors of an adapter equal the
// base's. PEFT saves an embedding or an output layer with an adapter, usually unchanged, and then nothing has to be
// replaced.

import { elementCount, type FloatArray } from '../../core/base/tensor.js'
import type { Replacement } from '../../lora/kinds/stored.js'
import type { RunAdapter } from '../../lora/run-adapter.js'
import type { OnnxModel } from '../../onnx/format/model.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { ReadLines } from '../match/forms/form.js'
import type { Linear } from '../match/linears.js'
import { readTokenRows } from '../match/read-base-tensor.js'
import { place } from './place.js'
import {
  copyAt,
  type Facts,
  type PartOf,
  type PlacedAdapter,
  type PlacedModel,
  type WeightPlacement,
} from './placement.js'

/** Reads lines of an adapter's tensor: (d, k), or (k, d) if it is stored so. */
export type ReadPart = (part: string, first: number, count: number) => Promise<FloatArray> | FloatArray

export function linesOf(adapter: Pick<RunAdapter, 'get'>): ReadPart {
  return (part, first, count) => {
    const { data, shape } = (adapter.get(part) as Replacement).weight
    return data.subarray(first * shape[1], (first + count) * shape[1])
  }
}

export async function readFacts(
  onnx: OnnxModel,
  model: PlacedModel,
  adapter: PlacedAdapter,
  read: ReadPart,
): Promise<Facts> {
  const saved = adapter.parts.filter(
    (part): part is PartOf<'replacement'> => part.kind === 'replacement' && !part.isTrained,
  )
  const asksForTies = saved.length > 0 || adapter.parts.some(({ kind }) => kind === 'token-rows')
  const tied = asksForTies ? await readTies(onnx, model) : new Map<string, readonly string[]>()
  const copies = new Set<string>()
  const placed = place({ ...model, use: 'session' }, { ...adapter, parts: saved }, { tied, copies })
  for (const at of placed.placements) {
    if (at.kind !== 'weight') continue
    const { shape } = saved.find(({ name }) => name === at.part)!
    const isCopy = () => isBaseCopy(onnx, model.graph, at, (first, count) => read(at.part, first, count))
    if (elementCount(shape) === at.linear.k * at.linear.d && (await isCopy())) copies.add(copyAt(at.part, at.linear))
  }
  return { tied, copies }
}

/** The names of the output layers that are tied to each embedding. */
export async function readTies(
  onnx: OnnxModel,
  { graph, linears, embeddings }: Pick<PlacedModel, 'graph' | 'linears' | 'embeddings'>,
): Promise<Facts['tied']> {
  const tied = new Map<string, readonly string[]>()
  for (const table of embeddings) {
    const heads = linears.filter(({ isHead, d, k }) => isHead && d === table.k && k === table.d)
    const isTied = await Promise.all(heads.map((head) => haveSameTokens(onnx, graph, table, head)))
    tied.set(table.name, [...new Set(heads.filter((_, i) => isTied[i]).map(({ name }) => name))])
  }
  return tied
}

// Tied embeddings are one initializer, two with the same values (an exporter folded a transpose into a copy), or a
// float and an integer initializer with about the same values.

/** Tokens to compare, in two stretches. Untied embeddings differ everywhere. */
const COMPARED_TOKENS = 64

/** 4 bits change a weight by about a tenth of its norm; untied weights are further apart than their norm. */
const QUANTIZED_DISTANCE = 0.4

/** Compares values: exactly, or approximately if at least one side is stored as integers. */
async function haveSameTokens(model: OnnxModel, graph: Graph, embedding: Linear, head: Linear): Promise<boolean> {
  const both = [embedding, head]
  const isExact = both.every(({ form }) => !form.isQuantized)
  if (isExact && embedding.weight === head.weight) return true
  if (!isExact && both.some(({ problem }) => problem !== undefined)) return false
  const count = Math.min(COMPARED_TOKENS / 2, head.d)
  const starts = [0, Math.floor((head.d - count) / 2)]
  const tokens = starts.flatMap((first) => Array.from({ length: count }, (_, i) => first + i))
  const [values, others] = [
    await readTokenRows(model, graph, embedding, tokens),
    await readTokenRows(model, graph, head, tokens),
  ]
  let [square, distance] = [0, 0]
  for (let i = 0; i < values.length; i++) {
    square += values[i] ** 2
    distance += (values[i] - others[i]) ** 2
  }
  return isExact ? distance === 0 : distance < QUANTIZED_DISTANCE ** 2 * square
}

/** How many elements are compared at a time: 4 MiB in f32. */
const BLOCK_ELEMENTS = 1 << 20

/** How many quantization steps a copy may be off: 16-bit scales and rounded sums can add a little to the one step. */
const STEPS = 1.01

/**
 * True if each value equals the base's, or is within one step of a quantized base. `read` reads lines of the adapter's
 * tensor: (d, k), or (k, d) with `isInputMajor`.
 */
async function isBaseCopy(
  model: OnnxModel,
  graph: Graph,
  { linear, isInputMajor }: Pick<WeightPlacement, 'linear' | 'isInputMajor'>,
  read: (first: number, count: number) => Promise<FloatArray> | FloatArray,
): Promise<boolean> {
  const { form, transposed, k, d, problem } = linear
  if (problem !== undefined) return false
  const base: ReadLines = await form.openLines(model, graph, linear)
  const steps = await form.openSteps?.(model, graph, linear)
  const [lines, width] = transposed ? [d, k] : [k, d]
  const whole = isInputMajor === transposed ? await read(0, width) : undefined
  const most = Math.max(1, Math.floor(BLOCK_ELEMENTS / width))
  for (let first = 0; first < lines; first += most) {
    const count = Math.min(most, lines - first)
    const [values, distances] = [await base(first, count), await steps?.(first, count)]
    const copy = whole ?? (await read(first, count))
    for (let i = 0; i < values.length; i++) {
      const at = whole === undefined ? i : (i % width) * lines + first + Math.floor(i / width)
      const step = distances === undefined ? 0 : STEPS * distances[i]
      if (!(Math.abs(values[i] - copy[at]) <= step)) return false
    }
  }
  return true
}
