// Quantized weights of 4 and 8 bits, which stand for scale · (q − zero point).

import { copyMessage } from '../../../formats/onnx/messages.js'
import {
  DataType,
  externalTensor,
  inlineBytes,
  inlineTensor,
  isExternal,
  type TensorProto,
  weightRange,
} from '../../../formats/onnx/tensors.js'
import type { Value } from '../../view/builder.js'
import type { Graph } from '../../view/graph.js'
import { castConstant } from '../../view/source.js'
import type { Form, Product } from './form.js'
import type { IntegerMatrix, IntegerType } from './read-integers.js'

const INTEGER_TYPES: Partial<Record<number, IntegerType>> = {
  [DataType.UINT4]: { bits: 4, isSigned: false },
  [DataType.INT4]: { bits: 4, isSigned: true },
  [DataType.UINT8]: { bits: 8, isSigned: false },
  [DataType.INT8]: { bits: 8, isSigned: true },
}

export function integerType(dataType: number | undefined): IntegerType | undefined {
  return dataType === undefined ? undefined : INTEGER_TYPES[dataType]
}

interface IntegerForm extends Omit<Form, 'isQuantized' | 'openLines'> {
  matrix(graph: Graph, product: Product): IntegerMatrix
}

/** A form whose weight is a matrix of integers. Elements stand for scale · (q − zero point). */
export function integerForm({ matrix: matrixOf, ...form }: IntegerForm): Form {
  return {
    ...form,
    isQuantized: true,
    async openLines(model, graph, product) {
      const { openIntegerLines } = await import('./read-integers.js')
      return openIntegerLines(model, graph, product, matrixOf)
    },
  }
}

export function countOf(graph: Graph, value: Value | undefined): number | undefined {
  const tensor = value ? castConstant(graph, value)?.tensor : undefined
  return tensor?.dims.reduce((product, dim) => product * Number(dim), 1)
}

/** [first, first + count) of `of` */
export interface RowRange {
  readonly first: number
  readonly count: number
  readonly of: number
}

const ALL: RowRange = { first: 0, count: 1, of: 1 }

/**
 * A second constant over the bytes of one, or of some of its rows: of another type or shape, or only under another
 * name, so that ONNX Runtime does not take what is made of both for one value.
 */
export function viewOf(
  graph: Graph,
  value: Value,
  { dataType, dims, rows }: { dataType?: DataType; dims?: readonly number[]; rows?: RowRange } = {},
): Value {
  const tensor = graph.constant(value) as TensorProto
  return graph.addInitializer(
    copyMessage(bytesOfRows(tensor, value, rows), {
      name: graph.freshName(`${value}/view`),
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
