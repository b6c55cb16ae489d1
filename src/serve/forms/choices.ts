// Answers with choices, in OpenAI's form: chat completions and completions, whole or in chunks.

import type { GenerateResult, ReadToken, TokenScore } from '../../api/index.js'
import type { AnswerPart, AnswerReader } from '../../api/parts/entry.js'
import { seconds } from '../adapters.js'
import type { AnswerWriter, Asked, TextRequest } from './form.js'

export interface ChoiceForm {
  readonly object: string
  readonly chunkObject: string
  readonly idPrefix: string
  choice(index: number, result: GenerateResult, reader: AnswerReader, echo: Echo | undefined): object
  /** The choices of a chunk: what is new in a growing answer, with the scores of its tokens. */
  pieces(index: number, parts: readonly AnswerPart[], scores: readonly TokenScore[]): object[]
  end(index: number, result: GenerateResult, reader: AnswerReader): object
  start?(index: number): object
}

/** A prompt as text, with a score for each token. */
export interface Echo {
  readonly text: string
  readonly scores: readonly (ReadToken | TokenScore)[]
}

/** @param echoes gives the prompts that come before the texts. Default: none */
export function choicesWriter(
  form: ChoiceForm,
  { includesUsage }: TextRequest,
  { model, fields, readers, send }: Asked,
  echoes?: () => Promise<Echo[]>,
): AnswerWriter {
  const created = seconds()
  const id = `${form.idPrefix}${crypto.randomUUID()}`
  const tier = fields.service_tier !== undefined && { service_tier: 'default' }
  const chunk = (choices: object[], usage: object | null = null) =>
    send?.({ id, object: form.chunkObject, created, model, ...tier, choices, ...(includesUsage && { usage }) })
  const begun = new Set<number>()
  return {
    add(index, parts, scores) {
      if (send === undefined) return
      if (!begun.has(index) && form.start !== undefined) chunk([form.start(index)])
      begun.add(index)
      for (const choice of form.pieces(index, parts, scores)) chunk([choice])
    },
    end(index, result) {
      if (send !== undefined) chunk([form.end(index, result, readers[index])])
    },
    async body(results, { promptTokens, cachedTokens, newTokens }) {
      const echoed = await echoes?.()
      const usage = {
        prompt_tokens: promptTokens,
        completion_tokens: newTokens,
        total_tokens: promptTokens + newTokens,
        prompt_tokens_details: { cached_tokens: cachedTokens },
      }
      if (includesUsage) chunk([], usage)
      const choices = results.map((result, i) => form.choice(i, result, readers[i], echoed?.[i]))
      return { id, object: form.object, created, model, ...tier, choices, usage }
    },
  }
}
