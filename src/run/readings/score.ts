// Reads a text, and tells how likely each of its tokens is.

import { checkArgument, checkOptions } from '../../core/base/options.js'
import { logitsName } from '../../model/match/linears.js'
import { requireTokenizer } from '../../model/model-folder.js'
import { floatsOf } from '../../onnx/runtime/runtime.js'
import { readGraph } from '../../onnx/view/graph.js'
import { SCORE_OPTIONS } from '../gen/options.js'
import type { TextSession } from '../generate/generate.js'
import { scoreTokens } from '../generate/next-token.js'
import { PROMPT } from '../generate/prompts.js'
import type { ReadToken, ScoreOptions, TokenPrompt } from '../session.js'

export async function score(
  session: TextSession,
  text: string | TokenPrompt,
  options: ScoreOptions = {},
): Promise<ReadToken[]> {
  checkArgument(text, PROMPT, 'text')
  checkOptions(options, 'score', SCORE_OPTIONS)
  const { adapter, logprobs = 0 } = options
  const tokenizer = requireTokenizer(session.model)
  const ids = typeof text === 'string' ? tokenizer.encode(text) : text.ids
  const input_ids = { type: 'int64', data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] } as const
  const output = logitsName(readGraph(session.model.onnx))
  const { [output]: logits } = await session.run({ input_ids }, { adapter, outputNames: [output] })
  const [, sequence, vocabulary] = logits.dims
  const values = floatsOf(logits)
  const named = (id: number) => ({ id, text: tokenizer.decode([id], { specialTokens: true }) })
  return ids.map((id, i) => {
    if (i === 0) return { ...named(id), logprob: null, top: [] }
    const start = (sequence - ids.length + i - 1) * vocabulary
    const { chosen, top } = scoreTokens(values.subarray(start, start + vocabulary), id, logprobs)
    return {
      ...named(id),
      logprob: chosen.logprob,
      top: top.map((one) => ({ ...named(one.id), logprob: one.logprob })),
    }
  })
}
