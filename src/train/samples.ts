// Answers while the model learns. Nothing else is loaded for them, so each token reads its whole text again.

import { ConfigError } from '../core/base/errors.js'
import { roundUp } from '../model/inputs/token-batch.js'
import { requireTokenizer } from '../model/model-folder.js'
import type { Learner } from './learner.js'
import type { EncodeContext, Task } from './tasks/task.js'

const LENGTH = 40

/** A function that writes the answers to the prompts of `sample`. It returns undefined if the signal stops it. */
export type Sampler = ReturnType<typeof samplerOf>

export function samplerOf(
  prompts: readonly string[],
  { name, writing }: Task,
  context: EncodeContext,
  isChat: boolean,
) {
  if (writing === undefined) {
    throw new ConfigError({
      where: 'sample',
      what: `the task ${name} writes no texts while it trains`,
      hint: 'The metrics of its evaluations tell what it has learned: give records as `evalData`',
    })
  }
  const { model } = context
  const starts = prompts.map((prompt) => writing.prompt(prompt, context, isChat))
  return async (trainer: Learner, limit: number, signal?: { readonly aborted: boolean }) => {
    const texts = starts.map((ids) => [...ids])
    let open = texts.filter(({ length }) => length < limit)
    for (let count = 0; count < LENGTH && open.length > 0; count++) {
      if (signal?.aborted) return undefined
      const length = Math.min(limit, roundUp(Math.max(...open.map((ids) => ids.length + 1))))
      const { outputs } = await trainer.forward({ examples: open.map(writing.next), length })
      const tokens = writing.chosen(outputs)
      const going = open.filter((_, i) => !model.eosTokenIds.includes(tokens[i]))
      for (const [i, ids] of open.entries()) if (going.includes(ids)) ids.push(tokens[i])
      open = going.filter(({ length }) => length < limit)
    }
    const tokenizer = requireTokenizer(model)
    return texts.map((ids, i) => ({ prompt: prompts[i], text: tokenizer.decode(ids.slice(starts[i].length)) }))
  }
}
