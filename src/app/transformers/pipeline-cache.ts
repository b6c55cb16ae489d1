// The key-value cache of texts that a pipeline writes. transformers.js keeps the cache outputs of a step and feeds them
// with the next step. A step adds only a few rows, which go into arrays with room for more; transformers.js gets
// tensors without data that stand for the arrays. Reading the data of such a tensor makes a copy.

import type { NewRows } from '../../model/fuse/new-rows.js'
import type { Feeds, RuntimeTensor } from '../../onnx/runtime/runtime.js'
import { GrowingCache } from '../../run/generate/growing-cache.js'

/** The part of a cache for which a tensor without data stands. */
interface Share {
  readonly cache: GrowingCache
  readonly part: number
  readonly length: number
}

/** ONNX Runtime's tensor class, by which transformers.js recognizes tensors. */
declare class OrtTensor {
  constructor(type: 'float32', data: Float32Array, dims: readonly number[])
  dims: readonly number[]
  size: number
  get data(): RuntimeTensor['data']
  get location(): string
}
type TensorClass = typeof OrtTensor

export interface GrowingRun {
  readonly feeds: Feeds
  /** Adds the new rows of a run to the cache, and the tensors that stand for the cache to `outputs`. */
  take(rows: RuntimeTensor, outputs: Record<string, RuntimeTensor>): void
  end(): void
}

export class PipelineCache {
  readonly #running = new WeakSet<GrowingCache>()
  #classes: { readonly ort: TensorClass; readonly lazy: ReturnType<typeof lazyClass> } | undefined

  /** Begins a run. Only one run at a time can add to a cache in place; runs at the same time get copies. */
  begin(feeds: Feeds, newRows: NewRows): GrowingRun | undefined {
    const { parts, ids, mask } = newRows
    const pasts = parts.map(({ past }) => feeds[past])
    const [batch, sequence] = feeds[ids]?.dims ?? []
    // ONNX Runtime takes the room of a growing cache for earlier tokens, and refuses several prompts after such.
    if (batch > 1 && sequence > 1) return undefined
    const length = pasts[0]?.dims[2]
    const isWhole = parts.every(({ heads, size }, i) => isPart(pasts[i], [batch, heads, length, size]))
    // The mask must tell how many tokens the cache has, because its arrays are longer.
    const isTold = String(feeds[mask]?.dims) === String([batch, length + sequence])
    if (!isWhole || !isTold) return undefined
    const cache = this.#newestOf(pasts, length) ?? cacheOf(newRows, { batch, length, feeds })
    this.#running.add(cache)
    return {
      feeds: cache.feeds,
      take: (rows, outputs) => {
        cache.add(rows)
        const Tensor = this.#lazyTensor(rows.constructor as unknown as TensorClass)
        parts.forEach(({ present, heads, size }, part) => {
          const dims = [batch, heads, cache.length, size]
          const tensor: unknown = new Tensor(dims, { cache, part, length: cache.length })
          outputs[present] = tensor as RuntimeTensor
        })
      },
      end: () => void this.#running.delete(cache),
    }
  }

  /** Returns the cache for which these tensors stand, if they hold its newest tokens and no other run adds to it. */
  #newestOf(pasts: readonly RuntimeTensor[], length: number): GrowingCache | undefined {
    const lazy = this.#classes?.lazy
    const cache = lazy?.shareOf(pasts[0])?.cache
    if (cache === undefined || cache.length !== length || this.#running.has(cache)) return undefined
    const isNewest = pasts.every((tensor, i) => {
      const share = lazy?.shareOf(tensor)
      return share?.cache === cache && share.part === i && share.length === length
    })
    return isNewest ? cache : undefined
  }

  #lazyTensor(ortClass: TensorClass) {
    if (this.#classes?.ort !== ortClass) this.#classes = { ort: ortClass, lazy: lazyClass(ortClass) }
    return this.#classes.lazy
  }
}

function cacheOf(newRows: NewRows, { batch, length, feeds }: { batch: number; length: number; feeds: Feeds }) {
  const cache = new GrowingCache(newRows, batch)
  cache.become([{ cache: { feeds }, rows: [...Array(batch).keys()], from: 0, count: length, to: 0 }], length)
  return cache
}

function isPart(tensor: RuntimeTensor | undefined, dims: readonly (number | undefined)[]): boolean {
  if (tensor === undefined || tensor.type !== 'float32') return false
  const { location } = tensor as { location?: string }
  return location === 'cpu' && tensor.dims.length === dims.length && dims.every((dim, i) => dim === tensor.dims[i])
}

const NOTHING = new Float32Array(0)

/** Makes a class of tensors without data. Each call makes a new class, which recognizes only its own tensors. */
function lazyClass(Tensor: TensorClass) {
  return class LazyTensor extends Tensor {
    #share: Share | undefined
    #data: Float32Array | undefined

    constructor(dims: readonly number[], share: Share) {
      super('float32', NOTHING, [0])
      this.dims = dims
      this.size = dims.reduce((product, dim) => product * dim, 1)
      this.#share = share
    }

    /** Returns undefined if the data was read: the reader may have changed it, so it may differ from the cache. */
    static shareOf(tensor: object): Share | undefined {
      return #share in tensor ? tensor.#share : undefined
    }

    override get data(): RuntimeTensor['data'] {
      // If the tensor is disposed, `super.data` throws.
      if (this.location !== 'cpu') return super.data
      if (this.#share !== undefined) {
        const { cache, part, length } = this.#share
        this.#data = cache.read(part, length)
        this.#share = undefined
      }
      return this.#data!
    }
  }
}
