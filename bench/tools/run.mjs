// The tools for adapters on large shapes, beside PEFT and cp, in turns; prints medians with their
// range, and ratios.
//
//   npm run build && node bench/tools/run.mjs [--part resize|combine|gguf] [--rounds 3] [--size 4096] [--layers 22] [--folder PATH]
//     [--python PATH] [--peer-layers 1]
//
// - resize: an adapter of rank 128 of a size × size layer, resized to rank 64.
// - combine: ten rank-16 adapters for --layers layers of TinyLlama, by the command line. With --python: PEFT's
//   add_weighted_adapter (svd)
//   for --peer-layers layers; its time grows with their number.
// - gguf: an adapter of 100 MB into a GGUF file, cp of its file, and cp with fsync.
//
// --python: an interpreter with bench/tools/requirements.txt. --folder: where the inputs are (default: a temporary
// folder).

import { spawnSync } from 'node:child_process'
import { closeSync, copyFileSync, fsyncSync, mkdtempSync, openSync, readFileSync, rmSync, statSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { convertAdapter, LoraAdapter, resize } from '../../dist/api/node.js'
import { disposeKernels } from '../../dist/core/kernels/index.js'
import { noise, writeModel } from './inputs.mjs'

const { values } = parseArgs({
  options: {
    part: { type: 'string' },
    rounds: { type: 'string', default: '3' },
    size: { type: 'string', default: '4096' },
    layers: { type: 'string', default: '22' },
    folder: { type: 'string', default: tmpdir() },
    python: { type: 'string' },
    'peer-layers': { type: 'string', default: '1' },
  },
})
const [rounds, size, layers, peerLayers] = ['rounds', 'size', 'layers', 'peer-layers'].map((name) =>
  Number(values[name]),
)
const folder = mkdtempSync(join(values.folder, 'lowrank-tools-'))
const here = dirname(fileURLToPath(import.meta.url))
const cli = fileURLToPath(new URL('../../dist/app/cli/main.js', import.meta.url))

const median = (list) => list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)]
const shown = (list, unit = 's') => {
  const digits = median(list) < 1 ? 3 : 1
  return `${median(list).toFixed(digits)} ${unit} (${Math.min(...list).toFixed(digits)} to ${Math.max(...list).toFixed(digits)})`
}

async function seconds(work) {
  const start = performance.now()
  await work()
  return (performance.now() - start) / 1000
}

/** Runs a command of lowrank in a separate process. */
function lowrank(...args) {
  const start = performance.now()
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args, '--json'], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  })
  if (status !== 0) throw new Error(stderr)
  const { peakRssBytes, error } = JSON.parse(stdout)
  return { seconds: (performance.now() - start) / 1000, rss: Math.round(peakRssBytes / 1e6), error }
}

/** Runs inputs.mjs in a separate process: the memory of a large process would count for the commands that it starts. */
function write(...args) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(here, 'inputs.mjs'), ...args.map(String)], {
    encoding: 'utf8',
  })
  if (status !== 0) throw new Error(stderr)
  return stdout.trim()
}

/** Runs a command of peers.py. Returns undefined without an interpreter. */
function peer(...args) {
  if (values.python === undefined) return undefined
  const { status, stdout, stderr } = spawnSync(values.python, [join(here, 'peers.py'), ...args.map(String)], {
    encoding: 'utf8',
  })
  if (status !== 0) throw new Error(stderr)
  return JSON.parse(stdout.trim().split('\n').at(-1))
}

async function benchResize() {
  const adapter = new LoraAdapter({ rank: 128, targetModules: ['q'] })
  adapter.addFactors(
    'q',
    { data: noise(128 * size), shape: [128, size] },
    { data: noise(128 * size), shape: [size, 128] },
  )
  const resized = []
  for (let round = 0; round < rounds; round++) resized.push(await seconds(() => resize(adapter, { rank: 64 })))
  console.log(`resize ${size}², rank 128 to 64: ${shown(resized)}`)
}

async function benchCombine() {
  const paths = (count) =>
    Array.from({ length: 10 }, (_, i) => write('adapter', join(folder, `adapter-${count}-${i}`), count, 16, 'fp16'))
  const all = paths(layers)
  const few = values.python === undefined ? [] : paths(peerLayers)
  const [ours, peers] = [[], []]
  let rss = 0
  for (let round = 0; round < rounds; round++) {
    const out = join(folder, `combined-${round}`)
    const run = lowrank('combine', ...all.flatMap((path) => ['--adapter', path]), '--rank', '16', '--out', out)
    ours.push(run.seconds)
    rss = Math.max(rss, run.rss)
    // PEFT takes minutes. One run is enough for such a large ratio.
    const found = round === 0 ? peer('peft', ...few) : undefined
    if (found !== undefined) peers.push((found.seconds * layers) / peerLayers)
  }
  console.log(`combine ten adapters of rank 16, ${layers} layers of TinyLlama: ${shown(ours)}, ${rss} MB`)
  if (peers.length > 0) {
    const ratio = (median(peers) / median(ours)).toFixed(1)
    console.log(`  PEFT's svd, from ${peerLayers} of ${layers} layers: ${shown(peers)}, ${ratio} x as long`)
  }
}

async function benchGguf() {
  const source = write('adapter', join(folder, 'hundred'), 22, 32, 'fp32')
  const model = writeModel(join(folder, 'model'), 22)
  const weights = join(source, 'adapter_model.safetensors')
  const [copy, out] = [join(folder, 'copy'), join(folder, 'hundred.gguf')]
  const [ours, copies, synced, commands] = [[], [], [], []]
  let rss = 0
  for (let round = 0; round < rounds; round++) {
    const run = lowrank('convert', source, '--to', 'gguf', '--base', model, '--out', out)
    commands.push(run.seconds)
    rss = Math.max(rss, run.rss)
    rmSync(out)
  }
  for (let round = 0; round < Math.max(rounds, 7); round++) {
    copies.push(await seconds(() => copyFileSync(weights, copy)))
    rmSync(copy)
    synced.push(await seconds(() => copyToDisk(weights, copy)))
    rmSync(copy)
    ours.push(await seconds(() => convertAdapter(source, { to: 'gguf', base: model, out })))
    if (readFileSync(out).subarray(0, 4).toString() !== 'GGUF') throw new Error('no GGUF file')
    rmSync(out)
  }
  const megabytes = (statSync(weights).size / 1e6).toFixed(0)
  console.log(
    `PEFT to GGUF, ${megabytes} MB: ${shown(ours)} in a running program; as a command ${shown(commands)}, ${rss} MB`,
  )
  const ratio = (others) => `lowrank ${(median(ours) / median(others)).toFixed(2)} x`
  // lowrank writes its file to the disk before it renames it, as cp with fsync does.
  console.log(`  cp: ${shown(copies)}; ${ratio(copies)}\n  cp and fsync: ${shown(synced)}; ${ratio(synced)}`)
}

function copyToDisk(from, to) {
  copyFileSync(from, to)
  const file = openSync(to, 'r+')
  fsyncSync(file)
  closeSync(file)
}

const PARTS = { resize: benchResize, combine: benchCombine, gguf: benchGguf }
console.log(`${cpus().length} × ${cpus()[0].model}, Node ${process.version}, load ${loadavg()[0].toFixed(1)}`)
try {
  for (const [name, part] of Object.entries(PARTS)) if (values.part === undefined || values.part === name) await part()
} finally {
  disposeKernels()
  rmSync(folder, { recursive: true, force: true })
}
