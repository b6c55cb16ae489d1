// Reads quantized weights as the floats that they stand for.

import { decodeFloats } from '../../../base/dtype.js'
import { UnsupportedError } from '../../../base/errors.js'
import type { OnnxModel } from '../../../formats/onnx/model.js'
import { dataTypeName, type TensorProto } from '../../../formats/onnx/tensors.js'
import { intAttribute } from '../../view/attributes.js'
import type { Value } from '../../view/builder.js'
import type { Graph } from '../../view/graph.js'
import { castConstant } from '../../view/source.js'
import { FLOAT_DTYPES } from './float-product.js'
import type { Product, ReadLines } from './form.js'

export interface IntegerType {
  readonly bits: 4 | 8
  readonly isSigned: boolean
}

export interface IntegerMatrix {
  readonly tensor: TensorProto
  readonly type: IntegerType
  readonly width: number
  /** The first of them, which stand for values; those behind only fill a block. Default: all. */
  readonly kept?: number
  readonly scales: Value
  /** Integers, or floats; '' or undefined: all are `middle`. */
  readonly zeroPoints: Value | undefined
  readonly middle?: number
  /** Neighbors in a line that share scale and zero point. */
  readonly block?: number
  scaleAt(line: number, column: number): number
  zeroAt?(line: number, column: number): number
}

export async function openIntegerLines(
  model: OnnxModel,
  graph: Graph,
  product: Product,
  matrixOf: (graph: Graph, product: Product) => IntegerMatrix,
): Promise<ReadLines> {
  requireReadable(product)
  const matrix = matrixOf(graph, product)
  const { tensor, type, width, kept = width, middle = 0, block = 1, scaleAt, zeroAt = scaleAt } = matrix
  const scales = await readFloats(model, graph, matrix.scales)
  const zeroPoints = await readZeroPoints(model, graph, matrix)
  return async (first, count) => {
    const integers = await readIntegers(model, tensor, type, first * width, count * width)
    const result = new Float32Array(count * kept)
    let at = 0
    for (let line = 0; line < count; line++) {
      for (let from = 0; from < kept; from += block) {
        const scale = scales[scaleAt(first + line, from)]
        const zero = zeroPoints === undefined ? middle : zeroPoints[zeroAt(first + line, from)]
        const end = line * width + Math.min(kept, from + block)
        for (let i = line * width + from; i < end; i++) result[at++] = scale * (integers[i] - zero)
      }
    }
    return result
  }
}

/** FP4 and NF4 (QLoRA, arXiv 2305.14314, appendix E), as in ONNX Runtime's blockwise_quant_block_bnb4.h. */
export const TABLES: readonly Float32Array[] = [
  Float32Array.of(
    ...[0, 5.208333333e-3, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25],
    ...[-0, -5.208333333e-3, -0.66666667, -1, -0.33333333, -0.5, -0.16666667, -0.25],
  ),
  Float32Array.of(
    ...[-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453],
    ...[-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0],
    ...[0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224],
    ...[0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1],
  ),
]

export async function openTableLines(model: OnnxModel, graph: Graph, product: Product): Promise<ReadLines> {
  requireReadable(product)
  const { node, k } = product
  const table = TABLES[intAttribute(node, 'quant_type', 1)]
  const blockSize = intAttribute(node, 'block_size', 0)
  const tensor = graph.constant(node.input[1]) as TensorProto
  const largest = await readFloats(model, graph, node.input[2])
  return async (first, count) => {
    // Blocks run on over the ends of rows. Of two numbers in a byte the upper half comes first.
    const start = first * k
    const from = start >> 1
    const bytes = await model.readTensor(tensor, from, ((start + count * k + 1) >> 1) - from)
    const result = new Float32Array(count * k)
    for (let i = 0; i < result.length; i++) {
      const at = start + i
      const byte = bytes[(at >> 1) - from]
      result[i] = table[at % 2 === 0 ? byte >> 4 : byte & 15] * largest[Math.floor(at / blockSize)]
    }
    return result
  }
}

/** The lower half of a byte comes first. */
function unpack(
  bytes: Uint8Array,
  { bits, isSigned }: IntegerType,
  first: number,
  count: number,
): Uint8Array | Int8Array {
  if (bits === 8) {
    const part = bytes.subarray(first, first + count)
    return isSigned ? new Int8Array(part.buffer, part.byteOffset, part.byteLength) : part
  }
  const result = isSigned ? new Int8Array(count) : new Uint8Array(count)
  for (let i = 0; i < count; i++) {
    const at = first + i
    const half = at % 2 === 0 ? bytes[at >> 1] & 15 : bytes[at >> 1] >> 4
    result[i] = isSigned && half > 7 ? half - 16 : half
  }
  return result
}

/** Only their bytes are read. */
async function readIntegers(
  model: OnnxModel,
  tensor: TensorProto,
  type: IntegerType,
  first: number,
  count: number,
): Promise<Uint8Array | Int8Array> {
  const [from, to] = [Math.floor((first * type.bits) / 8), Math.ceil(((first + count) * type.bits) / 8)]
  const bytes = await model.readTensor(tensor, from, to - from)
  return unpack(bytes, type, first - (from * 8) / type.bits, count)
}

async function readZeroPoints(model: OnnxModel, graph: Graph, { zeroPoints, type }: IntegerMatrix) {
  const tensor = castConstant(graph, zeroPoints ?? '')?.tensor
  if (tensor === undefined) return undefined
  if (FLOAT_DTYPES[tensor.dataType] !== undefined) return readFloats(model, graph, zeroPoints ?? '')
  const bytes = await model.readTensor(tensor)
  return unpack(bytes, type, 0, (bytes.length * 8) / type.bits)
}

async function readFloats(model: OnnxModel, graph: Graph, value: Value): Promise<Float32Array> {
  const { tensor } = castConstant(graph, value)!
  const dtype = FLOAT_DTYPES[tensor.dataType]
  if (dtype === undefined) {
    throw new UnsupportedError({
      where: value,
      what: 'scales of this type cannot be read',
      expected: 'FLOAT, FLOAT16 or BFLOAT16',
      got: dataTypeName(tensor.dataType),
    })
  }
  return decodeFloats(await model.readTensor(tensor), dtype)
}

function requireReadable({ node, problem, layout }: Product): void {
  if (problem === undefined) return
  throw new UnsupportedError({
    where: `node ${node.name}`,
    what: `its quantized weight cannot be read: ${problem}`,
    got: `${node.opType}, ${layout}`,
    hint: 'Sessions and merges as branches do not read it; for all else take another export of the model',
  })
}
