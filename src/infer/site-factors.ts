// What a session feeds for one adapter: factors as they are multiplied, and, for layers that are more than W + s·B·A, the scale and
// the shift of their outputs. y' = c ⊙ (y + s·(x·Aᵀ)·Bᵀ) + t with y = x·Wᵀ + b is DoRA's output for c = m / ‖W + s·B·A‖ and
// t = (1 − c) ⊙ b (Liu et al. 2024, arXiv 2402.09353; PEFT leaves the base's bias b alone), and that of a bias of B for c = 1 and t = s·biasB.

import { decodeFloats, type FloatDtype } from '../base/dtype.js'
import { NumericError, UnsupportedError } from '../base/errors.js'
import type { Matrix } from '../base/tensor.js'
import { TensorProto_DataType as DataType, type TensorProto } from '../formats/onnx/gen/onnx_pb.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import { dataTypeName, dimsOf } from '../formats/onnx/tensors.js'
import type { Linear } from '../graph/match/linears.js'
import { biasOf, storedValue } from '../graph/match/parameters.js'
import type { PlacedLayer } from '../graph/match/place-adapter.js'
import { floatAttribute } from '../graph/view/attributes.js'
import type { Graph } from '../graph/view/graph.js'
import { transpose } from '../linalg/product.js'
import { StoredDelta } from '../lora/delta.js'
import { OutputNorms } from '../lora/dora.js'
import type { LoraLayer } from '../lora/layer.js'
import type { AdapterFactors, SiteFactors } from './engine.js'

/** Weights pass in blocks of at most so many elements: 4 MiB in f32. */
const BLOCK_ELEMENTS = 1 << 20

const DTYPES: Partial<Record<DataType, FloatDtype>> = {
  [DataType.FLOAT]: 'F32',
  [DataType.FLOAT16]: 'F16',
  [DataType.BFLOAT16]: 'BF16',
}

/**
 * By the model's module names. The base is read for DoRA alone.
 *
 * @throws UnsupportedError naming the node when DoRA's scales cannot be computed from its weight, NumericError when a value is not
 *   finite
 */
export async function adapterFactors(
  model: OnnxModel,
  graph: Graph,
  placed: readonly PlacedLayer[],
): Promise<AdapterFactors> {
  const factors = new Map<string, SiteFactors>()
  for (const { name, layer, linear } of placed) {
    if (factors.has(linear.name)) continue
    const affine = await affineOf(model, graph, linear, layer)
    factors.set(linear.name, { ...siteFactors(name, layer), affine })
    if (affine !== undefined && !(affine.scale.every(Number.isFinite) && affine.shift.every(Number.isFinite))) {
      throw new NumericError({
        where: name,
        what: 'the scales of its outputs, m / ‖W + s·B·A‖, or their bias are not finite',
      })
    }
  }
  return factors
}

function siteFactors(name: string, { weightA, weightB, rank, scaling }: LoraLayer): Omit<SiteFactors, 'affine'> {
  const a = Float32Array.from(transpose(weightA).data)
  const b = Float32Array.from(transpose(weightB).data, (value) => scaling * value)
  if (!a.every(Number.isFinite) || !b.every(Number.isFinite)) {
    throw new NumericError({ where: name, what: 'the adapter holds values that are not finite' })
  }
  return { rank, weightA: a, weightB: b }
}

async function affineOf(
  model: OnnxModel,
  graph: Graph,
  linear: Linear,
  layer: LoraLayer,
): Promise<SiteFactors['affine']> {
  const { magnitude, d } = layer
  if (magnitude === undefined) {
    const shift = layer.biasDelta()
    return shift && { scale: new Float32Array(d).fill(1), shift: Float32Array.from(shift) }
  }
  const norms = await adaptedNorms(model, graph, linear, layer)
  const scale = Float32Array.from(norms.scales(magnitude))
  const bias = await ownBias(model, graph, linear)
  return { scale, shift: scale.map((c, i) => (bias === undefined ? 0 : (1 - c) * bias[i])) }
}

/** Of W + s·B·A, by output of the layer. */
async function adaptedNorms(model: OnnxModel, graph: Graph, linear: Linear, layer: LoraLayer): Promise<OutputNorms> {
  const { transposed, d, fused } = linear
  const { tensor, dtype } = readableWeight(graph, linear)
  const start = fused?.start ?? 0
  const [rows, columns] = dimsOf(tensor)
  const rowBytes = columns * (dtype === 'F32' ? 4 : 2)
  const blockRows = Math.max(1, Math.floor(BLOCK_ELEMENTS / columns))
  const norms = new OutputNorms(d)
  const delta = new StoredDelta(layer, layer.scaling, !transposed, new Float32Array())
  // Rows of the stored weight are outputs (d, k), or inputs (k, d), whose columns are cut to the layer's.
  const [first, end] = transposed ? [start, start + d] : [0, rows]
  for (let row = first; row < end; row += blockRows) {
    const m = Math.min(blockRows, end - row)
    const values = decodeFloats(await model.readPart(tensor, row * rowBytes, m * rowBytes), dtype)
    const block: Matrix = transposed
      ? { data: values, shape: [m, columns] }
      : { data: columnsOf(values, m, columns, start, d), shape: [m, d] }
    norms.add(delta.addTo(block, row - first), row - first, !transposed)
  }
  return norms
}

/** Throws UnsupportedError for a weight that is not float, or that its node multiplies. */
function readableWeight(graph: Graph, { node, kind }: Linear): { tensor: TensorProto; dtype: FloatDtype } {
  const tensor = graph.constant(storedValue(graph, node.input[1]))
  const dtype = tensor && kind !== 'quantized' ? DTYPES[tensor.dataType as DataType] : undefined
  const alpha = kind === 'gemm' ? floatAttribute(node, 'alpha', 1) : 1
  if (tensor !== undefined && dtype !== undefined && alpha === 1) return { tensor, dtype }
  const type = tensor === undefined ? 'no constant' : dataTypeName(tensor.dataType)
  throw new UnsupportedError({
    where: `node ${node.name}`,
    what: 'DoRA needs the norm of its weight, which cannot be read',
    expected: 'a weight in f32, f16 or bf16',
    got: alpha === 1 ? `${node.opType}, ${type}` : `alpha ${alpha}`,
  })
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
  const { node, kind, d } = linear
  if (kind !== 'gemm' || (node.input[2] ?? '') === '') return undefined
  const bias = biasOf(graph, linear)
  const tensor = bias && graph.constant(storedValue(graph, node.input[2]))
  const dtype = tensor && DTYPES[tensor.dataType as DataType]
  if (bias === undefined || tensor === undefined || dtype === undefined) {
    throw new UnsupportedError({ where: `node ${node.name}`, what: 'DoRA needs its bias, which cannot be read' })
  }
  return decodeFloats(await model.readTensor(tensor), dtype).subarray(bias.start, bias.start + d)
}
