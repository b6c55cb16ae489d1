// Computes chunks with a kernel: takes the blocks of the factors that a chunk needs, and its bytes. Reading and writing stay with the
// caller, so that the same code runs over synchronous reads in threads and over promises in browsers.

import { decodeWeights, encodeWeights, type WeightDtype } from '../../base/dtype.js'
import { NumericError } from '../../base/errors.js'
import { type FloatArray, isAllFinite } from '../../base/tensor.js'
import { BLOCK_ELEMENTS, COLUMN_MULTIPLE, type MergeKernel } from '../../kernels/merge-kernel.js'
import type { Factor, FactorSlice, LayerFactors } from '../plan/adapters.js'
import { type Chunk, sizeOf, type WeightPlan } from '../plan/layout.js'
import { type FactorRange, leftRanges, rightRanges, wholeRange } from './factor-ranges.js'

/** What is kept of the weight that the last chunk belonged to. */
interface Current {
  readonly weight: WeightPlan
  /** Ranks of all layers together: their factors are stacked, so that one pass adds them all. */
  readonly rank: number
  /** Where each layer's own ranks begin. */
  readonly starts: readonly number[]
  /** What is in a stack has been given to the kernel. */
  isUnstacked: boolean
  /** DoRA's, by output; such a weight has one layer. */
  scales: FloatArray | undefined
}

/** B (d, r·E) of a stack of experts. */
interface Stack {
  readonly factor: Factor
  /** Its values are in this type's precision. */
  readonly base: WeightDtype
  readonly values: FloatArray
}

export interface ChunkResult {
  /** Valid until the next chunk. */
  readonly bytes: Uint8Array
  /** Σ w² and Σ δ². */
  readonly baseSquares: number
  readonly deltaSquares: number
}

export class ChunkMerger {
  readonly #kernel: MergeKernel
  /** For base bytes of another type than the output's. */
  #converted = new Uint8Array()
  #current: Current | undefined
  /** The chunk's rows of the left factors (rows, Σ r), side by side. */
  #left: FloatArray = new Float32Array()
  #row = 0
  /** By layer: the B (d, r·E) of which the last expert took its columns. The next one usually takes its own. */
  readonly #stacks = new Map<number, Stack>()

  constructor(kernel: MergeKernel) {
    this.#kernel = kernel
  }

  /** Where the base's bytes of a chunk are to be put. */
  input({ segment, baseBytes }: Chunk): Uint8Array {
    const { weight } = segment
    if (weight === undefined || !weight.isWidened) return this.#kernel.chunk.subarray(0, baseBytes)
    if (this.#converted.byteLength < baseBytes) this.#converted = new Uint8Array(this.#kernel.chunk.byteLength)
    return this.#converted.subarray(0, baseBytes)
  }

  /**
   * Begins a chunk, and tells what to read of the factors and hand to `take`, one after the other: right factors for the first chunk
   * of a weight, the chunk's rows of the left ones for all. An expert's columns of B lie between those of the others, so that B is
   * read as a whole, once for experts that follow each other.
   */
  begin({ segment: { weight }, row, rows }: Chunk): FactorRange[] {
    if (weight === undefined) return []
    const isNew = weight !== this.#current?.weight
    if (isNew) this.#current = this.#open(weight)
    this.#makeLeft(rows, weight.from)
    this.#row = row
    const { layers } = weight
    const left = layers.flatMap((layer, i) => (isStacked(layer, false) ? [] : leftRanges(layer, i, row, rows)))
    return isNew ? [...layers.flatMap((layer, i) => this.#firstRanges(layer, i, weight.from)), ...left] : left
  }

  /**
   * Takes the bytes of a range that `begin` has asked for; they can be overwritten afterwards.
   *
   * @throws NumericError naming the factor that holds a value that is not finite
   */
  take(range: FactorRange, bytes: Uint8Array): void {
    const current = this.#current!
    const { from } = current.weight
    const values = factorValues(range.factor, bytes, from)
    if (range.use === 'right') this.#putRight(current, range, values)
    else if (range.use === 'left') this.#putLeft(current, range, values)
    else if (range.use === 'stack')
      this.#stacks.set(range.layer, { factor: range.factor, base: from, values: values.slice() })
    else {
      if (!isAllFinite(values)) throw nonFiniteError(range.factor, values)
      current.scales = values.slice()
    }
  }

  /**
   * Computes a chunk whose bytes are in `input` and whose ranges have been taken.
   *
   * @throws NumericError naming the factor that holds a value that is not finite, or the tensor with a result that is not
   *   finite where the base was
   */
  merge(chunk: Chunk): ChunkResult {
    const { segment, rows, column, columns, baseBytes } = chunk
    const { weight } = segment
    const kernel = this.#kernel
    if (weight === undefined) return { bytes: kernel.chunk.subarray(0, baseBytes), baseSquares: 0, deltaSquares: 0 }
    const current = this.#current!
    this.#unstack(current, rows)
    const isConverted = weight.isWidened
    const dtype = !isConverted ? weight.to : weight.from === 'fp64' ? 'fp64' : 'fp32'
    const base = isConverted ? decodeWeights(this.input(chunk), weight.from) : undefined
    if (base !== undefined) kernel.chunk.set(encodeWeights(base, dtype))
    const job = { dtype, rows, column, columns, left: this.#left, terms: weight.layers } as const
    const { baseSquares, deltaSquares, overflows, firstOverflow, isLeftFinite } = kernel.merge(job)
    if (!isLeftFinite) throw leftError(current, this.#left)
    if (overflows > 0) throw overflowError(chunk, weight, firstOverflow)
    const merged = kernel.chunk.subarray(0, rows * columns * sizeOf(dtype))
    if (base === undefined) return { bytes: merged, baseSquares, deltaSquares }
    const result = decodeWeights(merged, dtype)
    const changes = current.scales && scaleChunk(chunk, weight, result, base, current.scales)
    const output = encodeWeights(result, weight.to)
    const stored = decodeWeights(output, weight.to)
    const overflow = stored.findIndex((value, i) => !Number.isFinite(value) && Number.isFinite(base[i]))
    if (overflow !== -1) throw overflowError(chunk, weight, overflow)
    return { bytes: output, baseSquares, deltaSquares: changes ?? deltaSquares }
  }

  #open(weight: WeightPlan): Current {
    const starts: number[] = []
    let rank = 0
    for (const layer of weight.layers) {
      starts.push(rank)
      rank += layer.rank
    }
    this.#kernel.begin(rank, weight.columns, weight.from === 'fp64' ? 'fp64' : 'fp32')
    return { weight, rank, starts, isUnstacked: false, scales: undefined }
  }

  /** What a weight's first chunk needs beside its rows of the left factors. */
  #firstRanges(layer: LayerFactors, i: number, base: WeightDtype): FactorRange[] {
    const { b, scales } = layer
    const ranges = isStacked(layer, true) ? [] : rightRanges(layer, i)
    if (b.slice !== undefined && !isSame(this.#stacks.get(i), b, base)) ranges.push(wholeRange(b, 'stack', i))
    if (scales !== undefined) ranges.push(wholeRange(scales, 'scales', i))
    return ranges
  }

  #makeLeft(rows: number, base: WeightDtype): void {
    const length = rows * this.#current!.rank
    const isDouble = base === 'fp64'
    if (this.#left.length === length && this.#left instanceof Float64Array === isDouble) return
    this.#left = isDouble ? new Float64Array(length) : new Float32Array(length)
  }

  /** Of A (r, k); or of B (d, r), whose rows are the right factor's columns. */
  #putRight({ weight, starts }: Current, range: FactorRange, values: FloatArray): void {
    const { factor, layer, row, rows, column, columns } = range
    const start = starts[layer]
    const block = weight.layers[layer].isInputMajor
      ? { row: start, rows: columns, column: row, columns: rows, isTransposed: true }
      : { row: start + row, rows, column, columns, isTransposed: false }
    if (!this.#kernel.putRight({ values, ...block })) throw nonFiniteError(factor, values)
  }

  /** Of B (d, r); or of A (r, k), whose columns are the left factor's rows. */
  #putLeft({ weight, rank, starts }: Current, range: FactorRange, values: FloatArray): void {
    const { layer, row, rows, column, columns } = range
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

  /** Gives the kernel the B of experts, from their stacks: the chunk's rows of the left factor, or once all of the right one. */
  #unstack(current: Current, rows: number): void {
    const { layers } = current.weight
    for (let i = 0; i < layers.length; i++) {
      const { b, isInputMajor, d, rank } = layers[i]
      if (b.slice === undefined) continue
      const part = (row: number, count: number): [FactorRange, FloatArray] => {
        const values = columnsOf(this.#stacks.get(i)!, b.columns, b.slice!, row, count) // (count, r)
        return [{ ...wholeRange(b, 'stack', i), row, rows: count, columns: rank }, values]
      }
      if (!isInputMajor) this.#putLeft(current, ...part(this.#row, rows))
      else if (!current.isUnstacked) {
        const most = Math.max(1, Math.floor(BLOCK_ELEMENTS / rank / COLUMN_MULTIPLE)) * COLUMN_MULTIPLE
        for (let row = 0; row < d; row += most) this.#putRight(current, ...part(row, Math.min(most, d - row)))
      }
    }
    current.isUnstacked = true
  }
}

/** W + s·B·A, in place, becomes its product with the outputs' scales. Gives back Σ δ² against the base. */
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

function overflowError({ row, column, columns }: Chunk, weight: WeightPlan, index: number): NumericError {
  const { name, from, to, layers, replaced } = weight
  if (replaced !== undefined) {
    const at = row * weight.columns + column + index
    const place = `(${replaced.row + Math.floor(at / replaced.columns)}, ${at % replaced.columns})`
    return new NumericError({
      where: name,
      what: `the adapter's own value for element ${place} is finite in ${from}, but not in the result in ${to}`,
      ...(to === 'fp16' && { hint: 'Convert all weights to bf16 or fp32, which can store larger values' }),
    })
  }
  return new NumericError({
    where: name,
    what: `element (${row + Math.floor(index / columns)}, ${column + (index % columns)}) is finite in the base, but not in the result in ${to}`,
    hint:
      layers.length === 0
        ? 'The type that was asked for is too narrow for this base'
        : 'The values of the adapter are too large for this type: check its scaling and its weight',
  })
}

/** Whether the B of an expert, which is the right factor where the weight is stored (k, d), comes from a stack. */
function isStacked({ b, isInputMajor }: LayerFactors, isRight: boolean): boolean {
  return b.slice !== undefined && isInputMajor === isRight
}

/** Whether a slice is of a factor that is there in this precision. */
function isSame(stack: Stack | undefined, { source, offset }: Factor, base: WeightDtype): boolean {
  return stack !== undefined && stack.factor.source === source && stack.factor.offset === offset && stack.base === base
}

/** Rows [row, row + count) of a slice of values with so many columns: (count, r). */
function columnsOf(
  { values, base }: Stack,
  columns: number,
  { firstRow, first, step }: FactorSlice,
  row: number,
  count: number,
): FloatArray {
  const own = columns / step
  const result = base === 'fp64' ? new Float64Array(count * own) : new Float32Array(count * own)
  for (let i = 0, at = 0; i < count; i++) {
    const start = (firstRow + row + i) * columns + first
    for (let j = 0; j < own; j++, at++) result[at] = values[start + j * step]
  }
  return result
}

/** In the precision that is computed in; a view of the bytes where they are that already. */
function factorValues({ dtype }: Factor, bytes: Uint8Array, base: WeightDtype): FloatArray {
  const isAligned = dtype === 'fp32' && bytes.byteOffset % 4 === 0
  const stored = isAligned
    ? new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)
    : decodeWeights(bytes, dtype)
  return inPrecisionOf(base, stored)
}

function nonFiniteError({ name }: Factor, values: FloatArray): NumericError {
  return new NumericError({
    where: name,
    what: 'holds a value that is not finite',
    got: String(values.find((value) => !Number.isFinite(value))),
  })
}

/** Names the layer's factor in which the left one (rows, Σ r) is not finite. */
function leftError({ weight, rank, starts }: Current, left: FloatArray): NumericError {
  const column = left.findIndex((value) => !Number.isFinite(value)) % rank
  const { a, b, isInputMajor } = weight.layers[starts.findLastIndex((start) => start <= column)]
  return nonFiniteError(isInputMajor ? a : b, left)
}

/** What is computed with a base of this type: f64 for fp64, else f32. */
export function inPrecisionOf(base: WeightDtype, values: FloatArray): FloatArray {
  if (base === 'fp64') return values instanceof Float64Array ? values : Float64Array.from(values)
  return values instanceof Float32Array ? values : Float32Array.from(values)
}

/** Sums of squares by weight, for the report. */
export class ChangeSums {
  readonly #sums = new Map<string, { base: number; delta: number }>()

  add(weight: string, { baseSquares, deltaSquares }: ChunkResult): void {
    const sums = this.#sums.get(weight) ?? { base: 0, delta: 0 }
    this.#sums.set(weight, { base: sums.base + baseSquares, delta: sums.delta + deltaSquares })
  }

  /** ‖Δ‖ / ‖W‖; a zero delta changes a zero weight by nothing. */
  relativeChange(weight: string): number {
    const { base, delta } = this.#sums.get(weight) ?? { base: 0, delta: 0 }
    return delta === 0 ? 0 : Math.sqrt(delta / base)
  }
}
