// Learning from rewards, measured in two ways.
//
//     node bench/grpo.mjs --graphs DIR --python PYTHON [--rounds 3] [--threads 2]
//
// Steps of GRPO here and in TRL's GRPOTrainer with transformers' generate, in turns, both fp32 on the CPU: SmolLM2,
// 4 prompts × 8 texts of 64 tokens, rank 8. Prints sampling, a whole step and peak memory, their ratios, and where the
// time goes. --graphs: the folder with smollm2-fp32 and smollm2-source that scripts/golden/graph_table.py makes.
// PYTHON has torch, transformers, peft and trl.
//
//     node bench/grpo.mjs --learn [--seeds 1,2,3] [--steps 40]
//
// What the bundled model learns from the reward alone: see grpo-form.mjs.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const here = path.dirname(fileURLToPath(import.meta.url))
const { values: options } = parseArgs({
  options: {
    graphs: { type: 'string' },
    python: { type: 'string', default: 'python3' },
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string', default: '2' },
    tokens: { type: 'string', default: '64' },
    learn: { type: 'boolean', default: false },
    seeds: { type: 'string', default: '1,2,3' },
    steps: { type: 'string', default: '40' },
    contestant: { type: 'boolean', default: false },
  },
})
const threads = Number(options.threads)
const [TEXTS, TOKENS] = [8, Number(options.tokens)]
const PROMPT_TEXTS = ['The capital of France', 'Water boils when', 'A good friend', 'In the year 1900']

if (options.learn) {
  const { learnForm } = await import('./grpo-form.mjs')
  for (const seed of options.seeds.split(',').map(Number)) {
    const { samples, ...result } = await learnForm({ seed, steps: Number(options.steps), on: console.error })
    console.log(JSON.stringify(result))
    for (const text of samples.slice(0, 8)) console.log(`    ${JSON.stringify(text)}`)
  }
} else if (options.contestant) await compete()
else await compare()

/** lowrank's side: a step for each line on stdin. */
async function compete() {
  const { openTrainer } = await import('lowrank')
  const model = path.join(options.graphs, 'smollm2-fp32')
  const trainer = await openTrainer(model, { config: { rank: 8, alpha: 16 }, batchSize: TEXTS, threads })
  for await (const line of createInterface({ input: process.stdin })) {
    const seed = Number(line)
    const start = performance.now()
    const given = { n: TEXTS, maxNewTokens: TOKENS, ignoreEos: true, seed }
    const samples = (await trainer.sample(PROMPT_TEXTS, given)).flat()
    const sampled = performance.now()
    const examples = samples.map((sample, i) => ({ ...sample, advantages: i % 2 === 0 ? 1 : -1 }))
    await trainer.forwardBackward(examples, { loss: 'ppo' })
    const learned = performance.now()
    await trainer.step({ learningRate: 1e-5 })
    const times = [sampled - start, learned - sampled, performance.now() - learned]
    const names = ['sampling', 'gradients', 'optimizer']
    const tokens = samples.reduce((sum, { ids, promptTokens }) => sum + ids.length - promptTokens, 0)
    const parts = Object.fromEntries(names.map((name, i) => [name, times[i]]))
    answer({ parts, step: performance.now() - start, tokens, peak: peakOf(process.pid) })
  }
  await trainer.dispose()
}

function answer(value) {
  process.stdout.write(`${JSON.stringify(value)}\n`)
}

function peakOf(pid) {
  const file = `/proc/${pid}/status`
  return existsSync(file) ? 1024 * Number(/VmHWM:\s*(\d+)/.exec(readFileSync(file, 'utf8'))[1]) : 0
}

async function compare() {
  if (options.graphs === undefined)
    throw new Error('usage: node bench/grpo.mjs --graphs DIR [--python PYTHON], or --learn')
  const shared = ['--graphs', path.resolve(options.graphs), '--threads', options.threads, '--tokens', options.tokens]
  const ours = start(process.execPath, [fileURLToPath(import.meta.url), '--contestant', ...shared])
  const source = path.join(path.resolve(options.graphs), 'smollm2-source')
  const settings = JSON.stringify({ source, threads, prompts: PROMPT_TEXTS, texts: TEXTS, tokens: TOKENS })
  const theirs = start(options.python, [path.join(here, 'grpo.py'), settings])
  const results = { lowrank: [], TRL: [] }
  // The first step of each opens and warms up.
  for (let round = 0; round <= Number(options.rounds); round++) {
    for (const [name, contestant] of Object.entries({ lowrank: ours, TRL: theirs })) {
      const result = await contestant.ask(round)
      if (result.tokens !== PROMPT_TEXTS.length * TEXTS * TOKENS)
        throw new Error(`${name} wrote ${result.tokens} tokens`)
      if (round > 0) results[name].push(result)
      const parts = Object.entries(result.parts).map(([part, millis]) => `${part} ${(millis / 1000).toFixed(2)} s`)
      console.error(`${name}, round ${round}: ${(result.step / 1000).toFixed(2)} s: ${parts.join(', ')}`)
    }
  }
  for (const { end } of [ours, theirs]) end()
  const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1]
  const of = (pick) => Object.values(results).map((list) => median(list.map(pick)))
  const rows = {
    'sampling, s': of(({ parts }) => parts.sampling / 1000),
    'a step, s': of(({ step }) => step / 1000),
    'peak memory, GB': of(({ peak }) => peak / 1e9),
  }
  console.log('| | lowrank | TRL | ratio |\n| --- | --- | --- | --- |')
  for (const [name, [lowrank, trl]] of Object.entries(rows)) {
    console.log(`| ${name} | ${lowrank.toFixed(2)} | ${trl.toFixed(2)} | ${(lowrank / trl).toFixed(2)} |`)
  }
}

/** A process that answers each line with a line of JSON. */
function start(command, args) {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  return {
    async ask(round) {
      child.stdin.write(`${round}\n`)
      for (;;) {
        const { value, done } = await Promise.race([
          lines.next(),
          once(child, 'error').then(([error]) => Promise.reject(error)),
        ])
        if (done) throw new Error(`${command} ended`)
        if (value.startsWith('{')) return JSON.parse(value)
      }
    },
    end: () => child.stdin.end(),
  }
}
