// The key-value cache of texts that run together: rows can leave it, and rows of several caches can be joined.

import { type CacheEntry, emptyTensor } from '../../model/inputs/cache.js'
import { type Feeds, freeOnGpu, isOnGpu, type RuntimeTensor } from '../../onnx/runtime/runtime.js'

export interface MovedRows {
  readonly rows: readonly number[]
  /** The first token to copy, the number of tokens, and where the first goes. */
  readonly from: number
  readonly count: number
  readonly to: number
}

export class RowCache {
  /** @param parts for each part of the cache, the axis of its tokens. A part without such an axis is copied whole */
  constructor(
    private readonly parts: Pick<CacheEntry, 'past' | 'axis'>[],
    public feeds: Feeds,
  ) {}

  /**
   * Replaces the rows of this cache by rows of several caches of the same graph, which may include this one.
   *
   * @param allocate returns an array of zeros for a part with tokens. Default: a new array
   */
  become(
    moved: readonly (MovedRows & { readonly cache: Pick<RowCache, 'feeds'> })[],
    length: number,
    allocate?: (size: number) => Float32Array,
  ): void {
    const joined = this.parts.map(({ past, axis }) => {
      const tensors = moved.map(({ cache, ...rows }) => ({ ...rows, tensor: cache.feeds[past] }))
      if (axis !== undefined) return [past, joinRows(tensors, axis, length, allocate)] as const
      const [, count] = tensors[0].tensor.dims
      return [
        past,
        joinRows(
          tensors.map((part) => ({ ...part, from: 0, count, to: 0 })),
          1,
          count,
        ),
      ] as const
    })
    this.feeds = Object.fromEntries(joined)
  }

  /** Feeds more inputs with each step. They move with their rows. */
  hold(feeds: Feeds): void {
    this.parts.push(...Object.keys(feeds).map((past) => ({ past, axis: undefined })))
    this.feeds = { ...this.feeds, ...feeds }
  }

  /** Returns a copy of some tokens of a row. */
  cut(row: number, from: number, count: number): Feeds {
    const copy = new RowCache(this.parts, {})
    copy.become([{ cache: this, rows: [row], from, count, to: 0 }], count)
    return copy.feeds
  }

  get isOnGpu(): boolean {
    return Object.values(this.feeds).some(isOnGpu)
  }

  /** Fetches the cache from the GPU. Call this before rows are cut or moved, which only works in the host's memory. */
  async fetch(toHost: (tensor: RuntimeTensor) => Promise<RuntimeTensor>): Promise<void> {
    for (const [name, tensor] of Object.entries(this.feeds)) {
      if (!isOnGpu(tensor)) continue
      this.feeds[name] = await toHost(tensor)
      freeOnGpu(tensor)
    }
  }

  release(): void {
    freeTensors(Object.values(this.feeds))
  }
}

/** The cache of a graph that returns the whole cache in each step. */
export class PlainCache extends RowCache {
  constructor(
    private readonly entries: readonly CacheEntry[],
    batch: number,
  ) {
    // Keys and values of the encoder keep their length in all steps.
    const parts = entries.map(({ past, axis, isOfEncoder }) => ({ past, axis: isOfEncoder ? undefined : axis }))
    super(parts, Object.fromEntries(entries.map((entry) => [entry.past, emptyTensor(entry, batch)])))
  }

  add(outputs: Readonly<Record<string, RuntimeTensor>>, isFirst: boolean): void {
    for (const { past, present, isOfEncoder } of this.entries) {
      if (isFirst || !isOfEncoder) this.feeds[past] = outputs[present]
    }
  }
}

/** Stacks rows of several tensors, padded with zeros. `axis` is the axis of the tokens, above 0. */
export function joinRows(
  parts: readonly (MovedRows & { readonly tensor: RuntimeTensor })[],
  axis: number,
  length: number,
  allocate?: (size: number) => Float32Array,
): RuntimeTensor {
  const [{ tensor: first }] = parts
  const product = (dims: readonly number[]) => dims.reduce((all, dim) => all * dim, 1)
  const [outer, inner] = [product(first.dims.slice(1, axis)), product(first.dims.slice(axis + 1))]
  const batch = parts.reduce((sum, { rows }) => sum + rows.length, 0)
  const DataArray = first.data.constructor as Float32ArrayConstructor
  const size = batch * outer * length * inner
  const data = allocate?.(size) ?? new DataArray(size)
  let block = 0
  for (const { tensor, rows, from, count, to } of parts) {
    const source = tensor.data as Float32Array
    const sourceLength = tensor.dims[axis]
    for (const row of rows) {
      for (let i = 0; i < outer; i++, block++) {
        const start = ((row * outer + i) * sourceLength + from) * inner
        data.set(source.subarray(start, start + count * inner), (block * length + to) * inner)
      }
    }
  }
  return { type: first.type, data, dims: [batch, ...first.dims.slice(1, axis), length, ...first.dims.slice(axis + 1)] }
}

/** Frees the memory of tensors at once, on the GPU and here. */
export function freeTensors(tensors: readonly RuntimeTensor[]): void {
  const inMemory = tensors.filter((tensor) => !isOnGpu(tensor))
  freeOnGpu(...tensors)
  freeBuffers(inMemory.map(({ data }) => data.buffer))
}

/** Below so many bytes, to free memory at once takes longer than it is worth. */
const FREED_BYTES = 1 << 20

/**
 * Frees memory at once, by sending it to nobody. A worker that waits for its next call collects no garbage, so a cache
 * would stay in memory while a trainer learns. A few small arrays are left to the garbage collector.
 */
export function freeBuffers(buffers: Iterable<ArrayBufferLike>): void {
  const held = [...new Set(buffers)].filter(({ byteLength }) => byteLength > 0)
  if (held.reduce((sum, { byteLength }) => sum + byteLength, 0) < FREED_BYTES) return
  const { port1, port2 } = new MessageChannel()
  port1.postMessage(undefined, held as ArrayBuffer[])
  port1.close()
  port2.close()
}
