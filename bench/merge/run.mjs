// The streaming merge beside cp, two Python scripts and other builds of lowrank, in turns on one warm page cache.
// Prints medians, ratios, processor time and peak memory.
//
//   npm run build && node bench/merge/run.mjs [--folder out/bench-merge] [--model tinyllama] [--layers N] [--ranks 16,64] [--runs 5] [--threads 2]
//     [--python PATH] [--peer-runs 1] [--build NAME=FOLDER] [--keep]
//
// --model: tinyllama (2.2 GB) or qwen3-4b (8 GB); --layers: another number of them. --python: an interpreter with
// requirements.txt; without it the scripts are left out. --build: the dist folder of another build to compare with,
// also several times. To build an older commit:
//
//   git worktree add ../old COMMIT && cp -al node_modules ../old/node_modules && (cd ../old && node scripts/build.mjs)
//   node bench/merge/run.mjs --ranks 16 --runs 9 --build old=../old/dist
//
// lowrank and cp wait for the disk; the scripts do not. A folder
// in memory (--folder /dev/shm/bench) leaves the disk out. Free space for twice the checkpoint is needed.

import { spawnSync } from 'node:child_process'
import { readFileSync, rmSync, statSync } from 'node:fs'
import { cpus } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { MODELS, makeAdapter, makeBase } from './inputs.mjs'

const here = dirname(fileURLToPath(import.meta.url))
const { values } = parseArgs({
  options: {
    folder: { type: 'string', default: join(here, '../../out/bench-merge') },
    model: { type: 'string', default: 'tinyllama' },
    layers: { type: 'string' },
    ranks: { type: 'string', default: '16,64' },
    runs: { type: 'string', default: '5' },
    threads: { type: 'string', default: '2' },
    python: { type: 'string' },
    build: { type: 'string', multiple: true, default: [] },
    'peer-runs': { type: 'string', default: '1' },
    keep: { type: 'boolean', default: false },
  },
})
const folder = resolve(values.folder)
const { model, layers } = values
const shape = { ...MODELS[model], ...(layers !== undefined && { num_hidden_layers: Number(layers) }) }
const label = `${model}-${shape.num_hidden_layers}`
const ranks = values.ranks.split(',').map(Number)
const base = join(folder, `base-${label}`)
const source = join(base, 'model.safetensors')
const target = join(folder, 'result.safetensors')
const adapterOf = (rank) => join(folder, `adapter-${label}-${rank}`)

makeBase(base, shape)
for (const rank of ranks) makeAdapter(adapterOf(rank), shape, rank)
const gigabytes = statSync(source).size / 1e9
console.log(`${cpus().length} × ${cpus()[0].model}, Linux ${kernel()}, Node ${process.version}`)
console.log(`${gigabytes.toFixed(2)} GB bf16, ${values.threads} threads\n`)

const builds = { lowrank: join(here, '../../dist') }
for (const build of values.build) builds[`lowrank (${build.split('=')[0]})`] = resolve(build.split('=')[1])
const copy = ['--reflink=never', '--sparse=never', source, target]
const contestants = [
  {
    name: 'cp',
    runs: Number(values.runs),
    command: ['sh', '-c', `cp ${copy.join(' ')} && sync ${target}`],
  },
  ...ranks.flatMap((rank) =>
    Object.entries(builds).map(([name, dist]) => ({
      name: `${name}, r = ${rank}`,
      runs: Number(values.runs),
      command: [process.execPath, join(here, 'ours.mjs'), dist, source, adapterOf(rank), target, values.threads],
    })),
  ),
]
if (values.python !== undefined) {
  const peers = {
    'torch addmm_, raw I/O': [join(here, 'peer_addmm.py'), target],
    'PEFT, load–merge–save': [join(here, 'peer_peft.py'), join(folder, 'peer')],
  }
  for (const rank of ranks) {
    for (const [name, [script, out]] of Object.entries(peers)) {
      const command = [values.python, script, base, adapterOf(rank), out]
      contestants.push({ name: `${name}, r = ${rank}`, runs: Number(values['peer-runs']), command })
    }
  }
}

spawnSync('cat', [source], { stdio: ['ignore', 'ignore', 'inherit'] })
for (const contestant of contestants) Object.assign(contestant, { seconds: [], processor: [] })
for (let run = 0; run < Number(values.runs); run++) {
  // Every second turn goes the other way, so that no contestant always follows the same one.
  const turn = run % 2 === 0 ? contestants : contestants.toReversed()
  for (const contestant of turn) if (run < contestant.runs) measure(contestant)
}
const cp = median(contestants[0].seconds)
console.log('| | s | × cp | GB/s | processor s | peak RSS, MB |\n| --- | ---: | ---: | ---: | ---: | ---: |')
for (const { name, seconds, processor, peak } of contestants) {
  const time = median(seconds)
  const figures = [
    time.toFixed(2),
    (time / cp).toFixed(2),
    (gigabytes / time).toFixed(2),
    processor.length === 0 ? '' : median(processor).toFixed(2),
    peak === undefined ? '' : (peak / 1e6).toFixed(0),
  ]
  console.log(`| ${name} | ${figures.join(' | ')} |`)
}
rmSync(target, { force: true })
if (!values.keep) rmSync(folder, { recursive: true, force: true })

function measure(contestant) {
  rmSync(target, { force: true })
  rmSync(join(folder, 'peer'), { recursive: true, force: true })
  const [program, ...args] = contestant.command
  const startedAt = performance.now()
  const { status, stdout, stderr } = spawnSync(program, args, {
    encoding: 'utf8',
    env: { ...process.env, HF_HUB_OFFLINE: '1' },
  })
  contestant.seconds.push((performance.now() - startedAt) / 1000)
  if (status !== 0) throw new Error(`${contestant.name}: ${stderr}`)
  const report = /\{.*\}/.exec(stdout)
  if (report === null) return
  const { peakRssBytes, processorSeconds } = JSON.parse(report[0])
  contestant.peak = Math.max(contestant.peak ?? 0, peakRssBytes)
  if (processorSeconds !== undefined) contestant.processor.push(processorSeconds)
}

function median(list) {
  const sorted = [...list].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)]
}

function kernel() {
  return readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim()
}
