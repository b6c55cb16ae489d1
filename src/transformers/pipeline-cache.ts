// The key-value cache of texts that a pipeline writes. transformers.js holds what a step gives out as the cache, and
// feeds it again with the next step. A step adds only a few rows: they go into arrays with room for more, and what is
// handed out are tensors without data. Whoever reads such a tensor gets a copy.

import type { NewRows } from '../graph/fuse/new-rows.js'
import { GrowingCache } from '../infer/generate/growing-cache.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'

/** The part of a cache that a tensor without data stands for. */
interface Share {
  readonly cache: GrowingCache
  readonly part: number
  readonly length: number
}

/** ONNX Runtime's own class, by which transformers.js knows tensors. */
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
  /** Takes the rows that the run gave, and adds the outputs of the cache to the others, by name. */
  take(rows: RuntimeTensor, outputs: Record<string, RuntimeTensor>): void
  end(): void
}

export class PipelineCache {
  readonly #running = new WeakSet<GrowingCache>()
  #classes: { readonly own: TensorClass; readonly lazy: ReturnType<typeof lazyClass> } | undefined

  /** Only one run at a time goes on with the newest tokens of a cache: others get copies. */
  begin(feeds: Feeds, newRows: NewRows): GrowingRun | undefined {
    const { parts, ids, mask } = newRows
    const pasts = parts.map(({ past }) => feeds[past])
    const [batch, sequence] = feeds[ids]?.dims ?? []
    const length = pasts[0]?.dims[2]
    const isWhole = parts.every(({ heads, size }, i) => isPart(pasts[i], [batch, heads, length, size]))
    // The graph takes the number of tokens in the cache from the mask.
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

  /** The cache whose newest tokens these tensors stand for, unless another run goes on with them. */
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

  #lazyTensor(own: TensorClass) {
    if (this.#classes?.own !== own) this.#classes = { own, lazy: lazyClass(own) }
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

/** Each call makes a class of its own, which knows its own tensors alone. */
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

    /** Undefined once the data is out: its reader may change it, so that the cache no longer has the same. */
    static shareOf(tensor: object): Share | undefined {
      return #share in tensor ? tensor.#share : undefined
    }

    override get data(): RuntimeTensor['data'] {
      // A tensor that is disposed says so.
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
