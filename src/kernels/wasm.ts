// Matrix products on WebAssembly SIMD, in as many threads as the host has. Every sum is taken in the same order, so the
// values do not depend on the number of threads or on which thread computed a block.

import { StateError } from '../base/errors.js'
import { gemmBuilds } from './gen/gemm.js'
import { type BuildName, compile, fastestBuilds, supports } from './module.js'
import { type GemmOptions, type Kernels, referenceKernels } from './reference.js'
import { availableThreads, type BlockTask, KernelThreads, slotsFor } from './threads.js'
import { DEPTH, MAX_DEPTH, planBlocks, type Way, Workspace } from './workspace.js'

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
  scale(size: number, at: number, count: number, factor: number): void
}

/** Below this many multiplications, handing work to threads costs more time than it saves. */
const MIN_THREADED_PRODUCT = 2 ** 22
/** Each thread gets at least this many blocks if there are enough columns, so that a slow thread holds up less. */
const BLOCKS_PER_THREAD = 4

/** `threads` counts the calling thread. Default: one for each core, at most 8; 1 if threads cannot be used. */
export function createWasmKernels(options: { build?: BuildName; threads?: number } = {}): WasmKernels | undefined {
  const threads = Math.max(1, Math.min(options.threads ?? Number.POSITIVE_INFINITY, availableThreads()))
  for (const build of options.build === undefined ? fastestBuilds() : [options.build]) {
    const module = supports(build) ? compile(gemmBuilds[build], threads > 1) : undefined
    if (module !== undefined) return new WasmKernels(build, module, threads)
  }
  return undefined
}

/** Bytes of the left operand that are copied and packed at a time: few enough to stay in the processor's cache. */
const SLAB_BYTES = 2 ** 17

/**
 * Products with few columns and more rows are computed as Cᵀ = Bᵀ·Aᵀ, so that each thread packs its own blocks of A.
 */
const MAX_SWAPPED_COLUMNS = 64
const SWAPPED_BLOCK_BYTES = 2 ** 19

/** A product C (m, n) = alpha · A·B + beta · C, or a slice of it with a depth of at most MAX_DEPTH. */
interface Part extends Required<GemmOptions> {
  /** `out` is (n, m). */
  isSwapped: boolean
  /** Where the slice begins in the operands' depth, and that whole depth. */
  start: number
  depth: number
}

interface Block {
  slot: number
  row: number
  rows: number
  column: number
  columns: number
}

/**
 * From the first product until `dispose` it holds up to 25 MB of memory, and 15 MB more for each worker thread.
 * Idle threads sleep and do not keep the process alive.
 */
export class WasmKernels implements Kernels {
  readonly name: string
  readonly threads: number
  readonly #module: WebAssembly.Module
  #state: { workspace: Workspace; wasm: GemmExports; team?: KernelThreads } | undefined
  #isDisposed = false

  /** @internal Use {@link createWasmKernels}. */
  constructor(build: BuildName, module: WebAssembly.Module, threads: number) {
    this.name = `wasm ${build}`
    this.threads = threads
    this.#module = module
  }

  gemm(options: GemmOptions): void {
    const { m, n, k, alpha = 1, beta = 0, transposeA = false, transposeB = false } = options
    if (m === 0 || n === 0) return
    if (k === 0) referenceKernels.gemm(options)
    const isSwapped = n <= MAX_SWAPPED_COLUMNS && m > n
    const { a, b } = options
    const operands = isSwapped
      ? { m: n, n: m, a: b, b: a, transposeA: !transposeB, transposeB: !transposeA }
      : { transposeA, transposeB }
    for (let start = 0; start < k; start += MAX_DEPTH) {
      const depth = Math.min(MAX_DEPTH, k - start)
      this.#part({ ...options, ...operands, alpha, beta: start === 0 ? beta : 1, start, depth, isSwapped })
    }
  }

  dispose(): void {
    this.#state?.team?.dispose()
    this.#state = undefined
    this.#isDisposed = true
  }

  #part(part: Part): void {
    const { m, n, depth, isSwapped } = part
    const { workspace, wasm } = this.#open()
    const size = part.out.BYTES_PER_ELEMENT
    const isThreaded = this.threads > 1 && m * n * depth >= MIN_THREADED_PRODUCT
    const blocks = isThreaded ? BLOCKS_PER_THREAD * this.threads : 1
    const fittingBlocks = isSwapped ? (n * depth * size) / SWAPPED_BLOCK_BYTES : 1
    const cut = planBlocks(m, n, depth, size, Math.max(blocks, Math.ceil(fittingBlocks)))
    const compute = (slot: number): void => wasm.multiply(workspace.jobOf(slot))
    for (let row = 0; row < m; row += cut.rows) {
      const rows = Math.min(cut.rows, m - row)
      this.#packLeft(part, row, rows)
      const blockOf = (slot: number, index: number): Block => {
        const column = index * cut.columns
        return { slot, row, rows, column, columns: Math.min(cut.columns, n - column) }
      }
      const task: BlockTask = {
        count: Math.ceil(n / cut.columns),
        prepare: (slot, index) => this.#prepare(part, blockOf(slot, index)),
        finish: (slot, index) => void this.#moveC(part, blockOf(slot, index), 'out'),
      }
      const state = this.#open()
      if (isThreaded) {
        state.team ??= new KernelThreads(this.#module, workspace, this.threads)
        state.team.run(task, compute)
      } else {
        for (let block = 0; block < task.count; block++) {
          task.prepare(0, block)
          compute(0)
          task.finish(0, block)
        }
      }
    }
  }

  #packLeft({ m, k, a, transposeA, start, depth }: Part, row: number, rows: number): void {
    const { workspace, wasm } = this.#open()
    const { left, staging } = workspace
    const size = a.BYTES_PER_ELEMENT
    const multiple = wasm.rowsOfTile()
    const steps = transposeA ? Math.min(DEPTH, depth) : depth
    const lines = Math.max(multiple, Math.floor(SLAB_BYTES / (steps * size) / multiple) * multiple)
    for (let first = 0; first < rows; first += lines) {
      const count = Math.min(lines, rows - first)
      if (!transposeA) {
        workspace.copyIn(a, (row + first) * k + start, k, count, depth, staging)
        wasm.packLeft(size, staging, depth * size, true, first, count, rows, depth, left)
        continue
      }
      const padded = Math.ceil(rows / multiple) * multiple
      for (let p = 0; p < depth; p += DEPTH) {
        const slab = Math.min(DEPTH, depth - p)
        workspace.copyIn(a, (start + p) * m + row + first, m, slab, count, staging)
        wasm.packLeft(size, staging, count * size, false, first, count, rows, slab, left + p * padded * size)
      }
    }
  }

  #prepare(part: Part, block: Block): void {
    const { workspace, wasm } = this.#open()
    const { slot, rows, column, columns } = block
    const { n, k, b, transposeB, out, alpha, beta, start, depth } = part
    const right = workspace.rightOf(slot)
    if (transposeB) workspace.copyIn(b, column * k + start, k, columns, depth, right)
    else workspace.copyIn(b, start * n + column, n, depth, columns, right)
    if (beta !== 0) {
      const count = this.#moveC(part, block, 'in')
      if (beta !== 1) wasm.scale(out.BYTES_PER_ELEMENT, workspace.cOf(slot), count, beta)
    }
    const job = { rows, columns, depth, isRightContiguous: transposeB, accumulates: beta !== 0, alpha }
    workspace.writeJob(slot, out.BYTES_PER_ELEMENT, job)
  }

  /** Copies a block of C into its slot or back. Returns how many elements of the slot it takes. */
  #moveC({ m, n, out, isSwapped }: Part, { slot, row, rows, column, columns }: Block, way: Way): number {
    const start = isSwapped ? column * m + row : row * n + column
    const place = { matrix: out, start, stride: isSwapped ? m : n, isTransposed: isSwapped }
    return this.#open().workspace.moveC(slot, rows, columns, place, way)
  }

  #open(): { workspace: Workspace; wasm: GemmExports; team?: KernelThreads } {
    if (this.#isDisposed) throw new StateError({ where: 'WasmKernels', what: 'used after dispose' })
    if (this.#state === undefined) {
      const workspace = new Workspace(slotsFor(this.threads), this.threads > 1)
      const { exports } = new WebAssembly.Instance(this.#module, { env: { memory: workspace.memory } })
      this.#state = { workspace, wasm: exports as unknown as GemmExports }
    }
    return this.#state
  }
}
