// The merge kernel on WebAssembly SIMD, in a memory of its own that also holds the chunk: files are read into it and written from
// it without a copy. kernels-asm/chunk.ts computes.

import type { FloatDtype } from '../../base/dtype.js'
import { chunkBuilds } from '../../kernels/gen/chunk.js'
import { compile, type SimdBuild, supports } from '../../kernels/module.js'
import { type MergeKernel, referenceKernel } from './kernel.js'
import { CHUNK_BYTES } from './layout.js'

/** The exports of kernels-asm/chunk.ts; addresses in bytes. */
interface ChunkExports {
  scratchBytes(): number
  leftBytes(rows: number, rank: number): number
  packLeft(from: number, rows: number, rank: number, to: number): void
  packRight(from: number, rank: number, columns: number, to: number): void
  merge(
    type: number,
    weight: number,
    rows: number,
    columns: number,
    left: number,
    right: number,
    rank: number,
    scale: number,
    scratch: number,
    sums: number,
  ): number
}

const TYPES: Readonly<Record<FloatDtype, number>> = { F32: 0, F16: 1, BF16: 2 }
const PAGE_BYTES = 65536
const MAX_PAGES = 65536
const SUMS = 1024
const SCRATCH = 2048

/**
 * @param byteLength size of the largest chunk
 * @returns undefined where the host, or its content security policy, has no WebAssembly with SIMD
 */
export function createWasmKernel(byteLength = CHUNK_BYTES, build?: SimdBuild): MergeKernel | undefined {
  for (const candidate of build === undefined ? (['relaxed', 'plain'] as const) : [build]) {
    const module = supports(candidate) ? compile(chunkBuilds[candidate], false) : undefined
    if (module !== undefined) return new WasmKernel(candidate, module, byteLength)
  }
  return undefined
}

/** The fastest kernel that this host has. */
export function createMergeKernel(byteLength = CHUNK_BYTES): MergeKernel {
  return createWasmKernel(byteLength) ?? referenceKernel(byteLength)
}

class WasmKernel implements MergeKernel {
  readonly name: string
  readonly #memory: WebAssembly.Memory
  readonly #wasm: ChunkExports
  readonly #chunkBytes: number
  readonly #chunkStart: number
  /** The packed right factor; what comes behind it depends on its size. */
  readonly #rightStart: number
  #freeStart: number
  #rank = 0

  constructor(build: SimdBuild, module: WebAssembly.Module, chunkBytes: number) {
    this.name = `wasm ${build}`
    this.#memory = new WebAssembly.Memory({ initial: 1, maximum: MAX_PAGES })
    this.#wasm = new WebAssembly.Instance(module, { env: { memory: this.#memory } }).exports as unknown as ChunkExports
    this.#chunkBytes = chunkBytes
    this.#chunkStart = align(SCRATCH + this.#wasm.scratchBytes())
    this.#rightStart = align(this.#chunkStart + chunkBytes)
    this.#freeStart = this.#rightStart
    this.#reserve(this.#rightStart)
  }

  get chunk(): Uint8Array {
    return new Uint8Array(this.#memory.buffer, this.#chunkStart, this.#chunkBytes)
  }

  loadRight(right: Float32Array, rank: number, columns: number): void {
    const packedBytes = Math.ceil(columns / 8) * 32 * rank
    this.#freeStart = align(this.#rightStart + packedBytes)
    this.#put(right, this.#freeStart)
    this.#wasm.packRight(this.#freeStart, rank, columns, this.#rightStart)
    this.#rank = rank
  }

  merge({ dtype, rows, column, columns, left, scale }: Parameters<MergeKernel['merge']>[0]) {
    const wasm = this.#wasm
    const rank = this.#rank
    const rawStart = align(this.#freeStart + wasm.leftBytes(rows, rank))
    this.#put(left, rawStart)
    wasm.packLeft(rawStart, rows, rank, this.#freeStart)
    const right = this.#rightStart + (column / 8) * 32 * rank
    const hasOnlyFinite = wasm.merge(
      TYPES[dtype],
      this.#chunkStart,
      rows,
      columns,
      this.#freeStart,
      right,
      rank,
      scale,
      SCRATCH,
      SUMS,
    )
    const [baseSquares, deltaSquares] = new Float64Array(this.#memory.buffer, SUMS, 2)
    return { baseSquares, deltaSquares, isFinite: hasOnlyFinite !== 0 }
  }

  #put(values: Float32Array, start: number): void {
    this.#reserve(start + values.byteLength)
    new Float32Array(this.#memory.buffer, start, values.length).set(values)
  }

  #reserve(byteLength: number): void {
    const missing = Math.ceil((byteLength - this.#memory.buffer.byteLength) / PAGE_BYTES)
    if (missing > 0) this.#memory.grow(missing)
  }
}

function align(byteLength: number): number {
  return Math.ceil(byteLength / 64) * 64
}
