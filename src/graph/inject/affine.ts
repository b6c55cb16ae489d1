// Scale and shift of a layer's outputs, y' = c ⊙ (y + s·(x·Aᵀ)·Bᵀ) + t: for DoRA c = m / ‖W + s·B·A‖ and t = (1 − c) ⊙
// b (Liu et al. 2024, arXiv 2402.09353; PEFT leaves the base's bias b alone), for a bias of B c = 1 and t = s·biasB.

import { NumericError, UnsupportedError } from '../../base/errors.js'
import type { Matrix } from '../../base/tensor.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { OutputNorms, StoredDelta } from '../../lora/delta.js'
import type { LinearValues } from '../../lora/run-adapter.js'
import type { ReadLines } from '../match/forms/form.js'
import type { Linear } from '../match/linears.js'
import { biasOf, ownBiasInput } from '../match/parameters.js'
import { readVector } from '../match/read-base-tensor.js'
import type { Graph } from '../view/graph.js'

/** 4 MiB in f32. */
const BLOCK_ELEMENTS = 1 << 20

/** c (d) and t (d) */
export interface Affine {
  scale: Float32Array
  shift: Float32Array
}

/**
 * Undefined for a layer that needs neither. Reads the base's weight for DoRA alone, or `own` (k, d), which the adapter
 * has in its place.
 */
export async function affineOf(
  model: OnnxModel,
  graph: Graph,
  linear: Linear,
  layer: LinearValues,
  own?: Float32Array,
): Promise<Affine | undefined> {
  const { magnitude, biasB, scaling, d } = layer
  if (magnitude === undefined) {
    const shift = biasB && Float32Array.from(biasB, (value) => scaling * value)
    return shift && finite(layer, { scale: new Float32Array(d).fill(1), shift })
  }
  const norms = await outputNorms(model, graph, linear, layer, own)
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

/** Norms of W, or of W + s·B·A where a layer is given, by output of the layer. `own` is as in {@link affineOf}. */
export async function outputNorms(
  model: OnnxModel,
  graph: Graph,
  linear: Linear,
  layer?: LinearValues,
  own?: Float32Array,
): Promise<OutputNorms> {
  const norms = new OutputNorms(linear.d)
  const isInputMajor = own !== undefined || !linear.transposed
  const delta = layer && new StoredDelta(layer, layer.scaling, isInputMajor)
  for await (const { block, row } of weightBlocks(model, graph, linear, own)) {
    norms.add(delta === undefined ? block : delta.addTo(block, row), row, isInputMajor)
  }
  return norms
}

/** The layer's part of a weight in blocks of its rows, (rows, k) or (rows, d), each with its first row. */
export async function* weightBlocks(model: OnnxModel, graph: Graph, linear: Linear, own?: Float32Array) {
  const { k, d, fused } = linear
  const transposed = own === undefined && linear.transposed
  const read: ReadLines = own
    ? async (row, count) => own.slice(row * d, (row + count) * d)
    : await linear.form.openLines(model, graph, linear)
  const { start, width } = fused ?? { start: 0, width: d }
  // Lines of the stored weight are outputs (d, k), or inputs (k, d), whose columns are cut to the layer's.
  const columns = transposed ? k : width
  const blockRows = Math.max(1, Math.floor(BLOCK_ELEMENTS / columns))
  const [first, end] = transposed ? [start, start + d] : [0, k]
  for (let row = first; row < end; row += blockRows) {
    const m = Math.min(blockRows, end - row)
    const values = await read(row, m)
    const block: Matrix = transposed
      ? { data: values, shape: [m, columns] }
      : { data: columnsOf(values, m, columns, start, d), shape: [m, d] }
    yield { block, row: row - first }
  }
}

function columnsOf(values: Float32Array, rows: number, columns: number, start: number, count: number): Float32Array {
  if (count === columns) return values
  const result = new Float32Array(rows * count)
  for (let i = 0; i < rows; i++) {
    result.set(values.subarray(i * columns + start, i * columns + start + count), i * count)
  }
  return result
}

/** The bias that the node itself adds; undefined where a later node adds it, or none does. */
export async function ownBias(model: OnnxModel, graph: Graph, linear: Linear): Promise<Float32Array | undefined> {
  const { node, d } = linear
  const input = ownBiasInput(node)
  if (input === undefined) return undefined
  const bias = biasOf(graph, linear)
  const values = bias && (await readVector(model, graph, node.input[input]))
  if (bias !== undefined && values !== undefined) return values.subarray(bias.start, bias.start + d)
  throw new UnsupportedError({ where: `node ${node.name}`, what: 'its bias cannot be read' })
}
