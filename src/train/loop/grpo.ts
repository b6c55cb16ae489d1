// Lessons from rewards.

import type { Learner } from '../learner.js'
import type { TrainInput } from '../options.js'
import type { RewardMetrics } from '../report.js'
import type { Lessons, Run } from '../run.js'
import { judgeText } from './graders/rewards.js'
import { advantagesOf, deviationOf, type GrpoOptions, grpoLoss, meanOf } from './grpo-loss.js'
import type { PromptRow } from './prompt-rows.js'
import { promptLessons, type Written } from './prompts.js'
import { Trainer } from './trainer.js'
import type { Sample } from './trainer-options.js'
import { takeTurns } from './turns.js'

interface Generation extends Written {
  readonly rewards: RewardMetrics
  /** The reward of each text of each prompt. */
  readonly totals: readonly (readonly number[])[]
  readonly examples: readonly Sample[]
}

export function rewardLessons(run: Run, learner: Learner): Lessons {
  const { rewards = [], taskOptions = {} } = run.options
  const options: GrpoOptions = taskOptions
  const { temperature = 1, beta = 0, numGenerations = 8, numIterations = 1 } = options
  const loss = grpoLoss(options)
  run.on.note?.(`Rewards: ${rewards.map(({ name }, i) => name || `reward ${i + 1}`).join(', ')}`)
  return promptLessons<Generation>(run, new Trainer(learner, run), {
    textsPerPrompt: numGenerations,
    iterations: numIterations,
    async write(trainer, rows, seed) {
      const generation = await generate(trainer, rows, run.options, options, seed)
      if (beta === 0) return generation
      const reference = await trainer.logprobs(generation.samples, { temperature, reference: true })
      const examples = generation.examples.map((example, i) => ({ ...example, reference: reference[i] }))
      return { ...generation, examples }
    },
    async learn(trainer, { examples }, isFirst) {
      // All texts are cut and do not count.
      if (examples.every(({ weights }) => weights.every((weight) => weight === 0))) return { loss: 0 }
      return isFirst
        ? trainer.learnFromSamples(examples, loss, temperature)
        : trainer.forwardBackward(examples, { loss, temperature })
    },
    async measure(trainer, rows) {
      const likeliest = { ...options, numGenerations: 1, temperature: 0 }
      const { totals } = await generate(trainer, rows, run.options, likeliest, 0)
      return totals.map(([reward]) => ({ reward, loss: -reward }))
    },
  })
}

async function generate(
  trainer: Trainer,
  rows: readonly PromptRow[],
  { rewards = [], onTurn, chatTemplate, chatTemplateArgs }: TrainInput,
  options: GrpoOptions,
  seed: number,
): Promise<Generation> {
  const { numGenerations: n = 8, maxCompletionLength = 512, temperature = 1, topP = 1 } = options
  const { scaleRewards = 'group', maskTruncatedCompletions = false, rewardSeconds = 60 } = options
  const weights = rewards.map(({ name }) => options.rewardWeights?.[name] ?? 1)
  const prompts = rows.map(({ prompt }) => prompt)
  const groups = await trainer.sample(prompts, { n, maxNewTokens: maxCompletionLength, temperature, topP, seed })
  const about = rows.flatMap(({ text: prompt, messages, answer, row }) => {
    return Array.from({ length: n }, () => ({ prompt, messages, answer, row }))
  })
  const turnOptions = { maxTokens: maxCompletionLength, temperature, topP, seed, seconds: rewardSeconds }
  const all = await takeTurns(trainer, groups.flat(), about, onTurn, { ...turnOptions, chatTemplate, chatTemplateArgs })
  const samples = all.map(({ sample }) => sample)
  const values = await Promise.all(
    all.map(({ sample, turns }, i) => {
      return judgeText(rewards, { ...about[i], text: sample.text, tokens: lengthOf(sample), turns }, rewardSeconds)
    }),
  )
  const judged = rows.map((_, i) => values.slice(i * n, (i + 1) * n))
  const sumOf = (values: readonly number[]) => {
    if (values.every(Number.isNaN)) return Number.NaN
    return values.reduce((sum, value, i) => sum + (Number.isNaN(value) ? 0 : weights[i] * value), 0)
  }
  const totals = judged.map((group) => group.map(sumOf))
  const advantages = advantagesOf(totals, scaleRewards).flat()
  const isCut = samples.map(({ finish }) => finish === 'max-new-tokens' || finish === 'context')
  const examples = samples.map((sample, i) => ({
    ...sample,
    advantages: advantages[i],
    ...(maskTruncatedCompletions && isCut[i] && { weights: new Float32Array(sample.ids.length) }),
  }))
  const deviations = totals.map(deviationOf)
  const byFunction = rewards.map((reward, i) => {
    return [reward.name || `reward ${i + 1}`, meanOf(judged.flat().map((values) => values[i]))] as const
  })
  return {
    samples,
    examples,
    totals,
    rewards: {
      reward: meanOf(totals.flat()),
      deviation: meanOf(deviations),
      byFunction: Object.fromEntries(byFunction),
      length: meanOf(samples.map(lengthOf)),
      cut: meanOf(isCut.map(Number)),
      withoutSignal: meanOf(deviations.map((deviation) => Number(!(deviation > 1e-8)))),
      distinct: new Set(samples.map(({ text }) => text)).size / samples.length,
      prompts: rows.map(({ text }) => text).slice(0, 1),
    },
  }
}

/** Tokens that the model wrote. */
function lengthOf({ weights }: Sample): number {
  return weights.reduce((sum, weight) => sum + weight, 0)
}
