// Gives a layer's outputs a scale c and a shift t: y' = c ⊙ (y + s·(x·Aᵀ)·Bᵀ) + t. DoRA (Liu et al. 2024, arXiv
// 2402.09353) needs c = m / ‖W + s·B·A‖, and t = (1 − c) ⊙ b because PEFT does not scale the base's bias b. A bias of B
// needs c = 1 and t = s·biasB.

import { NumericError, UnsupportedError } from '../../core/base/errors.js'
import type { Matrix } from '../../core/base/tensor.js'
import { OutputNorms, StoredDelta } from '../../lora/delta.js'
import type { LinearValues } from '../../lora/run-adapter.js'
import type { OnnxModel } from '../../onnx/format/model.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { ReadLines } from '../match/forms/form.js'
import type { Linear } from '../match/linears.js'
import { biasOf, ownBiasInput } from '../match/parameters.js'
import { readVector } from '../match/read-base-tensor.js'

/** How many elements of a weight are read at a time: 4 MiB in f32. */
const BLOCK_ELEMENTS = 1 << 20

/** The scale c (d) and the shift t (d) of a layer's outputs. */
export interface Affine {
  scale: Float32Array
  shift: Float32Array
}

/**
 * Computes scale and shift, or returns undefined if the layer needs neither. Only DoRA reads the base's weight, or the
 * `replacement` (k, d) that the adapter has for it.
 */
export async function affineOf(
  model: OnnxModel,
  graph: Graph,
  linear: Linear,
  layer: LinearValues,
  replacement?: Float32Array,
): Promise<Affine | undefined> {
  const { magnitude, biasB, scaling, d } = layer
  if (magnitude === undefined) {
    const shift = biasB && Float32Array.from(biasB, (value) => scaling * value)
    return shift && finite(layer, { scale: new Float32Array(d).fill(1), shift })
  }
  const norms = await outputNorms(model, graph, linear, layer, replacement)
  const scale = Float32Array.from(norms.scales(magnitude))
  const bias = await ownBias(model, graph, linear)
  return finite(layer, { scale, shift: scale.map((c, i) => (bias === undefined ? 0 : (1 - c) * bias[i])) })
}

function finite({ name }: { readonly name: string }, affine: Affine): Affine {
  if (affine.scale.every(Number.isFinite) && affine.shift.every(Number.isFinite)) return affine
  throw new NumericError({
    where: name,
    what: 'the scales of its outputs, m / ‖W + s·B·A‖, or their bias are not finite',
  })
}

/** Norms of W, or of W + s·B·A if `layer` is given, for each output. `replacement` is as in {@link affineOf}. */
export async function outputNorms(
  model: OnnxModel,
  graph: Graph,
  linear: Linear,
  layer?: LinearValues,
  replacement?: Float32Array,
): Promise<OutputNorms> {
  const { k, d, fused } = linear
  const transposed = replacement === undefined && linear.transposed
  const norms = new OutputNorms(d)
  const delta = layer && new StoredDelta(layer, layer.scaling, !transposed)
  const read: ReadLines = replacement
    ? async (row, count) => replacement.slice(row * d, (row + count) * d)
    : await linear.form.openLines(model, graph, linear)
  const { start, width } = fused ?? { start: 0, width: d }
  // Rows of the stored weight are outputs (d, k) or inputs (k, d); the columns of inputs are cut to the layer's.
  const columns = transposed ? k : width
  const blockRows = Math.max(1, Math.floor(BLOCK_ELEMENTS / columns))
  const [first, end] = transposed ? [start, start + d] : [0, k]
  for (let row = first; row < end; row += blockRows) {
    const m = Math.min(blockRows, end - row)
    const values = await read(row, m)
    const block: Matrix = transposed
      ? { data: values, shape: [m, columns] }
      : { data: columnsOf(values, m, columns, start, d), shape: [m, d] }
    norms.add(delta === undefined ? block : delta.addTo(block, row - first), row - first, !transposed)
  }
  return norms
}

function columnsOf(values: Float32Array, rows: number, columns: number, start: number, count: number): Float32Array {
  if (count === columns) return values
  const result = new Float32Array(rows * count)
  for (let i = 0; i < rows; i++) {
    result.set(values.subarray(i * columns + start, i * columns + start + count), i * count)
  }
  return result
}

/** Reads the bias that the node itself adds; undefined if a later node adds it, or if there is none. */
export async function ownBias(model: OnnxModel, graph: Graph, linear: Linear): Promise<Float32Array | undefined> {
  const { node, d } = linear
  const input = ownBiasInput(node)
  if (input === undefined) return undefined
  const bias = biasOf(graph, linear)
  const where = `node ${node.name}`
  if (bias === undefined) throw new UnsupportedError({ where, what: 'its bias cannot be read' })
  const values = await readVector(model, graph, node.input[input], where)
  return values.subarray(bias.start, bias.start + d)
}
