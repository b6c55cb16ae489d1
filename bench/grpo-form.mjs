// What the bundled model of 3 million parameters learns from a reward alone: to name a number, such as a year or an
// amount, within 16 tokens. Judged on other prompts: how many texts do, and how many differ. Also the perplexity of
// texts from a book, as a multiple of the one before.

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { openTrainer, train } from 'lowrank'

const file = (name) => fileURLToPath(new URL(`../models/${name}`, import.meta.url))
const model = file('union-3m')
const LENGTH = 16

const PROMPTS = [
  ...['The people', 'We have', 'In this year', 'Our country', 'Last year', 'I believe', 'The Congress', 'It is'],
  ...['Tonight', 'The treaty', 'With the', 'For the first time', 'My fellow', 'There are', 'Many of', 'The war'],
  ...['No nation', 'Under the law', 'During the', 'As we', 'This government', 'The Secretary', 'Let us', 'You know'],
  ...['But the', 'They have', 'These men', 'Every family', 'The time', 'All of us', 'At home', 'The question'],
]
const HELD_OUT = [
  ...['The army', 'We must', 'In the past', 'Our trade', 'Next year', 'I hope', 'The Senate', 'There is'],
  ...['Today', 'The law', 'By the', 'For many years', 'My friends', 'What we', 'Most of', 'Peace is'],
]

const hasForm = (text) => /\d/.test(text)

/** Trains with one seed. `on` gets a line for every tenth step. */
export async function learnForm({ seed, steps = 40, threads = 2, on = () => {} }) {
  const before = await measure({ config: { rank: 2 } }, threads)
  const startedAt = performance.now()
  const { adapter, report } = await train({
    task: 'grpo',
    model,
    data: PROMPTS.map((prompt) => ({ prompt })),
    rewards: [({ text }) => Number(hasForm(text))],
    taskOptions: { numGenerations: 16, maxCompletionLength: LENGTH, beta: 0.085 },
    ...{ batchSize: 8, maxSteps: steps, learningRate: 3e-3, threads, config: { rank: 2, seed } },
    on: {
      step({ step, rewards, elapsedMs }) {
        if (step % 10 > 1) return
        const { reward, kl, distinct } = rewards
        on(
          `seed ${seed}, step ${step}: reward ${reward.toFixed(2)}, KL ${kl?.toFixed(3)}, distinct ${distinct.toFixed(2)}, ${Math.round(elapsedMs)} ms`,
        )
      },
    },
  })
  const seconds = (performance.now() - startedAt) / 1000
  const after = await measure({ adapter }, threads)
  return {
    ...{ seed, steps, before: before.rate, after: after.rate, distinct: after.distinct },
    perplexity: after.perplexity / before.perplexity,
    ...{ rewards: report.rewards, seconds, samples: after.samples },
  }
}

async function measure(options, threads) {
  const trainer = await openTrainer(model, { ...options, maxLength: 64, threads })
  const samples = (await trainer.sample(HELD_OUT, { n: 8, maxNewTokens: LENGTH, seed: 12345 })).flat()
  const lines = readFileSync(file('data/scripture.eval.jsonl'), 'utf8').split('\n').slice(0, 32)
  const logprobs = await trainer.logprobs(lines.map((line) => ({ text: JSON.parse(line).text.slice(0, 200) })))
  await trainer.dispose()
  const values = logprobs.flatMap((list) => [...list.subarray(1)])
  const texts = samples.map(({ text }) => text)
  return {
    rate: texts.filter(hasForm).length / texts.length,
    distinct: new Set(texts).size / texts.length,
    perplexity: Math.exp(-values.reduce((sum, value) => sum + value, 0) / values.length),
    samples: texts,
  }
}
