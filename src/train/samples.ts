// Answers while the model learns. Nothing else is loaded for them, so each token reads its whole text again.

import { roundUp } from '../model/inputs/token-batch.js'
import { requireTokenizer } from '../model/model-folder.js'
import type { Learner } from './learner.js'
import type { Run } from './run.js'

const LENGTH = 40

/** A function that writes the answers to the prompts of `sample`. It returns undefined if the signal stops it. */
export function samplerOf(prompts: readonly string[], { task, model, encoding, records, options }: Run) {
  const writing = task.writing!
  const { contextLength: limit = Number.POSITIVE_INFINITY } = model
  const starts = prompts.map((prompt) => writing.prompt(prompt, encoding, records.chatTemplate !== undefined))
  return async (learner: Learner) => {
    const texts = starts.map((ids) => [...ids])
    let open = texts.filter(({ length }) => length < limit)
    for (let count = 0; count < LENGTH && open.length > 0; count++) {
      if (options.signal?.aborted) return undefined
      const length = Math.min(limit, roundUp(Math.max(...open.map((ids) => ids.length + 1))))
      const { outputs } = await learner.forward({ examples: open.map(writing.next), length })
      const tokens = writing.chosen(outputs)
      const going = open.filter((_, i) => !model.eosTokenIds.includes(tokens[i]))
      for (const [i, ids] of open.entries()) if (going.includes(ids)) ids.push(tokens[i])
      open = going.filter(({ length }) => length < limit)
    }
    const tokenizer = requireTokenizer(model)
    return texts.map((ids, i) => ({ prompt: prompts[i], text: tokenizer.decode(ids.slice(starts[i].length)) }))
  }
}
