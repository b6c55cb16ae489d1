// Inputs of encoders over texts: tokens, their mask, and which text of a pair each is of.

import { UnsupportedError } from '../../base/errors.js'
import type { Feeds } from '../../runtime/runtime.js'
import type { Graph } from '../view/graph.js'
import { roleFeeds, splitInputs, type TokenBatch } from './roles.js'

export interface EncoderInputs {
  /** Feeds for all of the graph's inputs. */
  feeds(tokens: TokenBatch): Feeds
}

/**
 * The roles of a graph's inputs.
 *
 * @throws UnsupportedError naming the inputs whose meaning is not known, or a graph without input_ids
 */
export function encoderInputs(graph: Graph): EncoderInputs {
  const { roles, others } = splitInputs(graph)
  if (others.length > 0 || !roles.some(({ role }) => role === 'inputIds')) {
    const unknown = others.map(({ name }) => name).join(', ')
    throw new UnsupportedError({
      where: 'ONNX model',
      what: others.length > 0 ? `inputs that no encoder of texts has: ${unknown}` : 'no input named input_ids',
      expected: 'an encoder: input_ids, attention_mask, token_type_ids',
      got: `inputs ${graph.inputs.map(({ name }) => name).join(', ')}`,
    })
  }
  return { feeds: (tokens) => roleFeeds(roles, tokens) }
}
