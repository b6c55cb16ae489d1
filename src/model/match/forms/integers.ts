// Quantized weights of 4 and 8 bits, and the floats that they stand for: scale · (q − zero point).

import { decodeFloats } from '../../../core/base/dtype.js'
import { UnsupportedError } from '../../../core/base/errors.js'
import { copyMessage } from '../../../onnx/format/messages.js'
import type { OnnxModel } from '../../../onnx/format/model.js'
import {
  DataType,
  dataTypeName,
  externalTensor,
  inlineBytes,
  inlineTensor,
  isExternal,
  type TensorProto,
  weightRange,
} from '../../../onnx/format/tensors.js'
import type { Value } from '../../../onnx/view/builder.js'
import type { Graph } from '../../../onnx/view/graph.js'
import { sourceOf } from '../../../onnx/view/patterns.js'
import { FLOAT_DTYPES } from './float-product.js'
import type { Form, Product } from './form.js'

export interface IntegerType {
  readonly bits: 4 | 8
  readonly isSigned: boolean
  /** True if the upper half of a byte comes first. Usually the lower half does. */
  readonly isHighFirst?: boolean
}

export const INTEGER_TYPES: Partial<Record<number, IntegerType>> = {
  [DataType.UINT4]: { bits: 4, isSigned: false },
  [DataType.INT4]: { bits: 4, isSigned: true },
  [DataType.UINT8]: { bits: 8, isSigned: false },
  [DataType.INT8]: { bits: 8, isSigned: true },
}

export function unpack(
  bytes: Uint8Array,
  { bits, isSigned, isHighFirst = false }: IntegerType,
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
    const isHigh = (at % 2 === 0) === isHighFirst
    const half = isHigh ? bytes[at >> 1] >> 4 : bytes[at >> 1] & 15
    result[i] = isSigned && half > 7 ? half - 16 : half
  }
  return result
}

/** Reads integers [first, first + count), and only their bytes. */
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

interface IntegerMatrix {
  readonly tensor: TensorProto
  readonly type: IntegerType
  readonly width: number
  /** Columns that hold values; later ones only fill up a block. Default: all. */
  readonly kept?: number
  readonly scales: Value
  /** Integers or floats. If '' or undefined, all are `middle`. */
  readonly zeroPoints: Value | undefined
  readonly middle?: number
  /** Number of neighbors in a line that share scale and zero point. */
  readonly block?: number
  /** The numbers that the integers select. Default: the integers are the numbers. */
  readonly table?: Float32Array | undefined
  scaleAt(line: number, column: number): number
  zeroAt?(line: number, column: number): number
}

interface IntegerForm extends Omit<Form, 'isQuantized' | 'openLines'> {
  matrix(graph: Graph, product: Product): IntegerMatrix
}

/**
 * Makes a form whose weight is a matrix of integers q that stand for scale · (q − zero point), or for scale · table[q].
 */
export function integerForm({ matrix: matrixOf, ...form }: IntegerForm): Form {
  return {
    ...form,
    isQuantized: true,
    async openSteps(model, graph, product) {
      requireReadable(product)
      const { width, kept = width, scales, scaleAt, block = 1, table } = matrixOf(graph, product)
      const gap = table === undefined ? 1 : largestGap(table)
      const steps = await readFloats(model, graph, scales)
      return async (first, count) => {
        const result = new Float32Array(count * kept)
        for (let line = 0; line < count; line++) {
          for (let from = 0; from < kept; from += block) {
            const step = gap * Math.abs(steps[scaleAt(first + line, from)])
            result.fill(step, line * kept + from, line * kept + Math.min(kept, from + block))
          }
        }
        return result
      }
    },
    async openLines(model, graph, product) {
      requireReadable(product)
      const matrix = matrixOf(graph, product)
      const { tensor, type, width, kept = width, middle = 0, block = 1, table, scaleAt, zeroAt = scaleAt } = matrix
      const scales = await readFloats(model, graph, matrix.scales)
      const zeroPoints = await readZeroPoints(model, graph, matrix)
      return async (first, count) => {
        const integers = await readIntegers(model, tensor, type, first * width, count * width)
        const numberAt = (i: number) => (table === undefined ? integers[i] : table[integers[i]])
        const result = new Float32Array(count * kept)
        let at = 0
        for (let line = 0; line < count; line++) {
          for (let from = 0; from < kept; from += block) {
            const scale = scales[scaleAt(first + line, from)]
            const zero = zeroPoints === undefined ? middle : zeroPoints[zeroAt(first + line, from)]
            const end = line * width + Math.min(kept, from + block)
            for (let i = line * width + from; i < end; i++) result[at++] = scale * (numberAt(i) - zero)
          }
        }
        return result
      }
    },
  }
}

/** Returns the largest distance between neighbors in a table. */
function largestGap(table: Float32Array): number {
  const sorted = [...table].sort((a, b) => a - b)
  return Math.max(...sorted.slice(1).map((value, i) => value - sorted[i]))
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

/** Finds a constant, perhaps through a Cast, and its type after the Cast. */
export function castConstant(graph: Graph, value: Value): { tensor: TensorProto; dataType: number } | undefined {
  const { value: stored, castTo } = sourceOf(graph, value, ['Cast'])
  const tensor = graph.constant(stored)
  return tensor && { tensor, dataType: castTo ?? tensor.dataType }
}

export function countOf(graph: Graph, value: Value | undefined): number | undefined {
  const tensor = value ? castConstant(graph, value)?.tensor : undefined
  return tensor?.dims.reduce((product, dim) => product * Number(dim), 1)
}

/** The rows [first, first + count) of a matrix with `of` rows. */
export interface RowRange {
  readonly first: number
  readonly count: number
  readonly of: number
}

const ALL: RowRange = { first: 0, count: 1, of: 1 }

/**
 * Adds a second constant over the bytes of `value` or of some of its rows, perhaps with another type or shape. Under a
 * new name, ONNX Runtime does not merge what is computed from both.
 */
export function viewOf(
  graph: Graph,
  value: Value,
  view: { name?: string; dataType?: DataType; dims?: readonly number[]; rows?: RowRange } = {},
): Value {
  const { name = graph.freshName(`${value}/view`), dataType, dims, rows } = view
  const tensor = graph.constant(value) as TensorProto
  return graph.addInitializer(
    copyMessage(bytesOfRows(tensor, value, rows), {
      name,
      dataType: dataType ?? tensor.dataType,
      dims: dims === undefined ? tensor.dims : dims.map(BigInt),
    }),
  )
}

function bytesOfRows(tensor: TensorProto, where: string, { first, count, of }: RowRange = ALL): TensorProto {
  if (!isExternal(tensor)) {
    const bytes = inlineBytes(tensor, where)
    const rowBytes = bytes.byteLength / of
    return inlineTensor(tensor, bytes.subarray(first * rowBytes, (first + count) * rowBytes))
  }
  const { location, offset, byteLength } = weightRange(tensor, where)
  const rowBytes = byteLength / of
  return externalTensor(tensor, { location, offset: offset + first * rowBytes, byteLength: count * rowBytes })
}
