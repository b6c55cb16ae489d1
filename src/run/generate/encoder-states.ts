// Runs the encoder once for the sources of texts, before the decoder begins. Its states are fed to each decoder step.

import { HIDDEN_STATES, STATES_MASK } from '../../model/inputs/family.js'
import { roleFeeds } from '../../model/inputs/roles.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import { feedsOfRows } from '../adapters/row-factors.js'
import type { GraphEngine } from '../graph-engine.js'
import type { RunningText } from './running-text.js'
import type { EncoderForm } from './text-form.js'

export async function readSources(
  { roles, padTokenId, states }: EncoderForm,
  encoder: GraphEngine,
  texts: readonly RunningText[],
): Promise<Feeds> {
  const sources = texts.map(({ request }) => request.sourceIds!)
  const [batch, sequence] = [sources.length, Math.max(...sources.map(({ length }) => length))]
  const inputIds = new Int32Array(batch * sequence).fill(padTokenId)
  const attentionMask = new Int32Array(batch * sequence)
  for (const [row, ids] of sources.entries()) {
    inputIds.set(ids, row * sequence)
    attentionMask.fill(1, row * sequence, row * sequence + ids.length)
  }
  const feeds = roleFeeds(roles, { batch, sequence, inputIds, attentionMask })
  const adapters = feedsOfRows(encoder.factorsOf(texts.map(({ request }) => request.mix)))
  const outputs = await encoder.run(feeds, adapters, undefined)
  const mask = { type: 'int64', data: BigInt64Array.from(attentionMask, BigInt), dims: [batch, sequence] } as const
  const all: Feeds = { [HIDDEN_STATES]: outputs.last_hidden_state ?? Object.values(outputs)[0], [STATES_MASK]: mask }
  return Object.fromEntries(Object.entries(all).filter(([name]) => states.includes(name)))
}
