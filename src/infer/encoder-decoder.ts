// What the decoder of an encoder-decoder needs besides its own tokens.

import { HIDDEN_STATES, STATES_MASK, startToken } from '../graph/inputs/encoder-decoder.js'
import { inputFamily } from '../graph/inputs/family.js'
import type { Model } from '../graph/model-folder.js'
import type { Graph } from '../graph/view/graph.js'

/** What a decoder needs besides its own tokens. */
export interface EncodedSource {
  /** What each text begins with. */
  readonly startIds: readonly number[]
  /** The decoder's inputs that come from the encoder. */
  readonly inputs: ReadonlySet<string>
}

/**
 * What the decoder of an encoder-decoder needs; undefined for a graph that continues texts by itself.
 *
 * @throws FormatError when no file names the decoder's first token
 */
export function encodedSource(model: Model, graph: Graph): EncodedSource | undefined {
  if (inputFamily(graph) !== 'encoder-decoder') return undefined
  const { generationConfig, config } = model
  const forced = [generationConfig.forced_bos_token_id, config.forced_bos_token_id].find(Number.isSafeInteger)
  const startIds = [startToken(model), ...(forced === undefined ? [] : [forced as number])]
  const inputs = graph.inputs.map(({ name }) => name).filter((name) => name === HIDDEN_STATES || name === STATES_MASK)
  return { startIds, inputs: new Set(inputs) }
}
