// Runs a short training with GRPO and returns its results. A test runs it in Node and in a page, and compares.

import type { Model } from '../../../src/api/node.js'
import { train } from '../../../src/train/train.js'

export interface RewardedJob {
  readonly prompts: readonly string[]
  readonly steps: number
}

export interface RewardedResult {
  readonly runtime: string
  readonly rewards: readonly number[]
  readonly losses: readonly number[]
  readonly factors: readonly number[]
}

export async function learnToBeBrief(model: Model, { prompts, steps }: RewardedJob): Promise<RewardedResult> {
  const { adapter, report } = await train({
    ...{ model, task: 'grpo', data: prompts.map((prompt) => ({ prompt })) },
    rewards: [
      function brief({ text }) {
        return -text.length / 10
      },
    ],
    taskOptions: { numGenerations: 4, maxCompletionLength: 8 },
    ...{ batchSize: 2, maxSteps: steps, learningRate: 5e-3, config: { rank: 4 } },
  })
  const factors = adapter.parts('linear').flatMap(({ weightA, weightB }) => [...weightA.data, ...weightB.data])
  return { runtime: report.runtime, rewards: report.rewards!, losses: report.trainLoss, factors }
}
