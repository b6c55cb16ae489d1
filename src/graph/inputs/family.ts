// THE table of the families of inputs that graphs have. To add one, add an entry: nothing else names families.

import type { Feeds } from '../../runtime/runtime.js'
import type { Graph } from '../view/graph.js'
import { completeEncoderDecoderFeeds, HIDDEN_STATES, OF_DECODER } from './encoder-decoder.js'
import { completePixelFeeds, PIXELS } from './images.js'
import { completeTokenFeeds, VECTORS } from './tokens.js'

/** Graphs with inputs of the same meaning. */
export interface InputFamily {
  readonly name: string
  /** True for a graph with inputs of these names. */
  has(inputs: ReadonlySet<string>): boolean
  readonly reads: 'tokens' | 'vectors' | 'pictures'
  /** A graph that reads whole texts, and continues none. */
  readonly isEncoder?: boolean
  /** A decoder that writes behind an encoder, in a graph of its own or together with it. */
  readonly behindEncoder?: 'alone' | 'together'
  /**
   * Adds the feeds that the caller leaves out: masks of ones, positions, token types of 0, empty caches. Default: none.
   *
   * @throws UnsupportedError when a cache that is left out has an unknown layout
   */
  readonly complete?: (graph: Graph, feeds: Feeds) => Feeds
}

/** First match first. */
export const FAMILIES: readonly InputFamily[] = [
  {
    name: 'encoder-decoder',
    has: (inputs) => inputs.has(HIDDEN_STATES),
    reads: 'tokens',
    behindEncoder: 'alone',
    complete: completeEncoderDecoderFeeds,
  },
  {
    name: 'joined',
    has: (inputs) => inputs.has(`${OF_DECODER}input_ids`),
    reads: 'tokens',
    behindEncoder: 'together',
  },
  {
    name: 'pixels',
    has: (inputs) => inputs.has(PIXELS),
    reads: 'pictures',
    complete: completePixelFeeds,
  },
  {
    name: 'tokens',
    has: (inputs) => inputs.has('input_ids') && (inputs.has('position_ids') || [...inputs].some(isPast)),
    reads: 'tokens',
    complete: completeTokenFeeds,
  },
  {
    name: 'encoder',
    has: (inputs) => inputs.has('input_ids'),
    reads: 'tokens',
    isEncoder: true,
    complete: completeTokenFeeds,
  },
  {
    name: 'vectors',
    has: (inputs) => inputs.has(VECTORS),
    reads: 'vectors',
    complete: completeTokenFeeds,
  },
]

/** The family of a graph's inputs; undefined for others, such as an embedding's or an audio model's. */
export function inputFamily({ inputs }: Pick<Graph, 'inputs'>): InputFamily | undefined {
  const names = new Set(inputs.map(({ name }) => name))
  return FAMILIES.find((family) => family.has(names))
}

/** Feeds with what the caller leaves out and the family tells. Inputs of unknown meaning are left to the caller. */
export function completeFeeds(graph: Graph, feeds: Feeds): Feeds {
  return inputFamily(graph)?.complete?.(graph, feeds) ?? feeds
}

/** True if a graph reads pictures. */
export function takesImages(graph: Pick<Graph, 'inputs'>): boolean {
  return inputFamily(graph)?.reads === 'pictures'
}

function isPast(name: string): boolean {
  return name.startsWith('past')
}
