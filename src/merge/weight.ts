// One merged weight as a stream: W + s·B·A in f32, rounded once to the type that W is stored in (Hu et al. 2021, arXiv
// 2106.09685, section 4.1). Both ways of merging, into ONNX and into a checkpoint, end here.

import { decodeFloats, encodeFloats, type FloatDtype } from '../base/dtype.js'
import { NumericError } from '../base/errors.js'
import { defaultKernels } from '../kernels/index.js'
import type { LoraLayer } from '../lora/layer.js'

/** Rows are merged in blocks of at most so many elements: 4 MiB in f32, small beside any model. */
const BLOCK_ELEMENTS = 1 << 20

/** One layer of the adapter within a weight. */
export interface MergePart {
  /** The layer's name in the adapter. */
  readonly name: string
  readonly layer: LoraLayer
  /** The first of the weight's output features that is the layer's; above 0 in weights that several layers share. */
  readonly start: number
}

/** A stored weight and what is merged into it. */
export interface MergeTarget {
  /** The tensor's name. */
  readonly name: string
  readonly dtype: FloatDtype
  /** As stored: (d, k), or (k, d) when `isInputMajor`. */
  readonly shape: readonly [rows: number, columns: number]
  readonly isInputMajor: boolean
  readonly parts: readonly MergePart[]
}

/** How much merging changed a layer. */
export interface LayerChange {
  name: string
  /** ‖s·B·A‖ / ‖W‖, Frobenius norms. */
  relativeChange: number
}

/** Bytes of the stored weight, by offset from its start. */
export type ReadWeight = (offset: number, byteLength: number) => Promise<Uint8Array>

/**
 * The merged weight's bytes, in order.
 *
 * @param report called with each part's change after the last bytes
 * @throws NumericError when the result is not finite
 */
export async function* mergeWeight(
  target: MergeTarget,
  read: ReadWeight,
  report: (change: LayerChange) => void,
): AsyncGenerator<Uint8Array> {
  const { name, dtype, shape, parts } = target
  const [rows, columns] = shape
  const factors = parts.map((part) => new PartFactors(target, part))
  const blockRows = Math.max(1, Math.floor(BLOCK_ELEMENTS / Math.max(1, columns)))
  const rowBytes = columns * (dtype === 'F32' ? 4 : 2)
  for (let row = 0; row < rows; row += blockRows) {
    const count = Math.min(blockRows, rows - row)
    const block = decodeFloats(await read(row * rowBytes, count * rowBytes), dtype) // (count, columns)
    for (const part of factors) part.addTo(block, row, count, columns)
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
  for (const { part, baseSquares } of factors) {
    report({ name: part.name, relativeChange: relativeTo(part.layer.normDelta(), Math.sqrt(baseSquares)) })
  }
}

/** s·B·A, or its transpose, as a product left (rows, r) @ right (r, columns) over the part's rectangle of the weight. */
class PartFactors {
  readonly part: MergePart
  /** Σ w² over the part's elements of the base weight. */
  baseSquares = 0
  readonly #left: Float32Array
  readonly #right: Float32Array
  readonly #firstRow: number
  readonly #rows: number
  readonly #firstColumn: number
  readonly #columns: number

  constructor({ isInputMajor }: MergeTarget, part: MergePart) {
    this.part = part
    const { weightA, weightB, rank, d, k } = part.layer
    const a = Float32Array.from(weightA.data)
    const b = Float32Array.from(weightB.data)
    // (B·A)ᵀ = Aᵀ·Bᵀ
    this.#left = isInputMajor ? transpose(a, rank, k) : b
    this.#right = isInputMajor ? transpose(b, d, rank) : a
    this.#firstRow = isInputMajor ? 0 : part.start
    this.#rows = isInputMajor ? k : d
    this.#firstColumn = isInputMajor ? part.start : 0
    this.#columns = isInputMajor ? d : k
  }

  /** Adds to rows [row, row + count) of the weight. */
  addTo(block: Float32Array, row: number, count: number, blockColumns: number): void {
    const from = Math.max(row, this.#firstRow)
    const to = Math.min(row + count, this.#firstRow + this.#rows)
    if (from >= to) return
    const [m, n, k] = [to - from, this.#columns, this.part.layer.rank]
    const own = new Float32Array(m * n) // the part's columns of W, then of W + s·B·A
    const start = (i: number) => (from - row + i) * blockColumns + this.#firstColumn
    for (let i = 0; i < m; i++) own.set(block.subarray(start(i), start(i) + n), i * n)
    for (const value of own) this.baseSquares += value * value
    const a = this.#left.subarray((from - this.#firstRow) * k, (to - this.#firstRow) * k)
    defaultKernels().gemm({ m, n, k, a, b: this.#right, out: own, alpha: this.part.layer.scaling, beta: 1 })
    for (let i = 0; i < m; i++) block.set(own.subarray(i * n, (i + 1) * n), start(i))
  }
}

function transpose(values: Float32Array, rows: number, columns: number): Float32Array {
  const result = new Float32Array(values.length)
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) result[j * rows + i] = values[i * columns + j]
  return result
}

/** A zero layer changes a zero weight by nothing. */
function relativeTo(delta: number, base: number): number {
  return delta === 0 ? 0 : delta / base
}

/** Looks at the stored bits, so that what only overflows in the narrow type is found too. */
function allFinite(bytes: Uint8Array, dtype: FloatDtype): boolean {
  const { buffer, byteOffset, byteLength } = bytes
  if (dtype === 'F32') return new Float32Array(buffer, byteOffset, byteLength / 4).every(Number.isFinite)
  const exponent = dtype === 'F16' ? 0x7c00 : 0x7f80
  return new Uint16Array(buffer, byteOffset, byteLength / 2).every((bits) => (bits & exponent) !== exponent)
}
