// Which settings find the most documents for questions never seen? Five folds of a FAQ: each question is asked once, to
// an adapter that saw neither it nor its answer, and ranks all answers. Weights and strength are chosen inside a fold.
//
//     node bench/search-defaults/sweep.mjs --model DIR --faq DIR --results FILE.jsonl [--runs NAME,…] [--seeds 1,2,3]
//
// --model: a folder with an embedding model, such as minilm-fp32, which bench/learning.mjs explains. --faq: a folder
// with perlfaq1.pod to perlfaq9.pod (Debian's package perl-doc), or a .jsonl file of records with query and passage.
// Results are added to the file, a line for each fold, and lines that are there are not computed again. Prints a table.

import { appendFileSync, existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { loadModel, openSession, train } from 'lowrank'

const { values } = parseArgs({
  options: {
    model: { type: 'string' },
    faq: { type: 'string' },
    results: { type: 'string' },
    runs: { type: 'string' },
    seeds: { type: 'string', default: '1' },
    folds: { type: 'string', default: '0,1,2,3,4' },
  },
})

/** One factor differs from the defaults. */
const RUNS = {
  before: {
    epochs: 1,
    batchSize: 8,
    gradientAccumulation: 1,
    learningRate: 3e-4,
    loraPlusRatio: 16,
    evalSplit: 0,
    keep: 'last',
  },
  defaults: {},
  'last weights': { evalSplit: 0, keep: 'last' },
  'rate 5e-5': { learningRate: 5e-5 },
  'rate 1e-4': { learningRate: 1e-4 },
  'rate 5e-4': { learningRate: 5e-4 },
  'rate 1e-3': { learningRate: 1e-3 },
  'LoRA+ 4': { learningRate: 2e-4, loraPlusRatio: 4 },
  'LoRA+ 16': { learningRate: 2e-4, loraPlusRatio: 16 },
  'rank 4': { config: { rank: 4 } },
  '32 pairs': { gradientAccumulation: 4 },
  '128 pairs': { gradientAccumulation: 16 },
  '2 epochs': { epochs: 2 },
}
const FOLDS = 5

const records = (statSync(values.faq).isDirectory() ? fromPods(values.faq) : fromLines(values.faq)).filter(
  ({ query }, i, all) => all.findIndex((other) => other.query === query) === i,
)

function fromLines(file) {
  return readFileSync(file, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
}

/** The questions of perlfaq with the text below their headings. */
function fromPods(folder) {
  const files = readdirSync(folder)
    .filter((name) => /^perlfaq[1-9]\.pod$/.test(name))
    .sort()
  return files.flatMap((name) => {
    const sections = readFileSync(path.join(folder, name), 'utf8')
      .split(/^=head2 /m)
      .slice(1)
    return sections.flatMap((section) => {
      const [heading, ...rest] = section.split('\n')
      const plain = (text) => text.replaceAll(/[A-Z]<+\s?([^<>]*?)\s?>+/g, '$1').replaceAll(/^=\w+.*$/gm, '')
      const passage = plain(rest.join('\n').split(/^=head1 /m)[0])
        .replaceAll(/\s+/g, ' ')
        .trim()
      return passage === '' ? [] : [{ query: plain(heading).trim(), passage }]
    })
  })
}

async function ranksOf(model, adapter) {
  const session = await openSession(model, adapter && { adapters: { adapter } })
  const name = adapter && 'adapter'
  const embed = (texts, inputType) => session.embed(texts, { adapter: name ?? null, inputType, batchSize: 32 })
  const documents = await embed(
    records.map(({ passage }) => passage),
    'document',
  )
  const queries = await embed(
    records.map(({ query }) => query),
    'query',
  )
  await session.dispose()
  return queries.map((query, i) => {
    const scores = documents.map((document) => document.reduce((sum, value, k) => sum + value * query[k], 0))
    return scores.filter((score, j) => score > scores[i] || (score === scores[i] && j < i)).length + 1
  })
}

const lines = existsSync(values.results) ? fromLines(values.results) : []
const model = await loadModel(values.model)
const before = lines.find(({ run }) => run === 'base') ?? { run: 'base', ranks: await ranksOf(model) }
if (!lines.includes(before)) appendFileSync(values.results, `${JSON.stringify(before)}\n`)
for (const seed of values.seeds.split(',').map(Number)) {
  for (const fold of values.folds.split(',').map(Number)) {
    for (const run of values.runs?.split(',') ?? Object.keys(RUNS)) {
      if (lines.some((line) => line.run === run && line.fold === fold && line.seed === seed)) continue
      const { config, ...settings } = RUNS[run]
      const data = records.filter((_, i) => i % FOLDS !== fold)
      const options = { model, task: 'embedding', data, config: { seed, ...config }, on: {}, ...settings }
      const { adapter, report } = await train(options)
      const all = await ranksOf(model, adapter)
      const ranks = Object.fromEntries(all.flatMap((rank, i) => (i % FOLDS === fold ? [[i, rank]] : [])))
      const { keptStep, strength, seconds } = report
      const line = { run, fold, seed, ranks, keptStep, strength, seconds: Math.round(seconds) }
      appendFileSync(values.results, `${JSON.stringify(line)}\n`)
      lines.push(line)
    }
  }
}
await model.close()

/** The mean difference to the base over questions, and what 95 % of a bootstrap over them hold. */
function gainOf(run, measure) {
  const found = new Map()
  for (const { ranks } of lines.filter((line) => line.run === run)) {
    for (const [i, rank] of Object.entries(ranks)) {
      found.set(i, [...(found.get(i) ?? []), measure(rank) - measure(before.ranks[i])])
    }
  }
  const gains = [...found.values()].map((list) => list.reduce((a, b) => a + b) / list.length)
  const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length
  let state = 1
  const draw = () => {
    state = (state * 48271) % 2147483647
    return gains[state % gains.length]
  }
  const draws = Array.from({ length: 2000 }, () => mean(gains.map(draw))).sort((a, b) => a - b)
  const shown = (value) => `${value < 0 ? '−' : '+'}${Math.abs(value).toFixed(3)}`
  return `${shown(mean(gains))} [${shown(draws[50])}, ${shown(draws[1949])}]`
}

const measures = { 'recall@10': (rank) => (rank <= 10 ? 1 : 0), 'MRR@10': (rank) => (rank <= 10 ? 1 / rank : 0) }
const meanOf = (measure) => before.ranks.reduce((sum, rank) => sum + measure(rank), 0) / before.ranks.length
console.log(
  `${records.length} questions, before training: ${Object.entries(measures)
    .map(([name, measure]) => `${name} ${meanOf(measure).toFixed(3)}`)
    .join(', ')}`,
)
console.log(`| run | folds | ${Object.keys(measures).join(' | ')} | seconds |\n| --- | --- | --- | --- | --- |`)
for (const run of Object.keys(RUNS)) {
  const own = lines.filter((line) => line.run === run)
  if (own.length === 0) continue
  const seconds = own.map((line) => line.seconds).sort((a, b) => a - b)[own.length >> 1]
  console.log(
    `| ${run} | ${own.length} | ${Object.values(measures)
      .map((measure) => gainOf(run, measure))
      .join(' | ')} | ${seconds} |`,
  )
}
