// The scale and the shift of a layer's outputs, for layers that are more than W + s·B·A. y' = c ⊙ (y + s·(x·Aᵀ)·Bᵀ) + t
// with y = x·Wᵀ + b is DoRA's output for c = m / ‖W + s·B·A‖ and t = (1 − c) ⊙ b (Liu et al. 2024, arXiv 2402.09353;
// PEFT leaves the base's bias b alone), and that of a bias of B for c = 1 and t = s·biasB.

import { NumericError, UnsupportedError } from '../../base/errors.js'
import type { Matrix } from '../../base/tensor.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { StoredDelta } from '../../lora/delta.js'
import { OutputNorms } from '../../lora/dora.js'
import type { LoraLayer } from '../../lora/layer.js'
import type { ReadLines } from '../match/forms/form.js'
import type { Linear } from '../match/linears.js'
import { biasOf, ownBiasInput } from '../match/parameters.js'
import { readVector } from '../match/read-base-tensor.js'
import type { Graph } from '../view/graph.js'

/** Weights pass in blocks of at most so many elements: 4 MiB in f32. */
const BLOCK_ELEMENTS = 1 << 20

/** The factors of outputs, c (d), and what is added to them, t (d). */
export interface Affine {
  scale: Float32Array
  shift: Float32Array
}

/**
 * Reads the base's weight for DoRA alone.
 *
 * @returns undefined for a layer that needs neither
 * @throws UnsupportedError naming the node when DoRA's scales cannot be computed from its weight, NumericError when a
 *   value is not finite
 */
export async function affineOf(
  model: OnnxModel,
  graph: Graph,
  linear: Linear,
  layer: LoraLayer,
): Promise<Affine | undefined> {
  const { magnitude, d } = layer
  if (magnitude === undefined) {
    const shift = layer.biasDelta()
    return shift && finite(layer, { scale: new Float32Array(d).fill(1), shift: Float32Array.from(shift) })
  }
  const norms = await outputNorms(model, graph, linear, layer)
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

/**
 * The scales m / ‖E + s·(B·A)ᵀ‖ (D) of an embedding's features.
 *
 * @param own what the adapter has in the place of E (V, D)
 * @returns undefined for one without DoRA
 * @throws NumericError when a value is not finite
 */
export async function lookupScales(
  model: OnnxModel,
  graph: Graph,
  embedding: Linear,
  layer: Pick<LoraLayer, 'name' | 'magnitude' | 'weightA' | 'weightB' | 'scaling'>,
  own?: Float32Array,
): Promise<Float32Array | undefined> {
  const { transposed, d, k, form } = embedding
  const { magnitude, weightA, weightB, scaling } = layer
  if (magnitude === undefined) return undefined
  const read: ReadLines =
    own === undefined
      ? await form.openLines(model, graph, embedding)
      : async (first, count) => own.slice(first * d, (first + count) * d)
  const stored = { transposed: own === undefined && transposed, start: 0, width: d }
  const norms = await normsOf(read, stored, { d, k }, { weightA, weightB, scaling, d, k })
  return finite(layer, { scale: Float32Array.from(norms.scales(magnitude)), shift: new Float32Array(0) }).scale
}

/** How a weight lies in a graph, and which outputs of it are the layer's. */
interface StoredWeight {
  /** (d, k), not (k, d) */
  readonly transposed: boolean
  readonly start: number
  readonly width: number
}

/**
 * Norms of W, or of W + s·B·A where a layer is given, by output of the layer.
 *
 * @throws UnsupportedError naming the node when its weight cannot be read
 */
export async function outputNorms(
  model: OnnxModel,
  graph: Graph,
  linear: Linear,
  layer?: LoraLayer,
): Promise<OutputNorms> {
  const { transposed, k, d, fused, form } = linear
  const stored = { transposed, start: fused?.start ?? 0, width: fused?.width ?? d }
  return normsOf(await form.openLines(model, graph, linear), stored, { k, d }, layer)
}

async function normsOf(
  read: ReadLines,
  stored: StoredWeight,
  { k, d }: Pick<LoraLayer, 'd' | 'k'>,
  layer: Pick<LoraLayer, 'weightA' | 'weightB' | 'scaling' | 'd' | 'k'> | undefined,
): Promise<OutputNorms> {
  const norms = new OutputNorms(d)
  const delta = layer && new StoredDelta(layer, layer.scaling, !stored.transposed, new Float32Array())
  for await (const { block, row } of blocksOf(read, stored, { k, d })) {
    norms.add(delta === undefined ? block : delta.addTo(block, row), row, !stored.transposed)
  }
  return norms
}

/** The layer's part of a weight in blocks of its rows, (rows, k) or (rows, d), each with its first row. */
export async function* weightBlocks(model: OnnxModel, graph: Graph, linear: Linear) {
  const { transposed, k, d, fused, form } = linear
  const stored = { transposed, start: fused?.start ?? 0, width: fused?.width ?? d }
  yield* blocksOf(await form.openLines(model, graph, linear), stored, { k, d })
}

async function* blocksOf(
  read: ReadLines,
  { transposed, start, width }: StoredWeight,
  { k, d }: Pick<LoraLayer, 'd' | 'k'>,
): AsyncGenerator<{ block: Matrix; row: number }> {
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

/**
 * The bias that the node itself adds, as far as it is the layer's; undefined where a later node adds it, or none does.
 */
export async function ownBias(model: OnnxModel, graph: Graph, linear: Linear): Promise<Float32Array | undefined> {
  const { node, d } = linear
  const input = ownBiasInput(node)
  if (input === undefined) return undefined
  const bias = biasOf(graph, linear)
  const values = bias && (await readVector(model, graph, node.input[input]))
  if (bias !== undefined && values !== undefined) return values.subarray(bias.start, bias.start + d)
  throw new UnsupportedError({ where: `node ${node.name}`, what: 'its bias cannot be read' })
}
