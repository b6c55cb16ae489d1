// Learning from rewards: the model writes several texts for each prompt, functions judge them, and texts that are
// better than the rest of their group become more probable.

import { ConfigError } from '../../core/base/errors.js'
import { GRPO_OPTIONS } from '../loop/gen/options.js'
import type { GrpoOptions } from '../loop/grpo-loss.js'
import { PROMPTS, type PromptRow } from '../loop/prompt-rows.js'
import { ScoredTokens } from '../loop/token-scores.js'
import type { TeachingTask } from '../run.js'
import { causalLm } from './causal-lm.js'
import type { TaskInputs } from './task.js'

export const grpo: TeachingTask<PromptRow, PromptRow, GrpoOptions> = {
  ...PROMPTS,
  name: 'grpo',
  learns: 'from rewards for its own texts',
  // A reward says less than a target, so the default learning rate is lower.
  rateShare: 0.5,
  options: GRPO_OPTIONS,
  takes: () => ['rewards', 'graderModels', 'onTurn'],
  check(model, given) {
    causalLm.check(model)
    if (given !== undefined) checkRewards(given)
  },
  open: (model, _, { numGenerations = 8 } = {}) => new ScoredTokens(model, false, numGenerations) as never,
  lessons: async (run, learner) => (await import('../loop/grpo.js')).rewardLessons(run, learner),
}

function checkRewards({ rewards = [], taskOptions = {} }: TaskInputs): void {
  const { rewardWeights = {} }: GrpoOptions = taskOptions
  if (rewards.length === 0) {
    throw new ConfigError({
      where: 'rewards',
      what: 'missing: the task grpo learns from functions that judge texts',
      hint: 'Give functions, or the path of a module that exports them, as `rewards`',
    })
  }
  const names = rewards.map(({ name }) => name)
  const misnamed = Object.keys(rewardWeights).find((name) => !names.includes(name))
  if (misnamed !== undefined) {
    throw new ConfigError({
      where: `rewardWeights.${misnamed}`,
      what: 'there is no such reward',
      expected: names.join(', '),
    })
  }
}
