// The logarithms of the probabilities of a prompt's own tokens, which `echo` with `logprobs` asks for.

import { UnsupportedError } from '../base/errors.js'
import type { AdapterSession } from '../index/session.js'
import type { AdapterChoice } from '../infer/adapters/choice.js'
import { floatsOf } from '../infer/feeds.js'
import { scoreTokens } from '../infer/generate/next-token.js'
import type { Prompt } from '../infer/session.js'

/** A prompt as text, with a score for each token. The first has none. */
export interface PromptScores {
  readonly text: string
  readonly scores: { text: string; logprob: number | null; top: { text: string; logprob: number }[] }[]
}

export async function scorePrompt(
  session: AdapterSession,
  prompt: Prompt,
  adapter: AdapterChoice,
  count: number | undefined,
): Promise<PromptScores> {
  const { tokenizer } = session.model
  if (tokenizer === undefined || (typeof prompt !== 'string' && !('ids' in prompt))) {
    throw new UnsupportedError({ where: 'echo', what: 'works with texts and token ids only' })
  }
  const ids = typeof prompt === 'string' ? tokenizer.encode(prompt) : prompt.ids
  const name = (id: number) => tokenizer.decode([id], { specialTokens: true })
  const text = typeof prompt === 'string' ? prompt : tokenizer.decode([...ids], { specialTokens: true })
  if (count === undefined) return { text, scores: [] }
  const input_ids = { type: 'int64', data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] } as const
  const { logits } = await session.run({ input_ids }, { adapter, outputNames: ['logits'] })
  const [, sequence, vocabulary] = logits.dims
  const values = floatsOf(logits)
  const scores = ids.map((id, i) => {
    if (i === 0) return { text: name(id), logprob: null, top: [] }
    const start = (sequence - ids.length + i - 1) * vocabulary
    const { chosen, top } = scoreTokens(values.subarray(start, start + vocabulary), id, count)
    const named = top.map((one) => ({ text: name(one.id), logprob: one.logprob }))
    return { text: name(id), logprob: chosen.logprob, top: named }
  })
  return { text, scores }
}
