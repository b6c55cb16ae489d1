// The inner loop of a merge in Node: takes chunk after chunk from a counter that all threads share, reads straight into the
// kernel's memory, computes, and writes from there. Measured: copying files first and patching them is slower than this.

import { fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs'
import { FileError } from '../../base/errors.js'
import { fileError } from '../../io/node/errors.js'
import { createMergeKernel } from '../../kernels/wasm-merge.js'
import { ChunkMerger } from '../chunks/chunk-merger.js'
import { CHUNK_BYTES, type Chunk, Chunks, type OutputShard, type Segment } from '../plan/layout.js'

/** A file by its descriptor, which threads share, or bytes that they share. */
export type Readable =
  | { readonly name: string; readonly fd: number }
  | { readonly name: string; readonly bytes: Uint8Array }

/** What threads work on: plain data and shared memory. */
export interface ChunkJob {
  readonly shards: readonly OutputShard[]
  readonly outputs: readonly { readonly name: string; readonly fd: number }[]
  readonly bases: readonly Readable[]
  readonly factors: readonly Readable[]
  readonly threads: number
  /** Without fused multiply-adds. */
  readonly isReproducible: boolean
  readonly shared: SharedState
}

export interface SharedState {
  /** [next chunk, 1 when all should stop] */
  readonly control: Int32Array
  /** How many chunks of each shard are written. */
  readonly done: Int32Array
  /** By thread: bytes written. */
  readonly written: Float64Array
  /** By thread and segment: Σ w², Σ δ². */
  readonly squares: Float64Array
}

const NEXT = 0
const STOP = 1

export function createShared(shards: readonly OutputShard[], threads: number): SharedState {
  const segments = shards.reduce((sum, shard) => sum + shard.segments.length, 0)
  return {
    control: new Int32Array(new SharedArrayBuffer(8)),
    done: new Int32Array(new SharedArrayBuffer(4 * shards.length)),
    written: new Float64Array(new SharedArrayBuffer(8 * threads)),
    squares: new Float64Array(new SharedArrayBuffer(16 * segments * threads)),
  }
}

export function stopAll({ control }: SharedState): void {
  Atomics.store(control, STOP, 1)
}

function shardChunks({ segments }: OutputShard): number {
  return segments.reduce((sum, segment) => sum + new Chunks(segment).count, 0)
}

/** Indices of the shards that are written in part. */
export function begunShards({ shards, shared: { done } }: ChunkJob): number[] {
  return [...shards.keys()].filter((i) => {
    const count = Atomics.load(done, i)
    return count > 0 && count < shardChunks(shards[i])
  })
}

interface Place {
  shard: number
  segment: Segment
  chunks: Chunks
  /** Among all segments. */
  index: number
  firstChunk: number
}

export class ChunkLoop {
  readonly #job: ChunkJob
  readonly #thread: number
  readonly #merger: ChunkMerger
  readonly #places: readonly Place[]
  readonly #shardChunks: readonly number[]
  readonly #total: number
  #staging = new Uint8Array()
  #at = 0

  constructor(job: ChunkJob, thread: number) {
    this.#job = job
    this.#thread = thread
    this.#merger = new ChunkMerger(createMergeKernel(CHUNK_BYTES, job.isReproducible))
    const places: Place[] = []
    let firstChunk = 0
    job.shards.forEach((output, shard) => {
      for (const segment of output.segments) {
        const chunks = new Chunks(segment)
        places.push({ shard, segment, chunks, index: places.length, firstChunk })
        firstChunk += chunks.count
      }
    })
    this.#places = places
    this.#total = firstChunk
    this.#shardChunks = job.shards.map(shardChunks)
  }

  /**
   * Works on one chunk.
   *
   * @param finished called when it was the last one of its shard
   * @returns whether there may be more
   */
  step(finished: (shard: number) => void): boolean {
    const { shared } = this.#job
    if (Atomics.load(shared.control, STOP) !== 0) return false
    const number = Atomics.add(shared.control, NEXT, 1)
    if (number >= this.#total) return false
    const place = this.#find(number)
    const chunk = place.chunks.at(number - place.firstChunk)
    const bytes = this.#compute(chunk, place)
    const output = this.#job.outputs[place.shard]
    writeFully(output, bytes, chunk.offset)
    shared.written[this.#thread] += bytes.byteLength
    // Orders the plain stores above for whoever reads the count.
    const done = Atomics.add(shared.done, place.shard, 1) + 1
    if (done === this.#shardChunks[place.shard]) finished(place.shard)
    return true
  }

  #compute(chunk: Chunk, { segment, index }: Place): Uint8Array {
    const { bases, factors, shared } = this.#job
    const base = bases[segment.shard]
    for (const range of this.#merger.begin(chunk)) {
      const room = this.#stage(range.byteLength)
      readFully(factors[range.factor.source], room, range.offset)
      this.#merger.take(range, room)
    }
    const input = this.#merger.input(chunk)
    readFully(base, input, chunk.baseOffset)
    const result = this.#merger.merge(chunk)
    const at = 2 * (this.#thread * this.#places.length + index)
    shared.squares[at] += result.baseSquares
    shared.squares[at + 1] += result.deltaSquares
    return result.bytes
  }

  /** Room for a part of a factor, used again for the next: fresh memory costs more than reading into it. */
  #stage(byteLength: number): Uint8Array {
    if (this.#staging.byteLength < byteLength) this.#staging = new Uint8Array(byteLength)
    return this.#staging.subarray(0, byteLength)
  }

  /** Chunks come in order, so that the place is the last one or a little further. */
  #find(number: number): Place {
    const places = this.#places
    while (this.#at + 1 < places.length && places[this.#at + 1].firstChunk <= number) this.#at++
    return places[this.#at]
  }
}

/** ‖ΔW‖ / ‖W‖ of each changed tensor of finished shards, by name. */
export function changesOf({ shards, shared: { squares }, threads }: ChunkJob): Map<string, number> {
  const sums = new Map<string, [base: number, delta: number]>()
  const segments = shards.flatMap((shard) => shard.segments)
  for (const [i, { weight }] of segments.entries()) {
    if (weight === undefined || weight.layers.length === 0) continue
    const sum = sums.get(weight.name) ?? [0, 0]
    for (let thread = 0; thread < threads; thread++) {
      const at = 2 * (thread * segments.length + i)
      sum[0] += squares[at]
      sum[1] += squares[at + 1]
    }
    sums.set(weight.name, sum)
  }
  return new Map([...sums].map(([name, [base, delta]]) => [name, delta === 0 ? 0 : Math.sqrt(delta / base)]))
}

function readFully(source: Readable, target: Uint8Array, offset: number): void {
  if ('bytes' in source) {
    target.set(source.bytes.subarray(offset, offset + target.byteLength))
    return
  }
  try {
    for (let done = 0; done < target.byteLength; ) {
      const count = readSync(source.fd, target, done, target.byteLength - done, offset + done)
      if (count === 0) throw new FileError({ where: source.name, what: 'became shorter while it was being read' })
      done += count
    }
  } catch (error) {
    throw fileError(source.name, 'cannot be read', error)
  }
}

export function writeFully({ name, fd }: { name: string; fd: number }, bytes: Uint8Array, offset: number): void {
  try {
    for (let done = 0; done < bytes.byteLength; ) {
      done += writeSync(fd, bytes, done, bytes.byteLength - done, offset + done)
    }
  } catch (error) {
    throw fileError(name, 'cannot be written', error)
  }
}

/** @throws FileError */
export function openForReading(file: string): number {
  try {
    return openSync(file, 'r')
  } catch (error) {
    throw fileError(file, 'cannot be read', error)
  }
}

/** Another one, once somebody has written to the file. */
export function stampOf(file: Readable): string {
  if ('bytes' in file) return ''
  const { size, mtimeNs } = fstatSync(file.fd, { bigint: true })
  return `${size} ${mtimeNs}`
}

/** What goes anyway need not reach the disk before. */
export function discard(fd: number): void {
  try {
    ftruncateSync(fd)
  } catch {
    // It takes longer then, but goes all the same.
  }
}
