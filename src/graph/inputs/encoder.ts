// Inputs of models that read whole texts: tokens, their mask, which text of a pair each is of, and in decoders an empty cache.

import { UnsupportedError } from '../../base/errors.js'
import type { Feeds } from '../../runtime/runtime.js'
import type { Graph } from '../view/graph.js'
import { cacheEntry, emptyTensor, isCacheInput } from './cache.js'
import { roleFeeds, splitInputs, type TokenBatch } from './roles.js'

export interface EncoderInputs {
  /** Feeds for all of the graph's inputs. */
  feeds(tokens: TokenBatch): Feeds
}

/**
 * The roles of a graph's inputs.
 *
 * @throws UnsupportedError naming the inputs whose meaning is not known, a cache of unknown layout, or a graph without input_ids
 */
export function encoderInputs(graph: Graph): EncoderInputs {
  const { roles, others: all } = splitInputs(graph)
  const cache = all.filter(isCacheInput).map((input) => cacheEntry(graph, input))
  const others = all.filter((input) => !isCacheInput(input))
  if (others.length > 0 || !roles.some(({ role }) => role === 'inputIds')) {
    const unknown = others.map(({ name }) => name).join(', ')
    throw new UnsupportedError({
      where: 'ONNX model',
      what: others.length > 0 ? `inputs that no encoder of texts has: ${unknown}` : 'no input named input_ids',
      expected: 'an encoder: input_ids, attention_mask, token_type_ids',
      got: `inputs ${graph.inputs.map(({ name }) => name).join(', ')}`,
    })
  }
  const emptyCache = (batch: number) =>
    Object.fromEntries(cache.map((entry) => [entry.past, emptyTensor(entry, batch)]))
  return { feeds: (tokens) => ({ ...roleFeeds(roles, tokens), ...emptyCache(tokens.batch) }) }
}
