// Compares a LoRA training step here with PEFT on PyTorch: the same model, batch, rank and threads. Each contestant is
// a separate process, and they take turns, step by step, so that changes of the machine's speed affect all of them.
//
//   node bench/train-step/run.mjs [--python python3] [--models out/bench-models] [--only union-3m,llama-6x384,llama-135m] [--steps 20]
//   node bench/train-step/run.mjs --only gemma3-270m,llama-600m,llama-1100m --models /tmp/bench-models --steps 5
//   node bench/train-step/run.mjs --only qwen3_5-800m,qwen3_5-800m-1x1024,qwen3_5-800m-1x2048 --pair --steps 3 --models /tmp/bench-models
//   node bench/train-step/run.mjs --only minilm-8x128,minilm-32x64,vit-small --graphs DIR
//
// --graphs: the folder that scripts/golden/graph_table.py makes, with minilm-fp32 and minilm-source. The Python needs
// requirements.txt, and for Qwen3.5 mobius-onnx 0.1; without it only lowrank is measured. Peak memory is the
// high-water mark of each process; beside it stands what the process holds after the last step, anonymous and mapped
// from files. Large models and long texts run one contestant after the other, so that only one is in memory. With
// --pair, only the default and PyTorch run, in turns if both fit into memory, since the machine may change. --cpu
// counts the time that the processor worked, with one thread; use it on a busy machine.
//
// "products" are only the products by a text model's weights in a step, forward and backward: a graph in ONNX Runtime,
// with weights repacked or as they are, and the same in PyTorch. No step can be faster. --profile prints the ten kinds
// of operators that take most of a step with --memory low, and slows the step down.
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { cpus, tmpdir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const here = dirname(fileURLToPath(import.meta.url))
const root = join(here, '..', '..')
const { values: options } = parseArgs({
  options: {
    python: { type: 'string', default: 'python3' },
    models: { type: 'string', default: join(root, 'out', 'bench-models') },
    only: { type: 'string', default: 'union-3m,llama-6x384,llama-135m' },
    steps: { type: 'string', default: '20' },
    threads: { type: 'string', default: String(Math.min(2, cpus().length)) },
    rank: { type: 'string', default: '8' },
    graphs: { type: 'string', default: '' },
    cpu: { type: 'boolean', default: false },
    profile: { type: 'boolean', default: false },
    pair: { type: 'boolean', default: false },
  },
})

/** Two contestants do not fit into 24 GB. With 2,048 tokens, PyTorch does not either without gradient checkpointing. */
const QWEN3_5_LONG = { batch: 1, vocabulary: 248320, isLarge: true, model: 'qwen3_5-800m', isAlone: true }
const CASES = {
  'union-3m': { batch: 8, sequence: 128, vocabulary: 2048, folder: join(root, 'models', 'union-3m') },
  'llama-6x384': { batch: 8, sequence: 128, vocabulary: 8192 },
  'llama-135m': { batch: 1, sequence: 256, vocabulary: 49152 },
  'llama-135m-1x4096': { batch: 1, sequence: 4096, vocabulary: 49152, isLarge: true, model: 'llama-135m' },
  'gemma3-270m': { batch: 1, sequence: 256, vocabulary: 262144, isLarge: true },
  'llama-600m': { batch: 1, sequence: 256, vocabulary: 151936, isLarge: true },
  'llama-600m-4x256': { batch: 4, sequence: 256, vocabulary: 151936, isLarge: true, model: 'llama-600m' },
  'llama-1100m': { batch: 1, sequence: 256, vocabulary: 32000, isLarge: true },
  'qwen3_5-800m': { batch: 1, sequence: 256, vocabulary: 248320, isLarge: true },
  'qwen3_5-800m-1x1024': { ...QWEN3_5_LONG, sequence: 1024 },
  'qwen3_5-800m-1x2048': { ...QWEN3_5_LONG, sequence: 2048, checkpoints: true },
  'qwen3_5-4-layers': { batch: 1, sequence: 256, vocabulary: 8192 },
  'minilm-8x128': { ...minilm(), batch: 8, sequence: 128 },
  'minilm-32x64': { ...minilm(), batch: 32, sequence: 64 },
  'vit-small': { batch: 8, sequence: 1, vocabulary: 8, kind: 'image-classification' },
}
function minilm() {
  const [folder, checkpoint] = ['minilm-fp32', 'minilm-source'].map((name) => resolve(options.graphs, name))
  return { folder, checkpoint, vocabulary: 30522, kind: 'text-classification' }
}

const PRODUCTS = ['products, copied weights', 'products']

/** A step on a long text takes minutes, so it gets a single warm-up. */
const warmUpSteps = (sequence) => (sequence >= 1024 ? 1 : 3)
/** Thread pools spin for a while after their work; the next contestant must not share a core with them. */
const PAUSE_MS = 60

const pause = (ms) => new Promise((done) => setTimeout(done, ms))
const median = (numbers) => numbers.toSorted((a, b) => a - b)[numbers.length >> 1]
/** The spread of the middle half of the numbers. */
const spread = (numbers) => {
  const sorted = numbers.toSorted((a, b) => a - b)
  return sorted[Math.floor(0.75 * (sorted.length - 1))] - sorted[Math.floor(0.25 * (sorted.length - 1))]
}
const megabytes = (bytes) => `${Math.round(bytes / 1e6)} MB`

/** A child process that answers one JSON line for each JSON line. */
function contestant(name, command, args) {
  const child = spawn(command, args, {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, PYTHONWARNINGS: 'ignore' },
  })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  child.on('exit', (code) => code && console.error(`${name} ended with exit code ${code}`))
  return {
    name,
    async ask(question) {
      child.stdin.write(`${JSON.stringify(question)}\n`)
      const { value, done } = await lines.next()
      if (done) throw new Error(`${name} gave no answer`)
      return JSON.parse(value)
    },
    /** Waits for the process to end, so that its memory is free. */
    async close() {
      const ended = once(child, 'exit')
      child.stdin.end()
      await ended
    },
  }
}

const hasPeer = spawnSync(options.python, ['-c', 'import peft, torch, transformers']).status === 0
console.log(
  `${cpus()[0].model}, ${cpus().length} cores, Node ${process.version}, ${options.threads} threads, rank ${options.rank}, all linears`,
)
if (!hasPeer) console.log(`${options.python} has no peft, torch and transformers: no peer in this run`)

for (const name of options.only.split(',')) {
  const { batch, sequence, vocabulary, kind = 'causal-lm', isLarge = false, model = name } = CASES[name]
  const { isAlone = isLarge && !options.pair, checkpoints = false } = CASES[name]
  const { folder = resolve(options.models, model) } = CASES[name]
  const { checkpoint = folder } = CASES[name]
  if (!existsSync(join(folder, 'onnx', 'model.onnx'))) {
    if (!hasPeer) continue
    spawnSync(options.python, [join(here, 'peer.py'), 'make', model, folder], { stdio: 'inherit' })
  }
  const threads = options.cpu ? 1 : options.threads
  const shape = ['--batch', batch, '--sequence', sequence, '--threads', threads, '--rank', options.rank].map(String)
  shape.push('--kind', kind, ...(options.cpu ? ['--cpu'] : []))
  const ours = (label, ...flags) =>
    contestant(label, process.execPath, [join(here, 'contestant.mjs'), folder, ...shape, ...flags])
  const peer = (attention) =>
    contestant(`torch ${attention}`, options.python, [
      ...[join(here, 'peer.py'), 'serve', checkpoint, attention, ...shape],
      ...(checkpoints ? ['--checkpoints'] : []),
    ])
  const profile = join(tmpdir(), `lowrank-step-${process.pid}-${name}`)
  let starts = [
    () => ours('lowrank --memory fast', '--memory', 'fast'),
    () => ours('lowrank --memory low', '--memory', 'low', ...(options.profile ? ['--profile', profile] : [])),
    () => ours('lowrank'),
  ]
  if (kind === 'causal-lm') {
    starts.push(
      () => ours(PRODUCTS[0], '--products', '--memory', 'fast'),
      () => ours(PRODUCTS[1], '--products', '--memory', 'low'),
    )
  }
  if (options.pair) starts = [() => ours('lowrank')]
  const count = starts.length
  if (hasPeer) starts.push(...(isLarge || options.pair ? [] : [() => peer('eager')]), () => peer('sdpa'))

  console.log(`\n${name}, batch ${batch} × ${sequence}${checkpoints ? ', PyTorch with gradient checkpointing' : ''}`)
  // A multiplicative generator, simple enough to give the same ids in each language.
  let state = 12345
  const inputIds = Array.from({ length: batch * sequence }, () => {
    state = (state * 16807) % 2147483647
    return 3 + (state % (vocabulary - 3))
  })
  const millis = new Map()
  const last = new Map()
  const contestants = []
  let ofTorch
  for (const group of isAlone ? starts.map((start) => [start]) : [starts]) {
    const running = group.map((start) => start())
    for (const contestant of running) {
      millis.set(contestant, [])
      if (contestant.name === 'torch sdpa') {
        const { gflops, version } = await contestant.ask({ do: 'sgemm' })
        console.log(`  sgemm of torch ${version}: ${Math.round(gflops)} GFLOP/s`)
      }
      last.set(contestant, await contestant.ask({ do: 'batch', inputIds }))
      await contestant.ask({ do: 'step', steps: warmUpSteps(sequence) })
    }
    for (let step = 0; step < Number(options.steps); step++) {
      for (const contestant of running) {
        await pause(PAUSE_MS)
        const answer = await contestant.ask({ do: 'step' })
        millis.get(contestant).push(answer.millis)
        last.set(contestant, { ...last.get(contestant), ...answer })
      }
    }
    for (const contestant of running) {
      if (contestant.name === 'torch sdpa' && kind === 'causal-lm')
        ofTorch = (await contestant.ask({ do: 'products' })).millis
      await contestant.close()
    }
    contestants.push(...running)
  }
  const medians = new Map(contestants.map((contestant) => [contestant, median(millis.get(contestant))]))
  const peers = contestants.slice(count)
  const best = Math.min(...peers.map((contestant) => medians.get(contestant)))
  const leanest = Math.min(...peers.map((contestant) => last.get(contestant).peakRssBytes))
  for (const contestant of contestants) {
    const { peakRssBytes, anonymous, mapped, loss } = last.get(contestant)
    const isStep = !PRODUCTS.includes(contestant.name)
    const ratios = [
      ...(peers.length === 0 ? [] : [`${(medians.get(contestant) / best).toFixed(2)} × time`]),
      ...(peers.length === 0 || !isStep ? [] : [`${(peakRssBytes / leanest).toFixed(2)} × memory`]),
    ]
    console.log(
      `  ${contestant.name.padEnd(24)} ${medians.get(contestant).toFixed(1).padStart(8)} ms/step (± ${(spread(millis.get(contestant)) / 2).toFixed(1)})  ${megabytes(peakRssBytes).padStart(8)} peak (${megabytes(anonymous)} own, ${megabytes(mapped)} mapped)  ${isStep ? `loss ${loss.toFixed(4)}  ` : ''}${ratios.join(', ')}${peers.length > 0 ? ' of torch’s better' : ''}`,
    )
  }
  if (options.pair) continue
  const [fast, lean, plain] = contestants.map((contestant) => medians.get(contestant))
  console.log(
    `  --memory low takes ${(lean / fast).toFixed(2)} ×, the default ${(plain / fast).toFixed(2)} × the time of --memory fast`,
  )
  const [packed, mapped] = PRODUCTS.map((label) => contestants.find((contestant) => contestant.name === label))
  if (packed !== undefined) {
    const { gigaflops } = last.get(packed)
    const rate = (ms) => `${ms.toFixed(0)} ms, ${((1000 * gigaflops) / ms).toFixed(0)} GFLOP/s`
    const [copied, inPlace] = [packed, mapped].map((contestant) => medians.get(contestant))
    console.log(
      `  products alone, ${gigaflops.toFixed(0)} GFLOP: ONNX Runtime ${rate(copied)} with copied weights, ${rate(inPlace)} without${ofTorch === undefined ? '' : `; torch ${rate(ofTorch)}`}\n  --memory fast takes ${(fast / copied).toFixed(2)} ×, --memory low ${(lean / inPlace).toFixed(2)} × the time of its products${peers.length === 0 ? '' : `; they are ${(copied / best).toFixed(2)} and ${(inPlace / best).toFixed(2)} of torch’s step`}`,
    )
  }
  if (options.profile) printProfile(profile, Number(options.steps))
}

/** Prints means of the last steps. Operators in the body of a Scan count by themselves, and not for the Scan. */
function printProfile(prefix, steps) {
  const file = readdirSync(dirname(prefix)).find((entry) => entry.startsWith(basename(prefix)))
  const all = JSON.parse(readFileSync(join(dirname(prefix), file), 'utf8'))
  rmSync(join(dirname(prefix), file))
  const started = all.filter(({ name }) => name === 'model_run').at(-steps).ts
  const events = all
    .filter(({ cat, name, ts }) => cat === 'Node' && name.endsWith('_kernel_time') && ts >= started)
    .toSorted((a, b) => a.ts - b.ts || b.dur - a.dur)
  const millis = new Map()
  const add = (kind, dur) => millis.set(kind, (millis.get(kind) ?? 0) + dur / 1000 / steps)
  let scan = { end: 0 }
  const isFactor = (shapes = []) =>
    shapes.some((shape) => Object.values(shape).some((dims) => dims.includes(Number(options.rank))))
  for (const { ts, dur, args } of events) {
    add(args.op_name === 'Gemm' && isFactor(args.input_type_shape) ? 'Gemm of factors' : args.op_name, dur)
    if (ts + dur <= scan.end) add('Scan', -dur)
    else if (args.op_name === 'Scan') scan = { end: ts + dur }
  }
  const total = [...millis.values()].reduce((sum, ms) => sum + ms, 0)
  for (const [kind, ms] of [...millis].toSorted((a, b) => b[1] - a[1]).slice(0, 10)) {
    console.log(`  ${kind.padEnd(24)} ${ms.toFixed(1).padStart(8)} ms  ${Math.round((100 * ms) / total)} %`)
  }
}
