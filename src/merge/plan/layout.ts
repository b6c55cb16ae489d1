// Plans where each byte of the output comes from: files, their segments, and the chunks in which segments are computed.

import { isBlockDtype, type TensorDtype } from '../../core/base/dtype.js'
import { COLUMN_MULTIPLE } from '../../core/kernels/merge-kernel.js'
import type { Checkpoint } from '../../files/checkpoint.js'
import { isStoredDtype, type StoredDtype, storedSize } from '../../files/gguf/blocks.js'
import { planSafetensors, type TensorInfo } from '../../files/safetensors.js'
import type { Factor, LayerFactors } from './adapters.js'
import { expertLayer, layerOfRows } from './experts.js'

/** Measured: 0.5–1 MB is fastest. Larger chunks leave the second-level cache between reading, computing and writing. */
export const CHUNK_BYTES = 1 << 20

export interface OutputTensor {
  readonly name: string
  readonly dtype: TensorDtype
  /** The base's tensor, or the adapter's tensor that replaces it. */
  readonly base: TensorInfo
  readonly source: number
  readonly layers: readonly LayerFactors[]
  readonly isReplaced: boolean
  /** Rows that an adapter replaces. Nothing is merged into them. */
  readonly rows: readonly OutputRow[]
  /** Columns that an adapter replaces. If there are any, nothing is merged into the tensor. */
  readonly columns?: ReplacedColumns | undefined
}

interface OutputRow {
  readonly index: number
  readonly dtype: TensorDtype
  readonly source: number
  readonly offset: number
  readonly byteLength: number
}

/** Columns of a weight that are replaced: row i of `values` (n, rows) becomes column `indices[i]`. */
interface ReplacedColumns {
  readonly indices: readonly number[]
  readonly values: Factor
}

/** A weight that is computed and not copied, as a matrix (rows, columns) in its stored order. */
export interface WeightPlan {
  readonly name: string
  readonly from: StoredDtype
  readonly to: StoredDtype
  readonly rows: number
  readonly columns: number
  /** The layers that change the weight. Empty if it is only converted, or if it has windows. */
  readonly layers: readonly LayerFactors[]
  readonly reports: readonly string[]
  /** True if it is held as f32 (f64 if stored as f64): it has blocks, its type changes, or more is done than adding. */
  readonly isWidened: boolean
  /** Ranges of columns, each with its layers. All other columns keep their values. */
  readonly windows?: readonly Window[] | undefined
  readonly columnValues?: ReplacedColumns | undefined
}

export interface Window {
  readonly column: number
  readonly weight: WeightPlan
}

/** Consecutive bytes of an output file that are made from consecutive bytes of a source. */
export interface Segment {
  readonly offset: number
  readonly byteLength: number
  readonly source: number
  readonly baseOffset: number
  /** If undefined, the bytes are copied. */
  readonly weight: WeightPlan | undefined
}

export interface Literal {
  readonly offset: number
  readonly byteLength: number
  readonly bytes: Uint8Array
}

/** A file of the output. Each byte is in a literal or in a segment. */
export interface OutputFile {
  readonly path: string
  readonly byteLength: number
  readonly literals: readonly Literal[]
  readonly segments: readonly Segment[]
  readonly tensors: readonly string[]
  /** The names of tensors that adapters change, replace or add. */
  readonly changed: readonly string[]
}

interface LayoutOptions {
  /** The largest size of a shard. Undefined: the same shards as the base. A larger tensor gets a shard for itself. */
  maxShardBytes?: number | undefined
  path?: string | undefined
}

/** @param tensors for each shard of the base, its tensors in the order of their bytes */
export function layOut(
  checkpoint: Checkpoint,
  tensors: readonly (readonly OutputTensor[])[],
  { maxShardBytes, path }: LayoutOptions,
): OutputFile[] {
  if (maxShardBytes !== undefined) {
    const groups = groupBySize(tensors.flat(), maxShardBytes)
    const { metadata } = checkpoint.shards[0].file
    return groups.map((group, i) => {
      const [number, all] = [i + 1, groups.length].map((value) => String(value).padStart(5, '0'))
      const name = groups.length === 1 ? (path ?? 'model.safetensors') : `model-${number}-of-${all}.safetensors`
      return newShard(name, group, metadata)
    })
  }
  return checkpoint.shards.map(({ path: basePath, file, dataStart }, shard) => {
    const name = checkpoint.shards.length === 1 ? (path ?? basePath) : basePath
    const ofShard = tensors[shard]
    const isSame =
      ofShard.length === file.tensors.size &&
      ofShard.every((tensor) => tensor.dtype === tensor.base.dtype && tensor.source === shard)
    if (!isSame) return newShard(name, ofShard, file.metadata)
    const header: Segment = { offset: 0, byteLength: dataStart, source: shard, baseOffset: 0, weight: undefined }
    const segments = ofShard.flatMap((tensor) => segmentsOf(tensor, tensor.base.offset))
    return {
      path: name,
      byteLength: file.source.byteLength,
      literals: [],
      segments: coalesce([header, ...segments]),
      ...namesOf(ofShard),
    }
  })
}

function newShard(
  path: string,
  tensors: readonly OutputTensor[],
  metadata: Readonly<Record<string, string>>,
): OutputFile {
  const specs = tensors.map(({ name, dtype, base }) => ({ name, dtype, shape: base.shape }))
  const plan = planSafetensors(specs, metadata)
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]))
  const segments = plan.tensors.flatMap(({ name, offset }) => segmentsOf(byName.get(name)!, offset))
  const last = plan.tensors.at(-1)
  return {
    path,
    byteLength: last === undefined ? plan.header.byteLength : last.offset + last.byteLength,
    literals: [{ offset: 0, byteLength: plan.header.byteLength, bytes: plan.header }],
    segments: coalesce(segments),
    ...namesOf(plan.tensors.map(({ name: tensor }) => byName.get(tensor)!)),
  }
}

function namesOf(tensors: readonly OutputTensor[]): Pick<OutputFile, 'tensors' | 'changed'> {
  const changed = tensors.filter(({ layers, rows, isReplaced }) => layers.length > 0 || rows.length > 0 || isReplaced)
  return { tensors: tensors.map(({ name }) => name), changed: changed.map(({ name }) => name) }
}

export function segmentsOf(tensor: OutputTensor, offset: number): Segment[] {
  const { base, rows, layers } = tensor
  if (layers.some(({ experts }) => experts !== undefined)) {
    const [experts, ...shape] = base.shape
    const byteLength = base.byteLength / experts
    const mergedBytes = outputBytes(tensor) / experts
    return Array.from({ length: experts }, (_, e) => {
      const expertInfo = { ...base, shape, offset: base.offset + e * byteLength, byteLength }
      const expert = { ...tensor, base: expertInfo, layers: layers.map((layer) => expertLayer(layer, e)) }
      return segmentOf(expert, offset + e * mergedBytes)
    })
  }
  const hasRegions = layers.some(({ region }) => region !== undefined)
  if (hasRegions && layers[0].isInputMajor) return [windowSegment(tensor, offset)]
  if (!hasRegions && rows.length === 0) return [segmentOf(tensor, offset)]
  const height = base.shape[0]
  const [rowBytes, mergedRowBytes] = [base.byteLength / height, outputBytes(tensor) / height]
  const replaced = new Map(rows.map((row) => [row.index, row]))
  const ends = rows.flatMap(({ index }) => [index, index + 1])
  return cutsOf(layers, height, ends).map(({ first, end, layers: inRange }) => {
    const shape = [end - first, ...base.shape.slice(1)]
    const place = offset + first * mergedRowBytes
    const row = replaced.get(first)
    if (row === undefined) {
      const piece = { ...base, shape, offset: base.offset + first * rowBytes, byteLength: (end - first) * rowBytes }
      return segmentOf({ ...tensor, base: piece, layers: inRange }, place)
    }
    const { dtype, source, offset: from, byteLength } = row
    const values = { ...base, shape, dtype, offset: from, byteLength }
    return segmentOf({ ...tensor, source, base: values, layers: inRange }, place)
  })
}

/** Cuts a tensor at the begin and end of each layer's region, and at the places `others`. */
function cutsOf(layers: readonly LayerFactors[], length: number, others: readonly number[] = []) {
  const ranges = layers.map((layer) => {
    const { first, count } = layer.region ?? { first: 0, count: length }
    return { layer: { ...layer, region: undefined }, first, end: first + count }
  })
  const ends = ranges.flatMap(({ first, end }) => [first, end])
  const cuts = [...new Set([0, length, ...ends, ...others])].sort((a, b) => a - b)
  return cuts.slice(1).map((end, i) => {
    const first = cuts[i]
    const inRange = ranges
      .filter((range) => range.first <= first && end <= range.end)
      .map((range) => {
        const isWhole = range.first === first && range.end === end
        return isWhole ? range.layer : layerOfRows(range.layer, first - range.first, end - first)
      })
    return { first, end, layers: inRange }
  })
}

/** Makes the segment of a tensor (k, d) whose columns belong to several weights of the model. */
function windowSegment(tensor: OutputTensor, offset: number): Segment {
  const segment = segmentOf(tensor, offset)
  const { rows, columns: width } = segment.weight!
  const windows = cutsOf(tensor.layers, width).flatMap(({ first, end, layers }): Window[] => {
    const columns = end - first
    return layers.length === 0 ? [] : [{ column: first, weight: weightOf(tensor, { rows, columns, layers }) }]
  })
  return { ...segment, weight: { ...segment.weight!, layers: [], windows } }
}

function segmentOf(tensor: OutputTensor, offset: number): Segment {
  const { dtype, base, source, layers, columns: columnValues } = tensor
  const place = { offset, source, baseOffset: base.offset }
  const isComputed = layers.length > 0 || columnValues !== undefined || dtype !== base.dtype
  if (!isComputed || !isStoredDtype(base.dtype) || !isStoredDtype(dtype)) {
    return { ...place, byteLength: base.byteLength, weight: undefined }
  }
  const elements = base.byteLength / storedSize(base.dtype)
  // The weight of a convolution (d, in, *kernel) is treated as a matrix with a row for each output.
  const hasRows = (layers.length > 0 || columnValues !== undefined) && base.shape.length > 1
  const rows = hasRows ? base.shape[0] : 1
  const weight = { ...weightOf(tensor, { rows, columns: elements / rows, layers }), columnValues }
  return { ...place, byteLength: elements * storedSize(dtype), weight }
}

function weightOf(
  { name, dtype, base }: OutputTensor,
  { rows, columns, layers }: Pick<WeightPlan, 'rows' | 'columns' | 'layers'>,
): WeightPlan {
  const isWidened = base.dtype !== dtype || isBlockDtype(dtype) || layers.some(({ scales }) => scales !== undefined)
  const types = { from: base.dtype as StoredDtype, to: dtype as StoredDtype }
  const reports = layers.flatMap(({ report }) => report ?? [])
  return { name, ...types, rows, columns, layers, reports: [...new Set(reports)], isWidened }
}

/** Joins copies that follow each other in source and output, so that small tensors make no small chunks. */
export function coalesce(segments: readonly Segment[]): Segment[] {
  const result: Segment[] = []
  for (const segment of segments) {
    const last = result.at(-1)
    const isNext =
      last !== undefined &&
      last.weight === undefined &&
      segment.weight === undefined &&
      last.source === segment.source &&
      last.baseOffset + last.byteLength === segment.baseOffset &&
      last.offset + last.byteLength === segment.offset
    if (isNext) result[result.length - 1] = { ...last, byteLength: last.byteLength + segment.byteLength }
    else if (segment.byteLength > 0) result.push(segment)
  }
  return result
}

function groupBySize(tensors: readonly OutputTensor[], maxBytes: number): OutputTensor[][] {
  const groups: OutputTensor[][] = [[]]
  let size = 0
  for (const tensor of tensors) {
    const byteLength = outputBytes(tensor)
    if (size > 0 && size + byteLength > maxBytes) {
      groups.push([])
      size = 0
    }
    groups[groups.length - 1].push(tensor)
    size += byteLength
  }
  return groups
}

export function outputBytes({ dtype, base }: OutputTensor): number {
  if (!isStoredDtype(base.dtype) || !isStoredDtype(dtype)) return base.byteLength
  return (base.byteLength / storedSize(base.dtype)) * storedSize(dtype)
}

/** The unit of work: whole rows of a weight, or a part of a row. */
export interface Chunk {
  readonly segment: Segment
  readonly row: number
  readonly rows: number
  readonly column: number
  readonly columns: number
  readonly baseOffset: number
  readonly baseBytes: number
  readonly offset: number
}

export function windowsOf(weight: WeightPlan): readonly Window[] {
  return weight.windows ?? [{ column: 0, weight }]
}

/** The most elements of a weight that a kernel holds, a multiple of COLUMN_MULTIPLE. */
export function chunkElements({ from, to, isWidened }: WeightPlan): number {
  const elements = CHUNK_BYTES / Math.max(isWidened ? 4 : 1, storedSize(from), storedSize(to))
  return elements - (elements % COLUMN_MULTIPLE)
}

/** Returns the chunks of a segment. Each is made when it is asked for. */
export function chunksOf(segment: Segment): { readonly count: number; at(index: number): Chunk } {
  const { weight, byteLength, baseOffset, offset } = segment
  const { rows, columns } = weight ?? { rows: 1, columns: byteLength }
  const [from, to] = weight === undefined ? [1, 1] : [storedSize(weight.from), storedSize(weight.to)]
  const elements = weight === undefined ? CHUNK_BYTES : chunkElements(weight)
  // Columns are changed in whole rows.
  const isOfWholeRows = weight?.windows !== undefined || weight?.columnValues !== undefined
  const width = columns > elements && !isOfWholeRows ? elements : columns
  const height = Math.max(1, Math.floor(elements / columns))
  /** The number of chunks for a row: above 1 only if a row is larger than a chunk. */
  const across = Math.ceil(columns / width)
  return {
    count: across * Math.ceil(rows / height),
    at(index) {
      const row = Math.floor(index / across) * height
      const column = (index % across) * width
      const place = { row, rows: Math.min(height, rows - row), column, columns: Math.min(width, columns - column) }
      const start = row * columns + column
      const base = { baseOffset: baseOffset + start * from, baseBytes: place.rows * place.columns * from }
      return { segment, ...place, ...base, offset: offset + start * to }
    },
  }
}
