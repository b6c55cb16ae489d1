// Which family of inputs a graph has: tokens that continue a text, or their vectors, an encoder's, pixels, a decoder's behind an encoder, or those of both.

import type { Feeds } from '../../runtime/runtime.js'
import type { Graph } from '../view/graph.js'
import { completeEncoderDecoderFeeds, HIDDEN_STATES, OF_DECODER } from './encoder-decoder.js'
import { completePixelFeeds, PIXELS } from './images.js'
import { completeTokenFeeds, VECTORS } from './tokens.js'

export type InputFamily = 'tokens' | 'vectors' | 'encoder' | 'pixels' | 'encoder-decoder' | 'joined'

/** The family of a graph's inputs; undefined for others, such as an embedding's or an audio model's. */
export function inputFamily(graph: Graph): InputFamily | undefined {
  const names = new Set(graph.inputs.map(({ name }) => name))
  if (names.has(HIDDEN_STATES)) return 'encoder-decoder'
  if (names.has(`${OF_DECODER}input_ids`)) return 'joined'
  if (names.has(PIXELS)) return 'pixels'
  if (!names.has('input_ids')) return names.has(VECTORS) ? 'vectors' : undefined
  const isContinued = [...names].some((name) => /^past/.test(name)) || names.has('position_ids')
  return isContinued ? 'tokens' : 'encoder'
}

/**
 * Feeds with what the caller leaves out and the family tells: masks of ones, positions, token types of 0, empty caches. Inputs of
 * unknown meaning are left to the caller.
 *
 * @throws UnsupportedError when a cache that is left out has an unknown layout
 */
export function completeFeeds(graph: Graph, feeds: Feeds): Feeds {
  switch (inputFamily(graph)) {
    case 'tokens':
    case 'vectors':
    case 'encoder':
      return completeTokenFeeds(graph, feeds)
    case 'pixels':
      return completePixelFeeds(graph, feeds)
    case 'encoder-decoder':
      return completeEncoderDecoderFeeds(graph, feeds)
    case 'joined':
    case undefined:
      return feeds
  }
}
