// Inputs of models of texts: tokens, their mask and positions, and a key-value cache if the graph has one.

import { UnsupportedError } from '../../core/base/errors.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Graph } from '../../onnx/view/graph.js'
import { type CacheEntry, cacheEntry, emptyTensor, isCacheInput } from './cache.js'
import { type RoleInput, roleFeeds, splitInputs, type TokenBatch } from './roles.js'

/** The input of a decoder whose embedding is a separate graph: (batch, sequence, features). */
export const VECTORS = 'inputs_embeds'

export interface TokenInputs {
  readonly roles: readonly RoleInput[]
  /** The inputs and outputs of the cache; empty if the model has no cache. */
  readonly cache: readonly CacheEntry[]
  /** The input that takes vectors instead of tokens, if there is one. */
  readonly vectors: readonly string[]
  feeds(tokens: TokenBatch): Feeds
  emptyCache(batch: number): Feeds
}

const DECODER = {
  unknown: 'inputs of unknown meaning',
  expected: 'a causal language model: input_ids, attention_mask, position_ids, past_key_values.*',
}
const ENCODER = {
  unknown: 'inputs that no encoder of texts has',
  expected: 'an encoder: input_ids, attention_mask, token_type_ids',
}

/** Others feed the inputs in `given`. Throws UnsupportedError naming inputs of unknown meaning. */
export function tokenInputs(graph: Graph, given: ReadonlySet<string> = new Set()): TokenInputs {
  return inputsOf(graph, given, DECODER)
}

function inputsOf(graph: Graph, given: ReadonlySet<string>, kind: typeof DECODER): TokenInputs {
  const { roles, others } = splitInputs(graph)
  const cache = others.filter(isCacheInput).map((input) => cacheEntry(graph, input))
  const unknown = others.filter((input) => !isCacheInput(input) && !given.has(input.name)).map(({ name }) => name)
  const vectors = graph.inputs.map(({ name }) => name).filter((name) => name === VECTORS && given.has(name))
  if (unknown.length > 0 || !(vectors.length > 0 || roles.some(({ role }) => role === 'inputIds'))) {
    const isForOthers = kind === DECODER && unknown.includes(VECTORS)
    const what = unknown.length > 0 ? `${kind.unknown}: ${unknown.join(', ')}` : 'no input named input_ids'
    throw new UnsupportedError({
      where: 'ONNX model',
      what: isForOthers ? 'it reads the vectors of tokens, which another graph of the model gives' : what,
      expected: isForOthers ? 'a causal language model that reads input_ids' : kind.expected,
      got: `inputs ${graph.inputs.map(({ name }) => name).join(', ')}`,
      ...(isForOthers && {
        hint: 'Sessions write texts with all of its graphs, and merges take adapters for all of them',
      }),
    })
  }
  return {
    roles,
    cache,
    vectors,
    feeds: (tokens) => roleFeeds(roles, tokens),
    emptyCache: (batch) => Object.fromEntries(cache.map((entry) => [entry.past, emptyTensor(entry, batch)])),
  }
}

export function encoderInputs(graph: Graph): Pick<TokenInputs, 'roles' | 'feeds'> {
  const { roles, feeds, emptyCache } = inputsOf(graph, new Set(), ENCODER)
  return { roles, feeds: (tokens) => ({ ...feeds(tokens), ...emptyCache(tokens.batch) }) }
}
