// Memory of a trainer that samples, beside that of training alone: 4 prompts with 8 texts of 64 tokens each, rank 8.
// Each runs in its own process. Its peak is the largest Pss of many samples, which counts a page of the weights once,
// even if training and sampling both map it. Training alone learns from given tokens, as many.
// Usage: node bench/trainer-memory.mjs [MODEL] [THREADS], after npm run build. Linux.

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { openTrainer } from '../dist/api/node.js'

const [model = 'models/union-3m', threads = '2', part] = process.argv.slice(2)
const [PROMPTS, TEXTS, TOKENS, STEPS] = [['The sea', 'And the people', 'He was', 'Call me'], 8, 64, 3]

async function run(samples) {
  let peak = 0
  const watch = setInterval(() => {
    const [, kilobytes] = /^Pss:\s+(\d+)/m.exec(readFileSync('/proc/self/smaps_rollup', 'utf8'))
    peak = Math.max(peak, Number(kilobytes))
  }, 50)
  const options = { config: { rank: 8 }, batchSize: TEXTS, threads: Number(threads), memory: 'low' }
  const trainer = await openTrainer(model, options)
  let texts = samples
  for (let step = 0; step < STEPS; step++) {
    if (samples === undefined) {
      const limits = { n: TEXTS, minNewTokens: TOKENS, maxNewTokens: TOKENS, seed: step }
      texts = (await trainer.sample(PROMPTS, limits)).flat()
    }
    const examples = texts.map((text, i) => ({ ...text, advantages: i % 2 === 0 ? 1 : -1 }))
    await trainer.forwardBackward(examples, { loss: 'ppo' })
    await trainer.step({ learningRate: 1e-4 })
  }
  await trainer.dispose()
  clearInterval(watch)
  return (peak * 1024) / 1e6
}

if (part !== undefined) {
  const ids = Array.from({ length: TOKENS }, (_, i) => 5 + ((i * 37) % 400))
  const texts = Array.from({ length: PROMPTS.length * TEXTS }, () => ({ ids, logprobs: ids.map(() => -3) }))
  console.log(await run(part === 'alone' ? texts : undefined))
} else {
  const [alone, sampling] = ['alone', 'sampling'].map((each) => {
    const args = [fileURLToPath(import.meta.url), model, threads, each]
    return Number(execFileSync(process.execPath, args, { encoding: 'utf8' }).trim().split('\n').at(-1))
  })
  console.log(
    `${model}: ${alone.toFixed(0)} MB to train, ${sampling.toFixed(0)} MB with sampling: ${(sampling / alone).toFixed(2)} ×`,
  )
}
