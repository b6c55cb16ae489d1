// One merged weight as a stream: W + Σ w·s·B·A in f32, rounded once to the type that W is stored in (Hu et al. 2021, arXiv
// 2106.09685, section 4.1), or m ⊙ (W + s·B·A) / ‖W + s·B·A‖ (DoRA, Liu et al. 2024, arXiv 2402.09353, equation 5).

import { decodeFloats, decodeWeights, encodeFloats, type FloatDtype, type WeightDtype } from '../base/dtype.js'
import { NumericError } from '../base/errors.js'
import { elementCount, type FloatArray, type Matrix } from '../base/tensor.js'
import type { Kernels } from '../kernels/reference.js'
import { normOfProduct } from '../linalg/product.js'
import { StoredDelta } from '../lora/delta.js'
import { OutputNorms, scaleColumns, scaleRows } from '../lora/dora.js'
import type { StoredTensor } from '../lora/kinds/stored.js'

/** Rows are merged in blocks of at most so many elements: 4 MiB in f32, small beside any model. */
const BLOCK_ELEMENTS = 1 << 20

/** One layer of one adapter within a weight. */
export interface MergePart {
  /** The layer's name in the adapter; undefined for a part that no report names. */
  readonly name: string | undefined
  /** A (r, k) */
  readonly weightA: Matrix
  /** B (d, r) */
  readonly weightB: Matrix
  /** weight · s, by which B·A is multiplied. */
  readonly scale: number
  /** DoRA's m (d). Such a part has its outputs for itself. */
  readonly magnitude: FloatArray | undefined
  /** The first of the weight's output features that is the layer's; above 0 in weights that several layers share. */
  readonly start: number
}

/** Values that take the base's place before the parts are added: all of them, or some rows or columns. */
export interface NewValues {
  readonly tensor: StoredTensor
  /** Of all values: whether the tensor is (columns, rows). */
  readonly isTransposed: boolean
  /** Which rows (axis 0) or columns (axis 1) the tensor (n, …) holds; undefined for all. */
  readonly lines: { readonly axis: 0 | 1; readonly indices: readonly number[] } | undefined
}

/** A stored weight and what is merged into it. */
export interface MergeTarget {
  /** The tensor's name. */
  readonly name: string
  readonly dtype: FloatDtype
  /** As stored: (d, k), or (k, d) when `isInputMajor`. */
  readonly shape: readonly [rows: number, columns: number]
  readonly isInputMajor: boolean
  readonly values?: NewValues | undefined
  readonly parts: readonly MergePart[]
}

/** How much merging changed a layer. */
export interface LayerChange {
  name: string
  /**
   * ‖s·B·A‖ / ‖W‖, Frobenius norms; Infinity where W is zero and NaN where it cannot be read, which JSON writes as null. Null for a
   * weight in a file that an earlier run had finished.
   */
  relativeChange: number | null
  /** ‖Q(W + s·B·A) − (W + s·B·A)‖ / ‖W‖ of a weight that was quantized again: the error that this adds. */
  quantizationError?: number
}

/** Bytes of the stored weight, by offset from its start. */
export type ReadWeight = (offset: number, byteLength: number) => Promise<Uint8Array>

/** Rows [row, row + count) of a weight, before the merge. */
type Load = (row: number, count: number) => Promise<Float32Array>

/**
 * The merged weight's bytes, in order. With a magnitude the weight is read twice: a norm needs all of its values.
 *
 * @param report called with each part's change after the last bytes; parts that share their outputs change them as one
 * @param kernels that compute the products. Default: the fastest that there are.
 * @throws NumericError when the result is not finite
 */
export async function* mergeWeight(
  target: MergeTarget,
  read: ReadWeight,
  report: (change: LayerChange) => void,
  kernels?: Kernels,
): AsyncGenerator<Uint8Array> {
  const { name, dtype, shape, parts } = target
  const [rows, columns] = shape
  const load = loader(target, read)
  const products = parts.map((part) => new PartProduct(target, part, kernels))
  const blockRows = Math.max(1, Math.floor(BLOCK_ELEMENTS / Math.max(1, columns)))
  const withNorms = products.filter(({ part }) => part.magnitude !== undefined)
  if (withNorms.length > 0) {
    for (let row = 0; row < rows; row += blockRows) {
      const count = Math.min(blockRows, rows - row)
      const block = await load(row, count)
      for (const product of withNorms) product.addNorms(block, row, count)
    }
  }
  const reported = products.filter(({ part }, i) => {
    return part.name !== undefined && products.findIndex((other) => other.hasOutputsOf(part)) === i
  })
  const measured = reported.filter(({ part }) => {
    return part.magnitude !== undefined || products.some((other) => other.part !== part && other.overlaps(part))
  })
  for (let row = 0; row < rows; row += blockRows) {
    const count = Math.min(blockRows, rows - row)
    const block = await load(row, count) // (count, columns)
    for (const product of reported) product.addBaseSquares(block, row, count)
    const before = measured.length === 0 ? block : block.slice()
    for (const product of products) product.addTo(block, row, count)
    for (const product of measured) product.addChange(before, block, row, count)
    const bytes = encodeFloats(block, dtype)
    if (!allFinite(bytes, dtype)) {
      throw new NumericError({
        where: name,
        what: `the merged weight is not finite in ${dtype}`,
        hint: 'Check the adapter: its values are too large, or the base weight is damaged',
      })
    }
    yield bytes
  }
  for (const { part, baseSquares, changeSquares } of reported) {
    const { weightA, weightB, scale } = part
    const isMeasured = measured.some((product) => product.part === part)
    const change = isMeasured ? Math.sqrt(changeSquares) : Math.abs(scale) * normOfProduct(weightB, weightA)
    report({ name: part.name as string, relativeChange: relativeTo(change, Math.sqrt(baseSquares)) })
  }
}

function loader({ dtype, shape, values }: MergeTarget, read: ReadWeight): Load {
  const [rows, columns] = shape
  const rowBytes = columns * (dtype === 'fp32' ? 4 : 2)
  const stored: Load = async (row, count) => decodeFloats(await read(row * rowBytes, count * rowBytes), dtype)
  if (values === undefined) return stored
  const { tensor, isTransposed, lines } = values
  const type = tensor.dtype as WeightDtype
  const size = tensor.data.byteLength / Math.max(1, elementCount(tensor.shape))
  const elements = (from: number, count: number) =>
    Float32Array.from(decodeWeights(tensor.data.subarray(from * size, (from + count) * size), type))
  if (lines === undefined) {
    return async (row, count) => {
      if (!isTransposed) return elements(row * columns, count * columns)
      const block = new Float32Array(count * columns)
      for (let j = 0; j < columns; j++) {
        elements(j * rows + row, count).forEach((value, i) => {
          block[i * columns + j] = value
        })
      }
      return block
    }
  }
  const { axis, indices } = lines
  const all = elements(0, elementCount(tensor.shape))
  return async (row, count) => {
    const block = await stored(row, count)
    indices.forEach((index, i) => {
      if (axis === 1) for (let j = 0; j < count; j++) block[j * columns + index] = all[i * rows + row + j]
      else if (index >= row && index < row + count)
        block.set(all.subarray(i * columns, (i + 1) * columns), (index - row) * columns)
    })
    return block
  }
}

/** scale·B·A, or its transpose, as a product left (rows, r) @ right (r, columns) over the part's rectangle of the weight. */
class PartProduct {
  readonly part: MergePart
  /** Σ w² over the part's elements of the base weight. */
  baseSquares = 0
  /** Σ δ² over them, where they are measured. */
  changeSquares = 0
  readonly #kernels: Kernels | undefined
  readonly #isInputMajor: boolean
  readonly #blockColumns: number
  readonly #delta: StoredDelta
  readonly #firstRow: number
  readonly #rows: number
  readonly #firstColumn: number
  readonly #columns: number
  /** Of W + s·B·A, by output of a part with a magnitude. */
  readonly #norms: OutputNorms

  constructor({ isInputMajor, shape }: MergeTarget, part: MergePart, kernels: Kernels | undefined) {
    this.part = part
    this.#kernels = kernels
    const { weightA, weightB, start } = part
    const [[, k], [d]] = [weightA.shape, weightB.shape]
    this.#isInputMajor = isInputMajor
    this.#blockColumns = shape[1]
    this.#delta = new StoredDelta(part, part.scale, isInputMajor, new Float32Array())
    this.#firstRow = isInputMajor ? 0 : start
    this.#rows = isInputMajor ? k : d
    this.#firstColumn = isInputMajor ? start : 0
    this.#columns = isInputMajor ? d : k
    this.#norms = new OutputNorms(part.magnitude === undefined ? 0 : d)
  }

  hasOutputsOf({ start, weightB }: MergePart): boolean {
    return start === this.part.start && weightB.shape[0] === this.part.weightB.shape[0]
  }

  overlaps({ start, weightB }: MergePart): boolean {
    const own = this.part
    return start < own.start + own.weightB.shape[0] && own.start < start + weightB.shape[0]
  }

  /** From rows [row, row + count) of the weight. */
  addNorms(block: Float32Array, row: number, count: number): void {
    const [from, sum] = this.#sum(block, row, count)
    this.#norms.add(sum, from - this.#firstRow, this.#isInputMajor)
  }

  addBaseSquares(block: Float32Array, row: number, count: number): void {
    for (const value of this.#cut(block, row, count)) this.baseSquares += value * value
  }

  addChange(before: Float32Array, after: Float32Array, row: number, count: number): void {
    const base = this.#cut(before, row, count)
    this.#cut(after, row, count).forEach((value, i) => {
      this.changeSquares += (value - base[i]) ** 2
    })
  }

  /** Adds to rows [row, row + count) of the weight, and multiplies by m / ‖W + s·B·A‖ where there is a magnitude. */
  addTo(block: Float32Array, row: number, count: number): void {
    const [from, sum] = this.#sum(block, row, count)
    const [rows, n] = sum.shape
    const { magnitude } = this.part
    if (magnitude !== undefined) {
      const scales = this.#norms.scales(magnitude)
      const first = from - this.#firstRow
      if (this.#isInputMajor) scaleColumns(sum, scales)
      else scaleRows(sum, scales.subarray(first, first + rows))
    }
    for (let i = 0; i < rows; i++) {
      block.set(sum.data.subarray(i * n, (i + 1) * n), (from - row + i) * this.#blockColumns + this.#firstColumn)
    }
  }

  /** W + s·B·A over the part's rectangle in rows [row, row + count), and the first of its rows. */
  #sum(block: Float32Array, row: number, count: number): [from: number, sum: Matrix] {
    const from = Math.max(row, this.#firstRow)
    const data = this.#cut(block, row, count)
    const own: Matrix = { data, shape: [data.length / Math.max(1, this.#columns), this.#columns] }
    return [from, this.#delta.addTo(own, from - this.#firstRow, this.#kernels)]
  }

  /** A copy of what is the part's in rows [row, row + count). */
  #cut(block: Float32Array, row: number, count: number): Float32Array {
    const from = Math.max(row, this.#firstRow)
    const to = Math.max(from, Math.min(row + count, this.#firstRow + this.#rows))
    const n = this.#columns
    const own = new Float32Array((to - from) * n)
    for (let i = 0; i < to - from; i++) {
      const start = (from - row + i) * this.#blockColumns + this.#firstColumn
      own.set(block.subarray(start, start + n), i * n)
    }
    return own
  }
}

/** A zero layer changes a zero weight by nothing. */
function relativeTo(delta: number, base: number): number {
  return delta === 0 ? 0 : delta / base
}

/** Looks at the stored bits, so that what only overflows in the narrow type is found too. */
function allFinite(bytes: Uint8Array, dtype: FloatDtype): boolean {
  const { buffer, byteOffset, byteLength } = bytes
  if (dtype === 'fp32') return new Float32Array(buffer, byteOffset, byteLength / 4).every(Number.isFinite)
  const exponent = dtype === 'fp16' ? 0x7c00 : 0x7f80
  return new Uint16Array(buffer, byteOffset, byteLength / 2).every((bits) => (bits & exponent) !== exponent)
}
