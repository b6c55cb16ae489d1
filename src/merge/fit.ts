// How an adapter fits a base: what a merge would find for each of its parts, without one that writes or stops at the
// first error.

import type { ByteSource } from '../base/bytes.js'
import { decodeWeights, isWeightDtype } from '../base/dtype.js'
import { elementCount } from '../base/tensor.js'
import type { TensorInfo } from '../formats/safetensors.js'
import type { LayerFactors } from './plan/adapters.js'
import { CHUNK_BYTES, sizeOf } from './plan/layout.js'

/** One layer, or a tensor that replaces the base's, and its place in the base. */
export interface PartFit {
  /** In the adapter. */
  name: string
  /** The base's tensor; null when there is none. */
  tensor: string | null
  /** As it is stored; null when there is none. */
  shape: readonly number[] | null
  dtype: string | null
  /** Why it cannot be merged; null when it fits. */
  problem: string | null
  /** ‖s·B·A‖ / ‖W‖, Frobenius norms, where asked for and defined; else null. */
  relativeChange: number | null
}

/** How an adapter fits a base, part by part. */
export interface FitReport {
  /** The file or folder. */
  base: string
  kind: 'checkpoint' | 'onnx'
  /** True if the adapter can be merged into the base. */
  fits: boolean
  parts: PartFit[]
  /** Rows of the input embedding; null where none can be told by its name. */
  vocabulary: number | null
  /** True if input and output embedding are one weight; null where that cannot be told. */
  isTied: boolean | null
  /** Problems of the whole: a quantized base, parts that exclude each other. */
  problems: string[]
  /** Options that a merge needs, and other hints. */
  notes: string[]
}

/** @param info the base's tensor; undefined for a part without a place there */
export function partFit(
  name: string,
  info: { readonly name: string; readonly shape: readonly number[]; readonly dtype: string } | undefined,
  problem: string | null = null,
): PartFit {
  const { name: tensor, shape, dtype } = info ?? { name: null, shape: null, dtype: null }
  return { name, tensor, shape, dtype, problem, relativeChange: null }
}

export function fitReport(report: Omit<FitReport, 'fits'>): FitReport {
  const fits = report.problems.length === 0 && report.parts.every(({ problem }) => problem === null)
  const { base, kind, ...rest } = report
  return { base, kind, fits, ...rest }
}

/** Frobenius norm of a weight, or of the rows or columns of it that are a layer's; it is read in pieces. */
export async function normOf(
  source: ByteSource,
  { dtype, shape, offset, byteLength }: TensorInfo,
  { region, isInputMajor }: Pick<LayerFactors, 'region' | 'isInputMajor'>,
): Promise<number> {
  if (!isWeightDtype(dtype)) return 0
  const columns = elementCount(shape.slice(1))
  const rowBytes = columns * sizeOf(dtype)
  const inRows = region === undefined || isInputMajor ? undefined : region
  const inColumns = isInputMajor ? region : undefined
  const first = (inRows?.first ?? 0) * rowBytes
  const end = inRows === undefined ? byteLength : first + inRows.count * rowBytes
  let sum = 0
  for (let at = first; at < end; at += CHUNK_BYTES) {
    const values = decodeWeights(await source.read(offset + at, Math.min(CHUNK_BYTES, end - at)), dtype)
    for (let i = 0; i < values.length; i++) {
      const column = inColumns && ((at / sizeOf(dtype) + i) % columns) - inColumns.first
      if (column === undefined || (column >= 0 && column < inColumns!.count)) sum += values[i] ** 2
    }
  }
  return Math.sqrt(sum)
}
