// Matrix products on WebAssembly SIMD, block by block.

import { roundUp } from '../base/tensor.js'
import { gemmBuilds } from './gen/gemm.js'
import { type BuildName, compile, fastestBuilds, supports } from './module.js'
import { type GemmOptions, type Kernels, referenceKernels } from './reference.js'
import {
  DEPTH,
  JOB_START,
  LEFT_START,
  MAX_DEPTH,
  planBlocks,
  RIGHT_START,
  STAGING_START,
  type Way,
  Workspace,
} from './workspace.js'

/** The exports of kernels-asm/gemm.ts; addresses and strides in bytes. */
interface GemmExports {
  rowsOfTile(): number
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

/** Takes the fastest build that the host has, unless one is named. */
export function createWasmKernels(build?: BuildName): WasmKernels | undefined {
  for (const name of build === undefined ? fastestBuilds() : [build]) {
    const module = supports(name) ? compile(gemmBuilds[name]) : undefined
    if (module !== undefined) return new WasmKernels(name, module)
  }
  return undefined
}

/** Bytes of the left operand that are copied and packed at a time: few enough to stay in the processor's cache. */
const SLAB_BYTES = 2 ** 17

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
  readonly name: string
  readonly #workspace = new Workspace()
  readonly #wasm: GemmExports

  /** @internal Use {@link createWasmKernels}. */
  constructor(build: BuildName, module: WebAssembly.Module) {
    this.name = `wasm ${build}`
    const { exports } = new WebAssembly.Instance(module, { env: { memory: this.#workspace.memory } })
    this.#wasm = exports as unknown as GemmExports
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
    const multiple = this.#wasm.rowsOfTile()
    const steps = transposeA ? Math.min(DEPTH, depth) : depth
    const lines = Math.max(multiple, Math.floor(SLAB_BYTES / (steps * size) / multiple) * multiple)
    for (let first = 0; first < rows; first += lines) {
      const count = Math.min(lines, rows - first)
      if (!transposeA) {
        this.#workspace.copyIn(a, (row + first) * k + start, k, count, depth, STAGING_START)
        this.#wasm.packLeft(size, STAGING_START, depth * size, true, first, count, rows, depth, LEFT_START)
        continue
      }
      const padded = roundUp(rows, multiple)
      for (let p = 0; p < depth; p += DEPTH) {
        const slab = Math.min(DEPTH, depth - p)
        this.#workspace.copyIn(a, (start + p) * m + row + first, m, slab, count, STAGING_START)
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

  #prepare(part: Part, block: Block): void {
    const { rows, column, columns } = block
    const { n, k, b, transposeB, out, alpha, accumulates, start, depth } = part
    if (transposeB) this.#workspace.copyIn(b, column * k + start, k, columns, depth, RIGHT_START)
    else this.#workspace.copyIn(b, start * n + column, n, depth, columns, RIGHT_START)
    if (accumulates) this.#moveC(part, block, 'in')
    const job = { rows, columns, depth, isRightContiguous: transposeB, accumulates, alpha }
    this.#workspace.writeJob(out.BYTES_PER_ELEMENT, job)
  }

  /** Copies a block of C into the memory or back. */
  #moveC({ n, out }: Part, { row, rows, column, columns }: Block, way: Way): void {
    this.#workspace.moveC(rows, columns, { matrix: out, start: row * n + column, stride: n }, way)
  }
}
