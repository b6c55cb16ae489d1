// The weights of a graph that a merge computes, as tensors of the output: the factors and values of adapters in memory
// become sources of the plan.

import { type ByteSource, checkRange, MemorySource } from '../../base/bytes.js'
import type { FloatDtype, WeightDtype } from '../../base/dtype.js'
import { UnsupportedError } from '../../base/errors.js'
import { elementCount } from '../../base/tensor.js'
import { TensorProto_DataType as DataType, type TensorProto } from '../../formats/onnx/gen/onnx_pb.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { byteLengthOf, dataTypeName, dimsOf, inlineBytes, isExternal, weightRange } from '../../formats/onnx/tensors.js'
import { type LayerFactors, type LayerMagnitude, matrixFactor, scalesFactor } from '../plan/adapters.js'
import { type OutputTensor, sizeOf } from '../plan/layout.js'
import type { Edit, EditPart, NewValues } from './edits.js'

const DTYPES: Partial<Record<DataType, FloatDtype>> = {
  [DataType.FLOAT]: 'fp32',
  [DataType.FLOAT16]: 'fp16',
  [DataType.BFLOAT16]: 'bf16',
}

/** The plan that targets belong to: its sources, and the DoRA layers in it. */
interface TargetContext {
  readonly model: OnnxModel
  readonly sources: ByteSource[]
  readonly magnitudes: LayerMagnitude[]
}

/**
 * A tensor of the result.
 *
 * @param name in the result
 * @param stored the base's tensor
 * @throws UnsupportedError naming the node when the weight is of another type than f32, f16 and bf16
 */
export function targetOf(
  name: string,
  { node, isInputMajor, parts, values }: Edit,
  stored: TensorProto,
  context: TargetContext,
): OutputTensor {
  const dtype = DTYPES[stored.dataType as DataType]
  if (dtype === undefined) {
    throw new UnsupportedError({
      where: `node ${node.name}`,
      what: 'its weight has a type that cannot be merged into',
      expected: 'FLOAT, FLOAT16 or BFLOAT16',
      got: dataTypeName(stored.dataType),
    })
  }
  const { source, offset } = placeOf(stored, context)
  const shape = dimsOf(stored)
  const info = { name: stored.name, dtype, shape, offset, byteLength: byteLengthOf(stored.dataType, shape)! }
  const layers = parts.map((part) => layerOf(part, shape, isInputMajor, context))
  const target = { name, dtype, base: info, source, layers, isReplaced: false, rows: [], refusesInfinite: true }
  return values === undefined ? target : { ...target, ...replacedBy(values, target, context) }
}

/** The source of a tensor's bytes, and their place in it. */
function placeOf(tensor: TensorProto, { model, sources }: TargetContext): { source: number; offset: number } {
  if (!isExternal(tensor)) {
    return { source: sources.push(new MemorySource(inlineBytes(tensor, model.name), tensor.name)) - 1, offset: 0 }
  }
  const { location, offset } = weightRange(tensor, model.name)
  return { source: sources.indexOf(model.file(location)), offset }
}

function layerOf(
  { name, weightA, weightB, scale, magnitude, start }: EditPart,
  shape: readonly number[],
  isInputMajor: boolean,
  { sources, magnitudes }: TargetContext,
): LayerFactors {
  const label = name ?? 'bias'
  const [[rank, k], [d]] = [weightA.shape, weightB.shape]
  const common = { name: label, rank, scale, isLinear: false, experts: undefined, isTied: false, report: name }
  const a = matrixFactor(`${label}.weightA`, weightA, sources)
  if (shape.length === 1) {
    // A bias (n) is a weight of one row.
    const values = matrixFactor(`${label}.biasB`, { data: weightB.data, shape: [1, d] }, sources)
    const region = d === shape[0] ? undefined : { first: start, count: d }
    const own = { d: 1, k: d, isInputMajor: false, shape, a: values, b: a, tensor: 'bias', scales: undefined, region }
    return { ...common, ...own }
  }
  const b = matrixFactor(`${label}.weightB`, weightB, sources)
  const outputs = isInputMajor ? elementCount(shape.slice(1)) : shape[0]
  const region = d === outputs ? undefined : { first: start, count: d }
  const own = { d, k, isInputMajor, shape, a, b, tensor: 'weight', region }
  if (magnitude === undefined) return { ...common, ...own, scales: undefined }
  const scales = new Float64Array(d)
  const layer = { ...common, ...own, scales: scalesFactor(label, scales, sources) }
  const stored = matrixFactor(`${label}.magnitude`, { data: magnitude, shape: [1, d] }, sources)
  magnitudes.push({ layer, magnitude: stored, scales })
  return layer
}

function replacedBy(
  { tensor, isTransposed, lines }: NewValues,
  { name, base }: OutputTensor,
  { sources }: TargetContext,
): Partial<OutputTensor> {
  const dtype = tensor.dtype as WeightDtype
  const size = sizeOf(dtype)
  const { shape } = base
  const stored = new MemorySource(tensor.data, name)
  if (lines === undefined) {
    const values = isTransposed ? new TransposedSource(stored, shape, size) : stored
    const info = { name, dtype, shape, offset: 0, byteLength: stored.byteLength }
    return { base: info, source: sources.push(values) - 1, isReplaced: true }
  }
  const source = sources.push(stored) - 1
  const { axis, indices } = lines
  if (axis === 1 && shape.length > 1) {
    const values = { name, source, offset: 0, dtype, rows: indices.length, columns: shape[0] }
    return { columns: { indices, values } }
  }
  const byteLength = stored.byteLength / indices.length
  return { rows: indices.map((index, i) => ({ index, dtype, source, offset: i * byteLength, byteLength })) }
}

/** A matrix (rows, columns) whose values are stored as (columns, rows). */
class TransposedSource implements ByteSource {
  readonly name: string
  readonly byteLength: number
  readonly #stored: MemorySource
  readonly #rows: number
  readonly #columns: number
  readonly #size: number

  constructor(stored: MemorySource, [rows, columns]: readonly number[], size: number) {
    this.name = stored.name
    this.byteLength = stored.byteLength
    this.#stored = stored
    this.#rows = rows
    this.#columns = columns
    this.#size = size
  }

  /** Reads whole values. */
  async read(offset: number, byteLength: number): Promise<Uint8Array> {
    checkRange(this, offset, byteLength)
    const all = await this.#stored.read(0, this.byteLength)
    const size = this.#size
    const result = new Uint8Array(byteLength)
    for (let at = 0, index = offset / size; at < byteLength; at += size, index++) {
      const from = ((index % this.#columns) * this.#rows + Math.floor(index / this.#columns)) * size
      for (let i = 0; i < size; i++) result[at + i] = all[from + i]
    }
    return result
  }

  async close(): Promise<void> {}
}
