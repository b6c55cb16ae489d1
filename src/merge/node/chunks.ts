// The inner loop of a merge in Node: reads straight into the kernel's memory, computes, and writes from there.
// Measured: copying files first and patching them is slower.

import { fstatSync, readSync, writeSync } from 'node:fs'
import { FileError } from '../../base/errors.js'
import { withFileErrors } from '../../io/node/errors.js'
import { chunksOf, computedWeights, type OutputFile, type WeightPlan } from '../plan/layout.js'
import { ChangeSums } from '../report.js'
import { ChunkMerger, type ChunkSource } from '../weight.js'

export interface OpenFile {
  readonly name: string
  readonly fd: number
}

export type Readable = OpenFile | { readonly name: string; readonly bytes: Uint8Array }

export type Segmented = Pick<OutputFile, 'segments'>

/** Plain data and shared memory, so that it can be sent to threads. */
export interface ChunkJob {
  readonly files: readonly Segmented[]
  readonly outputs: readonly OpenFile[]
  readonly sources: readonly Readable[]
  readonly threads: number
  readonly isReproducible: boolean
  readonly shared: SharedState
}

type SharedState = ReturnType<typeof createShared>

const NEXT = 0
const STOP = 1

export function createShared(files: readonly Segmented[], threads: number) {
  const weights = computedWeights(files).length
  return {
    /** [next chunk, 1 when all should stop] */
    control: new Int32Array(new SharedArrayBuffer(8)),
    done: new Int32Array(new SharedArrayBuffer(4 * files.length)),
    written: new Float64Array(new SharedArrayBuffer(8 * threads)),
    /** Σ w² and Σ δ², by thread and computed weight. */
    squares: new Float64Array(new SharedArrayBuffer(16 * weights * threads)),
  }
}

export function stopAll({ control }: SharedState): void {
  Atomics.store(control, STOP, 1)
}

/** Files of literal bytes alone have no chunks, and are finished. */
export function areFinished({ files, shared: { done } }: ChunkJob): boolean[] {
  return files.map(({ segments }, i) => {
    return Atomics.load(done, i) === segments.reduce((sum, segment) => sum + chunksOf(segment).count, 0)
  })
}

export class ChunkLoop {
  readonly #merger: ChunkMerger
  readonly #places
  readonly #weights: ReadonlyMap<WeightPlan, number>
  #total = 0
  #at = 0

  constructor(
    private readonly job: ChunkJob,
    private readonly thread: number,
  ) {
    this.#merger = new ChunkMerger(job.sources.map(sourceOf), job.isReproducible)
    this.#places = job.files.flatMap(({ segments }, file) =>
      segments.map((segment) => {
        const [chunks, firstChunk] = [chunksOf(segment), this.#total]
        this.#total += chunks.count
        return { file, chunks, firstChunk }
      }),
    )
    this.#weights = new Map(computedWeights(job.files).map((weight, i) => [weight, i]))
  }

  /** Works on one chunk. Returns true if there may be more. */
  async step(): Promise<boolean> {
    const { shared } = this.job
    if (Atomics.load(shared.control, STOP) !== 0) return false
    const number = Atomics.add(shared.control, NEXT, 1)
    if (number >= this.#total) return false
    const place = this.#find(number)
    const chunk = place.chunks.at(number - place.firstChunk)
    const { bytes, changes } = await this.#merger.merge(chunk)
    for (const { weight, baseSquares, deltaSquares } of changes) {
      const at = 2 * (this.thread * this.#weights.size + this.#weights.get(weight)!)
      shared.squares[at] += baseSquares
      shared.squares[at + 1] += deltaSquares
    }
    writeFully(this.job.outputs[place.file], bytes, chunk.offset)
    shared.written[this.thread] += bytes.byteLength
    // Orders the plain stores above for whoever reads the count.
    Atomics.add(shared.done, place.file, 1)
    return true
  }

  /** Chunks come in order, so that the place is the last one or a little further. */
  #find(number: number) {
    const places = this.#places
    while (this.#at + 1 < places.length && places[this.#at + 1].firstChunk <= number) this.#at++
    return places[this.#at]
  }
}

export function changesOf({ files, shared: { squares }, threads }: ChunkJob): ChangeSums {
  const sums = new ChangeSums()
  const weights = computedWeights(files)
  for (const [i, weight] of weights.entries()) {
    for (let thread = 0; thread < threads; thread++) {
      const at = 2 * (thread * weights.length + i)
      sums.add({ weight, baseSquares: squares[at], deltaSquares: squares[at + 1] })
    }
  }
  return sums
}

function sourceOf(readable: Readable): ChunkSource {
  if ('bytes' in readable) return { read: (offset, byteLength) => readable.bytes.subarray(offset, offset + byteLength) }
  const { name, fd } = readable
  const readInto = (offset: number, memory: Uint8Array) => {
    withFileErrors(name, 'cannot be read', () => {
      for (let done = 0; done < memory.byteLength; ) {
        const count = readSync(fd, memory, done, memory.byteLength - done, offset + done)
        if (count === 0) throw new FileError({ where: name, what: 'became shorter while it was being read' })
        done += count
      }
    })
  }
  return { readInto }
}

export function writeFully({ name, fd }: OpenFile, bytes: Uint8Array, offset: number): void {
  withFileErrors(name, 'cannot be written', () => {
    for (let done = 0; done < bytes.byteLength; ) {
      done += writeSync(fd, bytes, done, bytes.byteLength - done, offset + done)
    }
  })
}

export function stampOf(file: Readable): string {
  if ('bytes' in file) return ''
  const { size, mtimeNs } = withFileErrors(file.name, 'cannot be read', () => fstatSync(file.fd, { bigint: true }))
  return `${size} ${mtimeNs}`
}
