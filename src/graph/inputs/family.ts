// THE table of the families of inputs that graphs have. To add one, add an entry: nothing else names families.

import type { Feeds, RuntimeTensor } from '../../runtime/runtime.js'
import type { Graph } from '../view/graph.js'
import { entryOf } from '../view/operators.js'
import { cacheLayout, emptyTensor, isCacheInput } from './cache.js'
import { FEATURES, HIDDEN_STATES, OF_DECODER, STATES_MASK } from './encoder-decoder.js'
import { PIXELS } from './images.js'
import { ones, roleFeeds, splitInputs, typeOf } from './roles.js'
import { VECTORS } from './tokens.js'

export interface InputFamily {
  readonly name: string
  /** True for a graph with inputs of these names. */
  has(inputs: ReadonlySet<string>): boolean
  readonly reads: 'tokens' | 'vectors' | 'pictures' | 'sounds'
  /** A graph that reads whole texts, and continues none. */
  readonly isEncoder?: boolean
  /** A decoder that writes behind an encoder, in a graph of its own or together with it. */
  readonly behindEncoder?: 'alone' | 'together'
}

/** First match first. */
const FAMILIES: readonly InputFamily[] = [
  { name: 'encoder-decoder', has: (inputs) => inputs.has(HIDDEN_STATES), reads: 'tokens', behindEncoder: 'alone' },
  { name: 'joined', has: (inputs) => inputs.has(`${OF_DECODER}input_ids`), reads: 'tokens', behindEncoder: 'together' },
  { name: 'features', has: (inputs) => inputs.has(FEATURES), reads: 'sounds' },
  { name: 'pixels', has: (inputs) => inputs.has(PIXELS), reads: 'pictures' },
  {
    name: 'tokens',
    has: (inputs) => inputs.has('input_ids') && (inputs.has('position_ids') || [...inputs].some(isPast)),
    reads: 'tokens',
  },
  { name: 'encoder', has: (inputs) => inputs.has('input_ids'), reads: 'tokens', isEncoder: true },
  { name: 'vectors', has: (inputs) => inputs.has(VECTORS), reads: 'vectors' },
]

/** Undefined for others, such as an embedding's. */
export function inputFamily({ inputs }: Pick<Graph, 'inputs'>): InputFamily | undefined {
  const names = new Set(inputs.map(({ name }) => name))
  return FAMILIES.find((family) => family.has(names))
}

function isPast(name: string): boolean {
  return name.startsWith('past')
}

const PIXEL_MASK = 'pixel_mask'

/**
 * Fills in what the caller leaves out: masks of ones, positions that count them, token types of 0, the branch of a
 * merged decoder, and empty caches. Inputs of unknown meaning are left to the caller.
 */
export function completeFeeds(graph: Graph, feeds: Feeds): Feeds {
  const { [VECTORS]: vectors, [HIDDEN_STATES]: states, [PIXELS]: pixels } = feeds
  const ids = entryOf(feeds, 'input_ids')
  const { roles, others } = splitInputs({
    inputs: graph.inputs.filter(({ name }) => entryOf(feeds, name) === undefined),
  })
  const completed: Record<string, RuntimeTensor> = { ...feeds }
  for (const input of others) {
    const type = typeOf(input) === 'bool' ? 'bool' : 'int64'
    if (input.name === STATES_MASK && states !== undefined) completed[input.name] = ones(type, states.dims.slice(0, 2))
    if (input.name !== PIXEL_MASK || pixels?.dims.length !== 4) continue
    completed[input.name] = ones(type, [pixels.dims[0], ...pixels.dims.slice(2)])
  }
  if (ids?.dims.length !== 2 && vectors?.dims.length !== 3) return completed
  const [batch, sequence] = (ids ?? vectors).dims
  const fedCache = graph.inputs.find((input) => isCacheInput(input) && entryOf(feeds, input.name)?.dims.length === 4)
  const past = fedCache === undefined ? 0 : (feeds[fedCache.name].dims.at(-2) ?? 0)
  const inputIds = (ids?.data ?? []) as ArrayLike<bigint>
  const mask = feeds.attention_mask?.data as ArrayLike<bigint> | undefined
  const attentionMask = mask ?? new Uint8Array(batch * (past + sequence)).fill(1)
  const empty = past > 0 ? [] : others.filter(isCacheInput)
  return {
    ...completed,
    ...roleFeeds(roles, { batch, sequence, past, inputIds, attentionMask }),
    ...Object.fromEntries(empty.map((input) => [input.name, emptyTensor(cacheLayout(graph, input), batch)])),
  }
}
