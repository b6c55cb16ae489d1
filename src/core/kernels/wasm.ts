// Matrix products on WebAssembly SIMD, block by block, in a memory of fixed size: room for the packed left operand, and
// for one block of the right one and of C. Operands are copied in, which costs 1 to 3 % of a large product, so that
// callers never get an array that lies in WebAssembly's memory.

import { type FloatArray, roundUp } from '../base/tensor.js'
import { gemmModule } from './gen/gemm.js'
import { compile } from './module.js'
import { type GemmOptions, type Kernels, referenceKernels } from './reference.js'

/** The exports of kernels-asm/gemm.ts; addresses and strides in bytes. */
interface GemmExports {
  packLeft(
    size: number,
    from: number,
    stride: number,
    contiguous: boolean,
    first: number,
    lines: number,
    total: number,
    depth: number,
    to: number,
  ): void
  multiply(job: number): void
}

export function createWasmKernels(): WasmKernels | undefined {
  const module = compile(gemmModule)
  return module && new WasmKernels(module)
}

/** Blocks consist of whole tiles of 4 rows and 8 columns of f32 or 4 columns of f64. Equal to ROWS in kernels-asm/. */
const TILE_ROWS = 4
const COLUMN_MULTIPLE = 8
/** The most columns of a block. Wider blocks would not be faster: the left operand already comes from the cache. */
const MAX_COLUMNS = 512
/** How many steps of depth are packed together. Equal to DEPTH in kernels-asm/gemm.ts. */
const DEPTH = 256
/** The greatest depth of one product; deeper products are sums of several. A block then has at least 16 columns. */
const MAX_DEPTH = 8192

const MiB = 2 ** 20
/** Memory for the left operand: 1,088 rows of 4,096 f32. Each pass over more rows packs the right operand again. */
const LEFT_BYTES = 17 * MiB
/** The largest line of tiles: rows of f64 at the greatest depth. */
const STAGING_BYTES = TILE_ROWS * MAX_DEPTH * 8
/** Room for a block of the right operand before it is packed. With 1 MiB products were 8 % slower. */
const RIGHT_BYTES = 4 * MiB
const PACKED_BYTES = DEPTH * MAX_COLUMNS * 8
const C_BYTES = 2.25 * MiB

/** Class Job in kernels-asm/gemm.ts. */
const JOB_START = 1024
const LEFT_START = 4096
const STAGING_START = LEFT_START + LEFT_BYTES
const RIGHT_START = STAGING_START + STAGING_BYTES
const PACKED_START = RIGHT_START + RIGHT_BYTES
const C_START = PACKED_START + PACKED_BYTES
const PAGE_BYTES = 65536
/** Bytes of the left operand that are copied and packed at a time: few enough to stay in the processor's cache. */
const SLAB_BYTES = 2 ** 17

function planBlocks(m: number, n: number, k: number, size: number) {
  const fitting = Math.floor(RIGHT_BYTES / (k * size) / COLUMN_MULTIPLE) * COLUMN_MULTIPLE
  const columns = Math.min(fitting, MAX_COLUMNS, roundUp(n, 2 * COLUMN_MULTIPLE))
  const capacity = Math.min(LEFT_BYTES / (k * size), C_BYTES / (columns * size))
  const most = Math.floor(capacity / TILE_ROWS) * TILE_ROWS
  const passes = Math.ceil(m / most)
  return { columns, rows: roundUp(Math.ceil(m / passes), TILE_ROWS) }
}

/** A product C (m, n) = alpha · A·B, which may be added to C, or a slice of it with a depth of at most MAX_DEPTH. */
interface Part extends Required<GemmOptions> {
  /** The first row of the slice along the operands' depth, and the whole depth. */
  start: number
  depth: number
}

interface Block {
  row: number
  rows: number
  column: number
  columns: number
}

/** Holds up to 25 MB of memory. */
export class WasmKernels implements Kernels {
  readonly name = 'wasm'
  readonly #wasm: GemmExports
  readonly #f32: Float32Array
  readonly #f64: Float64Array
  readonly #i32: Int32Array

  /** @internal Use {@link createWasmKernels}. */
  constructor(module: WebAssembly.Module) {
    const pages = Math.ceil((C_START + C_BYTES) / PAGE_BYTES)
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages })
    this.#wasm = new WebAssembly.Instance(module, { env: { memory } }).exports as unknown as GemmExports
    this.#f32 = new Float32Array(memory.buffer)
    this.#f64 = new Float64Array(memory.buffer)
    this.#i32 = new Int32Array(memory.buffer)
  }

  gemm(options: GemmOptions): void {
    const { m, n, k, alpha = 1, accumulates = false, transposeA = false, transposeB = false } = options
    if (m === 0 || n === 0) return
    if (k === 0) referenceKernels.gemm(options)
    const whole = { ...options, transposeA, transposeB, alpha }
    for (let start = 0; start < k; start += MAX_DEPTH) {
      const depth = Math.min(MAX_DEPTH, k - start)
      this.#part({ ...whole, accumulates: accumulates || start > 0, start, depth })
    }
  }

  #part(part: Part): void {
    const { m, n, depth } = part
    const cut = planBlocks(m, n, depth, part.out.BYTES_PER_ELEMENT)
    for (let row = 0; row < m; row += cut.rows) {
      const rows = Math.min(cut.rows, m - row)
      this.#packLeft(part, row, rows)
      for (let column = 0; column < n; column += cut.columns) {
        const block = { row, rows, column, columns: Math.min(cut.columns, n - column) }
        this.#prepare(part, block)
        this.#wasm.multiply(JOB_START)
        this.#moveC(part, block, 'out')
      }
    }
  }

  #packLeft({ m, k, a, transposeA, start, depth }: Part, row: number, rows: number): void {
    const size = a.BYTES_PER_ELEMENT
    const steps = transposeA ? Math.min(DEPTH, depth) : depth
    const lines = Math.max(TILE_ROWS, Math.floor(SLAB_BYTES / (steps * size) / TILE_ROWS) * TILE_ROWS)
    for (let first = 0; first < rows; first += lines) {
      const count = Math.min(lines, rows - first)
      if (!transposeA) {
        this.#copyIn(a, (row + first) * k + start, k, count, depth, STAGING_START)
        this.#wasm.packLeft(size, STAGING_START, depth * size, true, first, count, rows, depth, LEFT_START)
        continue
      }
      const padded = roundUp(rows, TILE_ROWS)
      for (let p = 0; p < depth; p += DEPTH) {
        const slab = Math.min(DEPTH, depth - p)
        this.#copyIn(a, (start + p) * m + row + first, m, slab, count, STAGING_START)
        this.#wasm.packLeft(
          size,
          STAGING_START,
          count * size,
          false,
          first,
          count,
          rows,
          slab,
          LEFT_START + p * padded * size,
        )
      }
    }
  }

  /** Copies the right operand in, and C if it is added to, and writes the job that `multiply` reads. */
  #prepare(part: Part, block: Block): void {
    const { rows, column, columns } = block
    const { n, k, b, transposeB, out, alpha, accumulates, start, depth } = part
    if (transposeB) this.#copyIn(b, column * k + start, k, columns, depth, RIGHT_START)
    else this.#copyIn(b, start * n + column, n, depth, columns, RIGHT_START)
    if (accumulates) this.#moveC(part, block, 'in')
    const fields = [LEFT_START, RIGHT_START, PACKED_START, C_START, rows, columns, depth]
    const size = out.BYTES_PER_ELEMENT
    this.#i32.set([...fields, Number(transposeB), size, Number(accumulates)], JOB_START / 4)
    this.#f64[JOB_START / 8 + 5] = alpha
  }

  #elements(like: FloatArray): FloatArray {
    return like instanceof Float64Array ? this.#f64 : this.#f32
  }

  #copyIn(from: FloatArray, start: number, stride: number, rows: number, columns: number, address: number): void {
    const to = this.#elements(from)
    let at = address / to.BYTES_PER_ELEMENT
    if (columns === stride) {
      to.set(from.subarray(start, start + rows * columns), at)
      return
    }
    for (let i = 0; i < rows; i++, start += stride, at += columns) to.set(from.subarray(start, start + columns), at)
  }

  /** Copies a block of C into the memory or back. There, its rows are padded to whole tiles. */
  #moveC({ n, out }: Part, { row, rows, column, columns }: Block, way: 'in' | 'out'): void {
    const c = this.#elements(out)
    const padded = roundUp(columns, 32 / out.BYTES_PER_ELEMENT)
    const isWhole = columns === n && columns === padded
    const [count, length] = isWhole ? [1, rows * columns] : [rows, columns]
    let at = C_START / out.BYTES_PER_ELEMENT
    for (let i = 0, to = row * n + column; i < count; i++, to += n, at += padded) {
      if (way === 'in') c.set(out.subarray(to, to + length), at)
      else out.set(c.subarray(at, at + length), to)
    }
  }
}
