// Hands the runs of tests/golden/handoff/cases.json off, and trains them here, for handoff.py to compare.
// Usage: node scripts/golden/handoff.mjs OUT

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { handoff } from '../../dist/handoff-entry/node/entry.js'
import { rewardOf } from '../../dist/loop/graders/grader.js'
import { advantagesOf, grpoLoss } from '../../dist/loop/grpo-loss.js'
import { openTrainer, saveAdapter, train } from '../../dist/node.js'

const [out] = process.argv.slice(2)
const cases = JSON.parse(readFileSync('tests/golden/handoff/cases.json', 'utf8'))
mkdirSync(out, { recursive: true })
for (const [name, options] of Object.entries(cases)) {
  await handoff(options, { to: 'trl', out: `${out}/${name}` })
  if (options.task === undefined) await handoff(options, { to: 'trl', out: `${out}/${name}-records`, rows: 'records' })
  const { adapter, report } = await train(options)
  await saveAdapter(adapter, `${out}/${name}-here`)
  writeFileSync(`${out}/${name}-here/losses.json`, JSON.stringify(report.trainLoss))
}

// The first step of a run from rewards: its texts, what graders give for them, and the loss.
const rewarded = JSON.parse(readFileSync('tests/golden/handoff/rewarded.json', 'utf8'))
await handoff(rewarded, { to: 'trl', out: `${out}/rewarded` })
const { numGenerations: n, maxCompletionLength: maxNewTokens, temperature, rewardWeights } = rewarded.taskOptions
const lines = readFileSync(`${out}/rewarded/data/train.jsonl`, 'utf8').split('\n').slice(0, rewarded.batchSize)
const rows = lines.map((line) => JSON.parse(JSON.parse(line).item))
const trainer = await openTrainer(rewarded.model, { adapter: rewarded.adapter })
const groups = await trainer.sample(
  rows.map(({ prompt }) => prompt),
  // Texts end with a comma, so that they have unequal lengths.
  {
    n,
    maxNewTokens,
    temperature,
    seed: 7,
    stopTokenIds: trainer.model.tokenizer.encode(',', { specialTokens: false }),
  },
)
const completions = groups.flat().map(({ ids, promptTokens }) => [...ids.subarray(promptTokens)])
const texts = completions.map((ids) => trainer.model.tokenizer.decode(ids))
const graders = rewarded.rewards.map((grader) => rewardOf(grader))
const rewards = await Promise.all(
  texts.map((text, i) => Promise.all(graders.map((grade) => grade({ row: rows[Math.floor(i / n)], text })))),
)
const weightOf = ({ name }) => rewardWeights[name] ?? 1
const sumOf = (values) => values.reduce((sum, value, i) => sum + weightOf(rewarded.rewards[i]) * value, 0)
const totals = rewards.map(sumOf)
const advantages = advantagesOf(
  rows.map((_, i) => totals.slice(i * n, (i + 1) * n)),
  'group',
).flat()
const examples = groups.flat().map((sample, i) => ({ ...sample, advantages: advantages[i] }))
const reference = await trainer.logprobs(examples, { temperature, reference: true })
const { loss } = await trainer.forwardBackward(
  examples.map((example, i) => ({ ...example, reference: reference[i] })),
  { loss: grpoLoss(rewarded.taskOptions), temperature },
)
const { gradientNorm } = await trainer.step({ learningRate: 0 })
await trainer.dispose()
mkdirSync(`${out}/rewarded-here`, { recursive: true })
writeFileSync(`${out}/rewarded-here/first.json`, JSON.stringify({ completions, rewards, loss, gradientNorm }))
