// The encoder reads prompts once, and the decoder writes from its own first token on, with the encoder's hidden states
// beside it.

import { DataError } from '../../base/errors.js'
import { HIDDEN_STATES, STATES_MASK } from '../../graph/inputs/family.js'
import { encoderInputs } from '../../graph/inputs/tokens.js'
import { type Model, requireTokenizer } from '../../graph/model-folder.js'
import { readGraph } from '../../graph/view/graph.js'
import type { Feeds, RuntimeTensor } from '../../runtime/runtime.js'
import { tokenBatch } from '../../tasks/token-batch.js'
import { checkVocabulary } from '../../text/tokenizer.js'
import type { RunGraph } from '../graphs.js'
import type { Prompt } from '../session.js'
import type { EncodedPrompt } from './messages.js'
import type { EncodedSource } from './text-graph.js'

/** The encoder takes texts with what ends them. */
export function encodeSource(model: Model, prompt: Prompt, where: string): EncodedPrompt {
  const { contextLength = Number.POSITIVE_INFINITY, vocabularySize, name } = model
  if (typeof prompt !== 'string' && !('ids' in prompt)) {
    throw new DataError({ where, what: 'an encoder-decoder takes no chat', expected: 'text', got: 'messages' })
  }
  const tokenizer = requireTokenizer(model)
  const ids = typeof prompt === 'string' ? tokenizer.encode(prompt) : prompt.ids
  if (ids.length === 0 || ids.length > contextLength) {
    throw new DataError({
      where,
      what: ids.length === 0 ? 'it has no tokens, and the tokenizer adds none' : `longer than the context of ${name}`,
      expected: ids.length === 0 ? 'at least one character' : `at most ${contextLength} tokens`,
      got: String(ids.length),
    })
  }
  checkVocabulary(ids, { tokenizer, vocabularySize })
  return { ids, endIds: [], stops: [] }
}

export async function readSource(
  model: Model,
  { inputs }: EncodedSource,
  prompts: readonly EncodedPrompt[],
  run: (feeds: Feeds) => ReturnType<RunGraph>,
): Promise<Feeds> {
  const ids = prompts.map((prompt) => prompt.ids)
  const tokens = tokenBatch(ids, Math.max(...ids.map(({ length }) => length)), model.padTokenId)
  const { batch, sequence, attentionMask } = tokens
  const encoder = await model.openGraph('encoder')
  const feeds = encoderInputs(readGraph(encoder)).feeds(tokens)
  const outputs = await run(feeds)
  const mask: RuntimeTensor = {
    type: 'int64',
    data: BigInt64Array.from(attentionMask as Int32Array, BigInt),
    dims: [batch, sequence],
  }
  const states = outputs.last_hidden_state ?? Object.values(outputs)[0]
  const all: Feeds = { [HIDDEN_STATES]: states, [STATES_MASK]: mask }
  return Object.fromEntries(Object.entries(all).filter(([name]) => inputs.has(name)))
}
