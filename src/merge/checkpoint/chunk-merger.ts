// Computes chunks with a kernel: which bytes of the factors a chunk needs, and what to do with them once they are there. Reading
// and writing stay with the caller, so that the same code runs over synchronous reads in threads and over promises in browsers.

import { decodeWeights, encodeWeights, type WeightDtype } from '../../base/dtype.js'
import { NumericError } from '../../base/errors.js'
import { type FloatArray, isAllFinite } from '../../base/tensor.js'
import type { MergeKernel } from '../../kernels/merge-kernel.js'
import type { Factor, FactorSlice } from './adapters.js'
import { type Chunk, sizeOf, type WeightPlan } from './layout.js'

/** Bytes of a factor that a chunk needs. */
export interface FactorRange {
  readonly factor: Factor
  readonly offset: number
  readonly byteLength: number
  readonly use: 'right' | 'left' | 'left rows' | 'scales' | 'stack'
  /** Which of the weight's layers it belongs to. */
  readonly layer: number
}

/** What is kept of the weight that the last chunk belonged to. */
interface Current {
  weight: WeightPlan
  /** Ranks of all layers together: their factors are stacked, so that one pass adds them all. */
  rank: number
  /** Aᵀ (rows, r) of the layers that are stored input-major, and B (rows, r) of experts. */
  wholeLefts: Map<number, FloatArray>
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
   * What to read from the factors before `merge`: all of them for the first chunk of a weight, rows of B for the others. An
   * expert's columns of B lie between those of the others, so that B is read as a whole, once for experts that follow each other.
   */
  needs({ segment: { weight }, row, rows }: Chunk): FactorRange[] {
    if (weight === undefined) return []
    const isNew = weight !== this.#current?.weight
    return weight.layers.flatMap(({ a, b, isInputMajor, scales }, layer) => {
      const first = isNew && scales !== undefined ? [wholeOf(scales, 'scales', layer)] : []
      if (b.slice !== undefined) {
        if (!isNew) return []
        const stack = isSame(this.#stacks.get(layer), b, weight.from) ? [] : [wholeOf(b, 'stack', layer)]
        return [...stack, wholeOf(a, isInputMajor ? 'left' : 'right', layer)]
      }
      if (!isInputMajor) {
        const left = rowsOf(b, row, rows, layer)
        return isNew ? [...first, wholeOf(a, 'right', layer), left] : [left]
      }
      return isNew ? [...first, wholeOf(b, 'right', layer), wholeOf(a, 'left', layer)] : []
    })
  }

  /**
   * Computes a chunk whose bytes are in `input` and whose `needs` have been read.
   *
   * @throws NumericError naming the factor that holds a value that is not finite, or the tensor with a result that is not
   *   finite where the base was
   */
  merge(chunk: Chunk, ranges: readonly FactorRange[], bytes: readonly Uint8Array[]): ChunkResult {
    const { segment, row, rows, column, columns, baseBytes } = chunk
    const { weight } = segment
    const kernel = this.#kernel
    if (weight === undefined) return { bytes: kernel.chunk.subarray(0, baseBytes), baseSquares: 0, deltaSquares: 0 }
    const values = ranges.map(({ factor }, i) => factorValues(factor, bytes[i], weight.from))
    if (weight !== this.#current?.weight) this.#current = this.#load(weight, ranges, values)
    const isConverted = weight.isWidened
    const dtype = !isConverted ? weight.to : weight.from === 'F64' ? 'F64' : 'F32'
    const base = isConverted ? decodeWeights(this.input(chunk), weight.from) : undefined
    if (base !== undefined) kernel.chunk.set(encodeWeights(base, dtype))
    const { baseSquares, deltaSquares, overflows, firstOverflow, isLeftFinite } = kernel.merge({
      dtype,
      rows,
      column,
      columns,
      left: this.#left(this.#current, row, rows, ranges, values),
      terms: weight.layers,
    })
    if (!isLeftFinite) throw nonFiniteError(weight, ranges, values)
    if (overflows > 0) throw overflowError(chunk, weight, firstOverflow)
    const merged = kernel.chunk.subarray(0, rows * columns * sizeOf(dtype))
    if (base === undefined) return { bytes: merged, baseSquares, deltaSquares }
    const result = decodeWeights(merged, dtype)
    const changes = this.#current.scales && scaleChunk(chunk, weight, result, base, this.#current.scales)
    const output = encodeWeights(result, weight.to)
    const stored = decodeWeights(output, weight.to)
    const overflow = stored.findIndex((value, i) => !Number.isFinite(value) && Number.isFinite(base[i]))
    if (overflow !== -1) throw overflowError(chunk, weight, overflow)
    return { bytes: output, baseSquares, deltaSquares: changes ?? deltaSquares }
  }

  /** Loads the right factors (r, columns), stacked, into the kernel. */
  #load(weight: WeightPlan, ranges: readonly FactorRange[], values: readonly FloatArray[]): Current {
    const { layers, columns } = weight
    const rank = layers.reduce((sum, layer) => sum + layer.rank, 0)
    const wholeLefts = new Map<number, FloatArray>()
    const rights: FloatArray[] = [] // (r, columns) of each layer
    let scales: FloatArray | undefined
    ranges.forEach(({ use, layer, factor }, i) => {
      const { isInputMajor, rank: own, k, d } = layers[layer]
      if (use === 'scales') {
        scales = values[i]
        if (!isAllFinite(scales)) throw nonFiniteError(weight, ranges, values)
      }
      // A copy: the bytes' room is used again for the next chunk.
      if (use === 'stack') this.#stacks.set(layer, { factor, base: weight.from, values: values[i].slice() })
      if (use === 'left') wholeLefts.set(layer, transpose(values[i], own, k))
      if (use === 'right') rights[layer] = isInputMajor ? transpose(values[i], d, own) : values[i]
    })
    layers.forEach(({ isInputMajor, rank: own, d, b: { slice, columns: all } }, layer) => {
      if (slice === undefined) return
      const left = columnsOf(this.#stacks.get(layer)!, all, slice) // B (d, r)
      if (isInputMajor) rights[layer] = transpose(left, d, own)
      else wholeLefts.set(layer, left)
    })
    if (rank > 0) {
      const right = layers.length === 1 ? rights[0] : concatenated(rights, weight.from)
      if (!this.#kernel.loadRight(right, rank, columns)) throw nonFiniteError(weight, ranges, values)
    }
    return { weight, rank, wholeLefts, scales }
  }

  /** The chunk's rows of the left factors (rows, r), side by side. */
  #left(
    { weight: { layers, from }, rank, wholeLefts }: Current,
    row: number,
    rows: number,
    ranges: readonly FactorRange[],
    values: readonly FloatArray[],
  ): FloatArray {
    const parts = layers.map((layer, i) => {
      const whole = wholeLefts.get(i)
      if (whole !== undefined) return whole.subarray(row * layer.rank, (row + rows) * layer.rank)
      return values[ranges.findIndex((range) => range.use === 'left rows' && range.layer === i)]
    })
    if (layers.length === 1) return parts[0]
    const result = zeros(rows * rank, from)
    let start = 0
    layers.forEach((layer, i) => {
      for (let j = 0; j < rows; j++) {
        result.set(parts[i].subarray(j * layer.rank, (j + 1) * layer.rank), j * rank + start)
      }
      start += layer.rank
    })
    return result
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
      ...(to === 'F16' && { hint: 'Convert all weights to BF16 or F32, which hold larger values' }),
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

function wholeOf(factor: Factor, use: Exclude<FactorRange['use'], 'left rows'>, layer: number): FactorRange {
  return { factor, offset: factor.offset, byteLength: factor.rows * factor.columns * sizeOf(factor.dtype), use, layer }
}

/** Whether a slice is of a factor that is there in this precision. */
function isSame(stack: Stack | undefined, { source, offset }: Factor, base: WeightDtype): boolean {
  return stack !== undefined && stack.factor.source === source && stack.factor.offset === offset && stack.base === base
}

/** A slice of values with so many columns. */
function columnsOf({ values, base }: Stack, columns: number, { firstRow, rows, first, step }: FactorSlice): FloatArray {
  const count = columns / step
  const result = zeros(rows * count, base)
  for (let i = 0, at = 0; i < rows; i++) {
    const start = (firstRow + i) * columns + first
    for (let j = 0; j < count; j++, at++) result[at] = values[start + j * step]
  }
  return result
}

function rowsOf(factor: Factor, row: number, rows: number, layer: number): FactorRange {
  const rowBytes = factor.columns * sizeOf(factor.dtype)
  return { factor, offset: factor.offset + row * rowBytes, byteLength: rows * rowBytes, use: 'left rows', layer }
}

/** In the precision that is computed in; a view of the bytes where they are that already. */
function factorValues({ dtype }: Factor, bytes: Uint8Array, base: WeightDtype): FloatArray {
  const isAligned = dtype === 'F32' && bytes.byteOffset % 4 === 0
  const stored = isAligned
    ? new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)
    : decodeWeights(bytes, dtype)
  return inPrecisionOf(base, stored)
}

/** Names the factor, or all of the weight's where its values were read with another chunk. */
function nonFiniteError(
  { layers }: WeightPlan,
  ranges: readonly FactorRange[],
  values: readonly FloatArray[],
): NumericError {
  const bad = values.findIndex((each) => !isAllFinite(each))
  const names = bad === -1 ? layers.flatMap(({ a, b }) => [a.name, b.name]) : [ranges[bad].factor.name]
  return new NumericError({
    where: names.join(', '),
    what: names.length === 1 ? 'holds a value that is not finite' : 'one of them holds a value that is not finite',
    ...(bad !== -1 && { got: String(values[bad].find((value) => !Number.isFinite(value))) }),
  })
}

/** What is computed with a base of this type: f64 for F64, else f32. */
export function inPrecisionOf(base: WeightDtype, values: FloatArray): FloatArray {
  if (base === 'F64') return values instanceof Float64Array ? values : Float64Array.from(values)
  return values instanceof Float32Array ? values : Float32Array.from(values)
}

function concatenated(parts: readonly FloatArray[], base: WeightDtype): FloatArray {
  const result = zeros(
    parts.reduce((sum, { length }) => sum + length, 0),
    base,
  )
  let start = 0
  for (const part of parts) {
    result.set(part, start)
    start += part.length
  }
  return result
}

function zeros(length: number, base: WeightDtype): FloatArray {
  return base === 'F64' ? new Float64Array(length) : new Float32Array(length)
}

function transpose(values: FloatArray, rows: number, columns: number): FloatArray {
  const result = values.slice()
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) result[j * rows + i] = values[i * columns + j]
  return result
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
