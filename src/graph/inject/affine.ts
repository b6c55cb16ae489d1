// The scale and the shift of a layer's outputs, for layers that are more than W + s·B·A. y' = c ⊙ (y + s·(x·Aᵀ)·Bᵀ) + t with
// y = x·Wᵀ + b is DoRA's output for c = m / ‖W + s·B·A‖ and t = (1 − c) ⊙ b (Liu et al. 2024, arXiv 2402.09353; PEFT leaves the base's
// bias b alone), and that of a bias of B for c = 1 and t = s·biasB.

import { decodeFloats } from '../../base/dtype.js'
import { NumericError, UnsupportedError } from '../../base/errors.js'
import type { Matrix } from '../../base/tensor.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { StoredDelta } from '../../lora/delta.js'
import { OutputNorms } from '../../lora/dora.js'
import type { LoraLayer } from '../../lora/layer.js'
import { FLOAT_DTYPES } from '../match/forms/float-product.js'
import type { Linear } from '../match/linears.js'
import { biasOf, ownBiasInput, storedValue } from '../match/parameters.js'
import type { Graph } from '../view/graph.js'

/** Weights pass in blocks of at most so many elements: 4 MiB in f32. */
const BLOCK_ELEMENTS = 1 << 20

/** What outputs are multiplied by, c (d), and what is added to them, t (d). */
export interface Affine {
  scale: Float32Array
  shift: Float32Array
}

/**
 * Reads the base's weight for DoRA alone.
 *
 * @returns undefined for a layer that needs neither
 * @throws UnsupportedError naming the node when DoRA's scales cannot be computed from its weight, NumericError when a value is not
 *   finite
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

function finite({ name }: LoraLayer, affine: Affine): Affine {
  if (affine.scale.every(Number.isFinite) && affine.shift.every(Number.isFinite)) return affine
  throw new NumericError({
    where: name,
    what: 'the scales of its outputs, m / ‖W + s·B·A‖, or their bias are not finite',
  })
}

/**
 * Of W, or of W + s·B·A where a layer is given, by output of the layer.
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
  const read = await form.openLines(model, graph, linear)
  const start = fused?.start ?? 0
  // Lines of the stored weight are outputs (d, k), or inputs (k, d), whose columns are cut to the layer's.
  const columns = transposed ? k : (fused?.width ?? d)
  const blockRows = Math.max(1, Math.floor(BLOCK_ELEMENTS / columns))
  const norms = new OutputNorms(d)
  const delta = layer && new StoredDelta(layer, layer.scaling, !transposed, new Float32Array())
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

/** The bias that the node itself adds, as far as it is the layer's; undefined where a later node adds it, or none does. */
async function ownBias(model: OnnxModel, graph: Graph, linear: Linear): Promise<Float32Array | undefined> {
  const { node, d } = linear
  const input = ownBiasInput(node)
  if (input === undefined) return undefined
  const bias = biasOf(graph, linear)
  const tensor = bias && graph.constant(storedValue(graph, node.input[input]))
  const dtype = tensor && FLOAT_DTYPES[tensor.dataType]
  if (bias === undefined || tensor === undefined || dtype === undefined) {
    throw new UnsupportedError({ where: `node ${node.name}`, what: 'DoRA needs its bias, which cannot be read' })
  }
  return decodeFloats(await model.readTensor(tensor), dtype).subarray(bias.start, bias.start + d)
}
