// How an adapter fits a base: a merge throws the plan's first problem, a look at the fit lists all.

import type { Directory, Place } from '../base/bytes.js'
import { decodeWeights, isWeightDtype, sizeOf } from '../base/dtype.js'
import { elementCount } from '../base/tensor.js'
import type { TensorInfo } from '../formats/safetensors.js'
import type { ChosenFormat } from './format.js'
import { type OpenMerge, openMerge } from './open.js'
import type { PlacedPart } from './plan/fit.js'
import { CHUNK_BYTES } from './plan/layout.js'

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

/** Plans the merge without weights. With `normDeltas` (‖s·B·A‖ by layer) weights are read, for relative changes. */
export async function fitOf(
  base: Place,
  adapter: Directory,
  graphs: readonly string[] = [],
  normDeltas?: ReadonlyMap<string, number>,
): Promise<FitReport> {
  const isOnnx = graphs.length > 0
  const format = isOnnx ? 'onnx' : 'safetensors'
  const chosen: ChosenFormat = { format, graphs, checkpoint: isOnnx ? undefined : base.file }
  const merge = await openMerge({ base, adapters: adapter, tied: isOnnx ? undefined : 'untie', onlyFits: true }, chosen)
  try {
    const { where, vocabulary, isTied, whole, notes, problems } = merge.fit
    const parts: PartFit[] = []
    for (const part of merge.fit.parts) {
      const { name: tensor, shape, dtype } = part.info ?? { name: null, shape: null, dtype: null }
      const relativeChange = await relativeChangeOf(part, merge, normDeltas?.get(part.name))
      parts.push({ name: part.name, tensor, shape, dtype, problem: part.problem?.message ?? null, relativeChange })
    }
    return {
      base: where,
      kind: isOnnx ? 'onnx' : 'checkpoint',
      fits: problems.length === 0,
      parts,
      vocabulary,
      isTied,
      problems: whole.map(({ message }) => message),
      notes,
    }
  } finally {
    await merge.close()
  }
}

/** ‖s·B·A‖ / ‖W‖, where W are the rows or columns of a weight that are the layer's. */
async function relativeChangeOf(
  { info, source, layer, problem }: PlacedPart,
  { sources }: OpenMerge,
  normDelta: number | undefined,
): Promise<number | null> {
  if (normDelta === undefined || layer === undefined || layer.tensor === 'bias' || problem !== undefined) return null
  const { dtype, shape, offset, byteLength } = info as TensorInfo
  if (!isWeightDtype(dtype)) return null
  const { region, isInputMajor } = layer
  const columns = elementCount(shape.slice(1))
  const rowBytes = columns * sizeOf(dtype)
  const inRows = isInputMajor ? undefined : region
  const inColumns = isInputMajor ? region : undefined
  const first = (inRows?.first ?? 0) * rowBytes
  const end = inRows === undefined ? byteLength : first + inRows.count * rowBytes
  let sum = 0
  for (let at = first; at < end; at += CHUNK_BYTES) {
    const values = decodeWeights(await sources[source!].read(offset + at, Math.min(CHUNK_BYTES, end - at)), dtype)
    for (let i = 0; i < values.length; i++) {
      const column = inColumns && ((at / sizeOf(dtype) + i) % columns) - inColumns.first
      if (column === undefined || (column >= 0 && column < inColumns!.count)) sum += values[i] ** 2
    }
  }
  return sum > 0 ? normDelta / Math.sqrt(sum) : null
}
