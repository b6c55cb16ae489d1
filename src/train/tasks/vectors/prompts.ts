// The prompts of an adapter, as settings of a task that puts them before texts.

import type { LoraAdapter } from '../../../lora/adapter.js'
import type { TrainInput } from '../../options.js'
import type { Task } from '../task.js'

/** An adapter that is trained further keeps the prompts of its texts. */
export function withPrompts(
  { options = {} }: Pick<Task, 'options'>,
  given: TrainInput['taskOptions'],
  adapter: Pick<LoraAdapter, 'prompts'> | undefined,
): TrainInput['taskOptions'] {
  const { query, document } = adapter?.prompts ?? {}
  const kept = {
    ...(query !== undefined && { queryPrompt: query }),
    ...(document !== undefined && { documentPrompt: document }),
  }
  return 'queryPrompt' in options && Object.keys(kept).length > 0 ? { ...kept, ...given } : given
}
