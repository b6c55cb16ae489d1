// Compares the evaluation loss after a short training on 4-bit weights, for several seeds, with PEFT on the same
// weights as floats.
//
//     npm run build && node bench/quantized/learning.mjs MODEL SOURCE [--python python3] [--seeds 1,2,3] [--steps 40] [--threads 2]
//
// MODEL: a folder with the quantized graph, such as smollm2-q4-32 of scripts/golden/graph_table.py. SOURCE: the model
// for PyTorch from which the graph was made, smollm2-source. The Python has scripts/golden/requirements.txt. Both sides
// train on the same records, in an order that depends on the seed.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { loadModel, train } from '../../dist/api/node.js'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    python: { type: 'string', default: 'python3' },
    seeds: { type: 'string', default: '1,2,3' },
    steps: { type: 'string', default: '40' },
    threads: { type: 'string', default: '2' },
  },
})
const [folder, source] = positionals
if (source === undefined) throw new Error('usage: node bench/quantized/learning.mjs MODEL SOURCE [--python python3] …')
const seeds = values.seeds.split(',').map(Number)
const [maxSteps, threads] = [Number(values.steps), Number(values.threads)]
const settings = { batchSize: 4, maxLength: 64, learningRate: 5e-4, rank: 8, alpha: 16 }

const here = dirname(fileURLToPath(import.meta.url))
const data = join(here, '..', '..', 'models', 'data')
const texts = (file, count) => readFileSync(join(data, file), 'utf8').split('\n').filter(Boolean).slice(0, count)
const training = texts('scripture.jsonl', settings.batchSize * maxSteps).map((line) => JSON.parse(line))
const evaluation = texts('scripture.eval.jsonl', 60).map((line) => JSON.parse(line))

const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / numbers.length
const describe = (losses) => {
  const range = Math.max(...losses) - Math.min(...losses)
  return `mean ${mean(losses).toFixed(4)}, largest less smallest ${range.toFixed(4)}`
}

const { rank, alpha, ...runOptions } = settings
const ours = []
const model = await loadModel(folder)
for (const seed of seeds) {
  const { report } = await train({
    ...{ model, task: 'causal-lm', data: training, evalData: evaluation, maxSteps, threads, ...runOptions },
    config: { rank, alpha, seed },
    on: { warning: () => {} },
  })
  const { before, after } = report.evalLoss
  ours.push(after)
  console.log(`lowrank, seed ${seed}: ${before.toFixed(4)} → ${after.toFixed(4)}`)
}
await model.close()
console.log(`lowrank: ${describe(ours)}`)

const request = { folder, source, seeds, steps: maxSteps, threads, training, evaluation, ...settings }
const { stdout, status } = spawnSync(values.python, [join(here, 'learning_peft.py')], {
  ...{ input: JSON.stringify(request), stdio: ['pipe', 'pipe', 'inherit'], encoding: 'utf8', maxBuffer: 2 ** 26 },
})
if (status !== 0) throw new Error(`${values.python} ended with exit code ${status}`)
const theirs = stdout
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line))
for (const { seed, before, after } of theirs)
  console.log(`PEFT, seed ${seed}: ${before.toFixed(4)} → ${after.toFixed(4)}`)
const losses = theirs.map(({ after }) => after)
console.log(`PEFT: ${describe(losses)}`)
console.log(`difference of the means: ${(mean(ours) - mean(losses)).toFixed(4)}`)
