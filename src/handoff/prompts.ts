// A run that learns from rewards, for TRL: prompts in the order of the first pass, and the adapter as it starts.

import { UnsupportedError } from '../base/errors.js'
import { toJson } from '../base/options.js'
import { checkRewards, RATE_SHARE } from '../loop/grpo.js'
import { planOfPrompts, promptSteps, settingsFor } from '../loop/prompts.js'
import { prepareTrainer } from '../loop/trainer.js'
import { loadChatTemplate } from '../text/chat-template.js'
import type { TrainInput } from '../train/options.js'
import { endReward } from '../train/rewards.js'
import { handedRewards, leftToFillIn } from './rewards.js'
import type { HandedParts } from './settings-file.js'

export async function promptParts(given: TrainInput): Promise<HandedParts> {
  const { model, onTurn, chatTemplate, rewards: functions = [] } = given
  try {
    if (onTurn !== undefined) {
      throw new UnsupportedError({
        where: 'onTurn',
        what: 'functions cannot be handed off',
        hint: 'TRL has tools and environments of its own',
      })
    }
    const taskOptions = checkRewards(given)
    const { numGenerations = 8, numIterations = 1, rewardWeights } = taskOptions
    const steps = await promptSteps(given, numIterations)
    const { rows, promptsPerStep, stepsPerEpoch, totalSteps } = steps
    const { inner } = await prepareTrainer(model, { ...given, batchSize: numGenerations, resume: undefined })
    const { adapter } = inner
    const rewards = handedRewards(functions, rewardWeights)
    const isChat = rows.some(({ messages }) => messages !== undefined)
    const template = isChat ? (await loadChatTemplate(model.directory, chatTemplate))?.text : undefined
    const order = [...planOfPrompts(steps, adapter.config.seed, 0)].flatMap(([{ examples }]) => examples)
    const whole = promptsPerStep * Math.floor(rows.length / promptsPerStep)
    const encoder = new TextEncoder()
    const left = leftToFillIn(rewards)
    return {
      ...{
        command: 'grpo',
        task: 'grpo',
        taskOptions: { ...taskOptions },
        rewards,
        adapter,
        template,
        isReadable: true,
      },
      settings: settingsFor(given, adapter, RATE_SHARE),
      maxLength: Number.POSITIVE_INFINITY,
      totalSteps,
      isInOrder: totalSteps <= stepsPerEpoch,
      *train() {
        for (const index of order) {
          const { prompt, row } = rows[index]
          // The record as a text: records may differ in their fields.
          yield encoder.encode(`${JSON.stringify({ prompt, item: toJson(row) })}\n`)
        }
      },
      evaluation: undefined,
      ...{ rows: rows.length, evalRows: 0 },
      differences: [
        ...(left.length > 0
          ? [`train.py has a function to fill in, judge: in Python there is nothing that judges as ${left.join(', ')}.`]
          : []),
        'Texts are drawn with other random numbers, so losses and rewards agree on average, not step by step.',
        ...(whole < rows.length
          ? [`A pass leaves out the prompts that do not fill a step: ${rows.length - whole}.`]
          : []),
        ...(taskOptions.lossType === 'bnpo' && given.gradientAccumulation !== undefined
          ? ['bnpo divides by the tokens of each batch here, and by those of the whole step in lowrank.']
          : []),
      ],
    }
  } finally {
    for (const reward of functions) endReward(reward)
  }
}
