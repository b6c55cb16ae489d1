// The computation of a merge: W + Σ w·s·B·A, rounded once to the written type (Hu et al. 2021, arXiv 2106.09685), or
// m ⊙ (W + s·B·A) / ‖W + s·B·A‖ (DoRA, Liu et al. 2024, arXiv 2402.09353, equation 5), a chunk at a time.

import type { ByteSource } from '../core/base/bytes.js'
import { sizeOf, type WeightDtype } from '../core/base/dtype.js'
import { NumericError } from '../core/base/errors.js'
import { type FloatArray, isAllFinite } from '../core/base/tensor.js'
import { BLOCK_ELEMENTS, COLUMN_MULTIPLE, createMergeKernel, type MergeKernel } from '../core/kernels/merge-kernel.js'
import { decodeStored, encodeStored, type StoredDtype, storedSize } from '../files/gguf/blocks.js'
import type { Factor, FactorSlice, LayerFactors, LayerMagnitude } from './plan/adapters.js'
import {
  CHUNK_BYTES,
  type Chunk,
  chunkElements,
  chunksOf,
  type OutputFile,
  type WeightPlan,
  windowsOf,
} from './plan/layout.js'

interface Current {
  readonly weight: WeightPlan
  /** The sum of the ranks of all layers. Their factors are stacked, so that one pass adds all of them. */
  readonly rank: number
  readonly starts: readonly number[]
  /** DoRA's factor of each output; undefined without DoRA. A weight with DoRA has a single layer, of one adapter. */
  scales: FloatArray | undefined
}

/** Factor B (d, r·E) of stacked experts. */
interface Stack {
  readonly factor: Factor
  readonly base: StoredDtype
  readonly values: FloatArray
}

export interface ChunkChange {
  readonly weight: WeightPlan
  readonly baseSquares: number
  readonly deltaSquares: number
}

interface ChunkResult {
  /** The merged bytes, valid until the next chunk. */
  readonly bytes: Uint8Array
  /**
   * The sums of squares of the base and of the change for each window (a range of columns with its own layers); a
   * single entry if the weight has no windows.
   */
  readonly changes: readonly ChunkChange[]
}

/** A source of bytes with either `read` or `readInto`. In threads, `readInto` is synchronous. */
export interface ChunkSource {
  read?(offset: number, byteLength: number): Uint8Array | Promise<Uint8Array>
  readInto?(offset: number, memory: Uint8Array): void | Promise<void>
}

export class ChunkMerger {
  readonly #kernel: MergeKernel
  /** A merger for each window of a weight: a range of columns with its own layers, kernel and right factor. */
  readonly #inner: ChunkMerger[] = []
  /** Memory for a part of a factor. It is used again: new memory for each part would show in a long merge's memory. */
  #staging = new Uint8Array()
  #current: Current | undefined
  /** The rows of the left factors for the chunk, side by side: (rows, Σ r). Used again for the same reason. */
  #left: FloatArray = new Float32Array()
  #row = 0
  /** Factor B (d, r·E) of each layer with experts. It is kept, because the next chunk usually needs the same. */
  readonly #stacks = new Map<number, Stack>()

  constructor(private readonly sources: readonly ChunkSource[]) {
    this.#kernel = createMergeKernel(CHUNK_BYTES)
  }

  /** Merges a chunk. Right factors are read with the first chunk of a weight, rows of left factors with each chunk. */
  async merge(chunk: Chunk): Promise<ChunkResult> {
    const { row, rows, segment, baseOffset, baseBytes } = chunk
    const { weight, source } = segment
    if (weight === undefined) {
      return { bytes: await this.#read(source, baseOffset, this.#kernel.chunk.subarray(0, baseBytes)), changes: [] }
    }
    const isWhole = weight.windows === undefined && weight.columnValues === undefined
    if (isWhole) await this.#readFactors(weight, row, rows)
    const room = this.#roomFor(weight, baseBytes)
    const input = await this.#read(source, baseOffset, room)
    if (weight.columnValues !== undefined) return this.#replaceColumns(chunk, weight, weight.columnValues, input)
    if (!isWhole) return this.#mergeWindows(chunk, weight, input)
    if (input !== room) room.set(input)
    return this.#mergeWeight(chunk, weight, room)
  }

  #roomFor({ isWidened, windows, columnValues }: WeightPlan, byteLength: number): Uint8Array {
    const isInKernel = !isWidened && windows === undefined && columnValues === undefined
    return isInKernel ? this.#kernel.chunk.subarray(0, byteLength) : new Uint8Array(byteLength)
  }

  /** Reads bytes into the given memory, or returns other memory, depending on the source. */
  async #read(source: number, offset: number, memory: Uint8Array): Promise<Uint8Array> {
    const opened = this.sources[source]
    if (opened.readInto === undefined) return opened.read!(offset, memory.byteLength)
    await opened.readInto(offset, memory)
    return memory
  }

  /** Returns values that are valid until the next block is read. */
  async #readBlock({ factor, offset, byteLength }: FactorRange, base: StoredDtype): Promise<FloatArray> {
    if (this.#staging.byteLength < byteLength) this.#staging = new Uint8Array(byteLength)
    const bytes = await this.#read(factor.source, offset, this.#staging.subarray(0, byteLength))
    return factorValues(factor, bytes, base)
  }

  /** Reads the factors for some rows. Throws NumericError that names a factor with a value that is not finite. */
  async #readFactors(weight: WeightPlan, row: number, rows: number): Promise<void> {
    const isNew = weight !== this.#current?.weight
    const current = isNew || this.#current === undefined ? this.#open(weight) : this.#current
    this.#current = current
    const { from } = weight
    const [count, isDouble] = [rows * current.rank, from === 'fp64']
    if (this.#left.length !== count || this.#left instanceof Float64Array !== isDouble) {
      this.#left = isDouble ? new Float64Array(count) : new Float32Array(count)
    }
    this.#row = row
    for (const [i, layer] of weight.layers.entries()) {
      const { b, scales } = layer
      const stack = b.slice && (await this.#stackOf(i, b, from))
      const valuesOf = async (range: FactorRange) => {
        const { slice, name } = range.factor
        const values = slice && stack ? columnsOf(stack, slice, range) : await this.#readBlock(range, from)
        if (isAllFinite(values)) return values
        const got = String(values.find((value) => !Number.isFinite(value)))
        throw new NumericError({ where: name, what: 'holds a value that is not finite', got })
      }
      if (isNew) for (const range of rightRanges(layer)) this.#putRight(current, i, range, await valuesOf(range))
      if (isNew && scales !== undefined) current.scales = (await valuesOf(wholeRange(scales))).slice()
      for (const range of leftRanges(layer, row, rows)) this.#putLeft(current, i, range, await valuesOf(range))
    }
  }

  /** The columns of B for the experts are interleaved, so B is read whole, once for consecutive experts. */
  async #stackOf(layer: number, factor: Factor, base: StoredDtype): Promise<Stack> {
    const known = this.#stacks.get(layer)
    const { source, offset } = factor
    if (known?.factor.source === source && known.factor.offset === offset && known.base === base) return known
    const values = await this.#readBlock(wholeRange(factor), base)
    const stack = { factor, base, values: values.slice() }
    this.#stacks.set(layer, stack)
    return stack
  }

  #mergeWeight(chunk: Chunk, weight: WeightPlan, input: Uint8Array): ChunkResult {
    const { rows, column, columns } = chunk
    const kernel = this.#kernel
    const current = this.#current!
    const isConverted = weight.isWidened
    // A weight that is not widened is of a type that the kernel adds to as it is.
    const dtype = !isConverted ? (weight.to as WeightDtype) : weight.from === 'fp64' ? 'fp64' : 'fp32'
    const base = isConverted ? decodeStored(input, weight.from) : undefined
    if (base !== undefined) kernel.chunk.set(encodeStored(base, dtype))
    const job = { dtype, rows, column, columns, left: this.#left, terms: weight.layers } as const
    const { baseSquares, deltaSquares, overflows, firstOverflow } = kernel.merge(job)
    if (overflows > 0) throw overflowError(chunk, weight, firstOverflow)
    const merged = kernel.chunk.subarray(0, rows * columns * sizeOf(dtype))
    const change = { weight, baseSquares, deltaSquares }
    if (base === undefined) return { bytes: merged, changes: [change] }
    const result = decodeStored(merged, dtype)
    if (current.scales !== undefined) change.deltaSquares = scaleChunk(chunk, weight, result, base, current.scales)
    return { bytes: narrowed(chunk, weight, result, base), changes: [change] }
  }

  async #mergeWindows(chunk: Chunk, weight: WeightPlan, input: Uint8Array): Promise<ChunkResult> {
    const { from, to, windows = [] } = weight
    const { rows, columns } = chunk
    const output = from === to ? input.slice() : encodeStored(decodeStored(input, from), to).slice()
    const [size, written] = [storedSize(from), storedSize(to)]
    const changes: ChunkChange[] = []
    for (const [i, { column: first, weight: window }] of windows.entries()) {
      this.#inner[i] ??= new ChunkMerger(this.sources)
      const inner = this.#inner[i]
      await inner.#readFactors(window, chunk.row, rows)
      // A kernel may have less room than a row of the window.
      const most = Math.min(window.columns, chunkElements(window))
      for (let column = 0; column < window.columns; column += most) {
        const width = Math.min(most, window.columns - column)
        const room = inner.#roomFor(window, rows * width * size)
        for (let row = 0; row < rows; row++) {
          const start = (row * columns + first + column) * size
          room.set(input.subarray(start, start + width * size), row * width * size)
        }
        const { bytes, changes: changed } = inner.#mergeWeight({ ...chunk, column, columns: width }, window, room)
        changes.push(...changed)
        for (let row = 0; row < rows; row++) {
          const start = row * width * written
          output.set(bytes.subarray(start, start + width * written), (row * columns + first + column) * written)
        }
      }
    }
    return { bytes: output, changes }
  }

  async #replaceColumns(
    chunk: Chunk,
    weight: WeightPlan,
    { indices, values }: NonNullable<WeightPlan['columnValues']>,
    input: Uint8Array,
  ): Promise<ChunkResult> {
    const { row, rows, columns } = chunk
    const base = decodeStored(input, weight.from)
    const result = base.slice()
    for (const [i, range] of columnRanges(values, row, rows).entries()) {
      const replaced = await this.#readBlock(range, 'fp64')
      for (let j = 0; j < rows; j++) result[j * columns + indices[i]] = replaced[j]
    }
    return { bytes: narrowed(chunk, weight, result, base), changes: [] }
  }

  #open(weight: WeightPlan): Current {
    const starts: number[] = []
    let rank = 0
    for (const layer of weight.layers) {
      starts.push(rank)
      rank += layer.rank
    }
    this.#kernel.begin(rank, weight.columns, weight.from === 'fp64' ? 'fp64' : 'fp32')
    return { weight, rank, starts, scales: undefined }
  }

  /** Puts a block of the right factor into the kernel: of A (r, k), or of B (d, r), whose rows become its columns. */
  #putRight({ weight, starts }: Current, layer: number, range: FactorRange, values: FloatArray): void {
    const { row, rows, column, columns } = range
    const start = starts[layer]
    const block = weight.layers[layer].isInputMajor
      ? { row: start, rows: columns, column: row, columns: rows, isTransposed: true }
      : { row: start + row, rows, column, columns, isTransposed: false }
    this.#kernel.putRight({ values, ...block })
  }

  /** Puts a block into the left factor: of B (d, r), or of A (r, k), whose columns become its rows. */
  #putLeft({ weight, rank, starts }: Current, layer: number, range: FactorRange, values: FloatArray): void {
    const { row, rows, column, columns } = range
    const left = this.#left
    const start = starts[layer]
    if (weight.layers[layer].isInputMajor) {
      for (let p = 0, from = 0; p < rows; p++) {
        let to = (column - this.#row) * rank + start + row + p
        for (let i = 0; i < columns; i++, from++, to += rank) left[to] = values[from]
      }
      return
    }
    const first = (row - this.#row) * rank + start
    if (columns === rank) left.set(values, first)
    else for (let i = 0; i < rows; i++) left.set(values.subarray(i * columns, (i + 1) * columns), first + i * rank)
  }
}

/** Converts values to the written type. Throws NumericError if a value is not finite that was finite in the base. */
function narrowed(chunk: Chunk, weight: WeightPlan, values: FloatArray, base: FloatArray): Uint8Array {
  const output = encodeStored(values, weight.to)
  const stored = decodeStored(output, weight.to)
  const overflow = stored.findIndex((value, i) => !Number.isFinite(value) && Number.isFinite(base[i]))
  if (overflow !== -1) throw overflowError(chunk, weight, overflow)
  return output
}

/** Multiplies W + s·B·A by the scales of the outputs, in place. Returns Σ δ² against the base. */
function scaleChunk(
  { row, columns, column }: Chunk,
  { layers }: WeightPlan,
  values: FloatArray,
  base: FloatArray,
  scales: FloatArray,
): number {
  const { isInputMajor } = layers[0]
  let deltaSquares = 0
  for (let at = 0; at < values.length; at++) {
    values[at] *= scales[isInputMajor ? column + (at % columns) : row + Math.floor(at / columns)]
    deltaSquares += (values[at] - base[at]) ** 2
  }
  return deltaSquares
}

function overflowError({ row, column, columns }: Chunk, { name, from, to, layers }: WeightPlan, index: number) {
  const place = `(${row + Math.floor(index / columns)}, ${column + (index % columns)})`
  return new NumericError({
    where: name,
    what: `element ${place} is finite in ${from}, but not in the result in ${to}`,
    hint:
      layers.length === 0
        ? 'This type is too narrow for these values: bf16 and fp32 can store larger ones'
        : 'The values of the adapter are too large for this type: check its scaling and its weight',
  })
}

/** Returns rows of a slice of stacked factors: (count, r). */
function columnsOf(
  { factor, values, base }: Stack,
  { firstRow, first, step }: FactorSlice,
  { row, rows, columns }: FactorRange,
): FloatArray {
  const result = base === 'fp64' ? new Float64Array(rows * columns) : new Float32Array(rows * columns)
  for (let i = 0, at = 0; i < rows; i++) {
    const start = (firstRow + row + i) * factor.columns + first
    for (let j = 0; j < columns; j++, at++) result[at] = values[start + j * step]
  }
  return result
}

/** Decodes the values of a factor. If the bytes already have the right precision, the result is a view of them. */
function factorValues({ dtype }: Factor, bytes: Uint8Array, base: StoredDtype): FloatArray {
  const isAligned = dtype === 'fp32' && bytes.byteOffset % 4 === 0
  const stored = isAligned
    ? new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)
    : decodeStored(bytes, dtype)
  return inPrecisionOf(base, stored)
}

/** Converts values to f64 if the base is fp64, else to f32. */
function inPrecisionOf(base: StoredDtype, values: FloatArray): FloatArray {
  if (base === 'fp64') return values instanceof Float64Array ? values : Float64Array.from(values)
  return values instanceof Float32Array ? values : Float32Array.from(values)
}

// Large factors, such as those of an embedding, are read in blocks. Only the right factor is held whole, by the kernel.

/** A block (rows, columns) of a stored factor: whole rows, or a part of a row. */
export interface FactorRange extends Pick<Chunk, 'row' | 'rows' | 'column' | 'columns' | 'offset'> {
  readonly factor: Factor
  readonly byteLength: number
}

/** Returns the blocks of the right factors: A (r, k), or B (d, r) if the weight is stored as (k, d). */
export function rightRanges({ a, b, d, rank, isInputMajor }: LayerFactors): FactorRange[] {
  return isInputMajor ? rowRanges(ownB(b, d, rank), 0, d, COLUMN_MULTIPLE) : rowRanges(a, 0, a.rows)
}

/**
 * The left factor's blocks for rows of a weight: rows of B (d, r), or columns of A (r, k) if it is stored as (k, d).
 */
export function leftRanges(layer: LayerFactors, row: number, rows: number): FactorRange[] {
  const { a, b, d, rank, isInputMajor } = layer
  if (!isInputMajor) return rowRanges(ownB(b, d, rank), row, rows)
  return rows === a.columns ? rowRanges(a, 0, a.rows) : columnRanges(a, row, rows)
}

/** Returns B (d, r) of a layer. For an expert of a stack, it is a slice of the stored factor. */
function ownB(b: Factor, rows: number, columns: number): Factor {
  return b.slice === undefined ? b : { ...b, rows, columns }
}

function columnRanges(factor: Factor, column: number, columns: number): FactorRange[] {
  return Array.from({ length: factor.rows }, (_, row) => rangeOf(factor, row, 1, column, columns))
}

function wholeRange(factor: Factor): FactorRange {
  return rangeOf(factor, 0, factor.rows)
}

/** Cuts rows into blocks. Each block except the last has a multiple of `multiple` rows. */
function rowRanges(factor: Factor, first: number, count: number, multiple = 1): FactorRange[] {
  const most = Math.max(multiple, Math.floor(BLOCK_ELEMENTS / factor.columns / multiple) * multiple)
  const ranges: FactorRange[] = []
  for (let row = first; row < first + count; row += most) {
    ranges.push(rangeOf(factor, row, Math.min(most, first + count - row)))
  }
  return ranges
}

function rangeOf(factor: Factor, row: number, rows: number, column = 0, columns = factor.columns): FactorRange {
  const size = sizeOf(factor.dtype)
  const offset = factor.offset + (row * factor.columns + column) * size
  return { factor, row, rows, column, columns, offset, byteLength: rows * columns * size }
}

const SCALE_BYTES = 8

/**
 * Computes m / ‖W + s·B·A‖ for each output of DoRA layers. This needs a pass over the weight before the merge, because
 * a norm needs all inputs of an output, and a weight that is stored as (k, d) has them in different rows.
 */
export async function computeScales(
  files: readonly Pick<OutputFile, 'segments'>[],
  sources: readonly ByteSource[],
  magnitudes: readonly LayerMagnitude[],
): Promise<void> {
  if (magnitudes.length === 0) return
  const merger = new ChunkMerger(sources)
  const bySource = new Map(magnitudes.map((magnitude) => [magnitude.layer.scales!.source, magnitude]))
  for (const segment of files.flatMap(({ segments }) => segments)) {
    if (segment.weight === undefined) continue
    const scaled = windowsOf(segment.weight).filter(({ weight }) => weight.layers[0]?.scales !== undefined)
    if (scaled.length === 0) continue
    const weight = withoutScales(segment.weight)
    const sums = scaled.map(({ weight: { layers } }) => new Float64Array(layers[0].d))
    const chunks = chunksOf({ ...segment, weight })
    for (let i = 0; i < chunks.count; i++) {
      const chunk = chunks.at(i)
      const { bytes } = await merger.merge(chunk)
      const values = decodeStored(bytes, weight.to)
      for (const [j, window] of scaled.entries()) {
        const { isInputMajor } = window.weight.layers[0]
        const [first, end] = [window.column, window.column + window.weight.columns]
        for (let at = 0; at < values.length; at++) {
          const column = chunk.column + (at % chunk.columns)
          if (column < first || column >= end) continue
          sums[j][isInputMajor ? column - first : chunk.row + Math.floor(at / chunk.columns)] += values[at] ** 2
        }
      }
    }
    for (const [j, { weight: window }] of scaled.entries()) {
      const { scales: place, d } = window.layers[0]
      const { magnitude, scales } = bySource.get(place!.source)!
      const first = place!.offset / SCALE_BYTES
      const { dtype, offset, source } = magnitude
      const bytes = await sources[source].read(offset + first * sizeOf(dtype), d * sizeOf(dtype))
      const values = inPrecisionOf(weight.from, decodeStored(bytes, dtype))
      sums[j].forEach((square, output) => {
        scales[first + output] = values[output] / Math.sqrt(square)
      })
    }
  }
}

function withoutScales(weight: WeightPlan): WeightPlan {
  const to = weight.from === 'fp64' ? 'fp64' : 'fp32'
  return {
    ...weight,
    to,
    isWidened: weight.from !== to,
    layers: weight.layers.map((layer) => ({ ...layer, scales: undefined })),
    windows: weight.windows?.map(({ column, weight: window }) => ({ column, weight: withoutScales(window) })),
  }
}
