// lowrank's side of the training benchmark: the graph and the engine of training in this thread, one step per request.
// It speaks JSON lines like peer.py. --kind says what is trained: text, labels of texts, or labels of pictures. It uses
// internal modules because `train` cannot wait between two steps. --products measures only the products by the model's
// weights in a step, forward and backward, each with all rows.
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { Random } from '../../dist/core/base/random.js'
import { NodeDirectory } from '../../dist/files/io/node/files.js'
import { findLinears } from '../../dist/model/match/linears.js'
import { matchTargets } from '../../dist/model/match/match.js'
import { blocksFor, chooseCopies, sessionMemory } from '../../dist/model/memory.js'
import { loadModel } from '../../dist/model/model-folder.js'
import { keepMapped, sessionModel } from '../../dist/model/session-model.js'
import { DataType } from '../../dist/onnx/format/tensors.js'
import { loadRuntime } from '../../dist/onnx/runtime/load.js'
import { resolveNodeRuntime } from '../../dist/onnx/runtime/node/runtime.js'
import { Builder } from '../../dist/onnx/view/builder.js'
import { Graph } from '../../dist/onnx/view/graph.js'
import { valueInfo } from '../../dist/onnx/view/value-info.js'
import { TrainEngine } from '../../dist/train/engine/engine.js'
import { buildTrainingGraph } from '../../dist/train/graph/training-graph.js'
import { loadTask } from '../../dist/train/tasks/tasks.js'

const {
  values: options,
  positionals: [folder],
} = parseArgs({
  allowPositionals: true,
  options: {
    batch: { type: 'string', default: '8' },
    sequence: { type: 'string', default: '128' },
    threads: { type: 'string', default: '2' },
    rank: { type: 'string', default: '8' },
    kind: { type: 'string', default: 'causal-lm' },
    // The size of the model decides, as in a run.
    memory: { type: 'string', default: 'auto' },
    products: { type: 'boolean', default: false },
    profile: { type: 'string' },
    cpu: { type: 'boolean', default: false },
  },
})
const [batch, sequence, threads, rank] = [options.batch, options.sequence, options.threads, options.rank].map(Number)

// The last argument loads the runtime as a worker does.
const runtime = await loadRuntime(resolveNodeRuntime(), undefined, undefined, true)
const model = await loadModel(new NodeDirectory(folder), { runtime })
const byDefault = chooseCopies(sessionMemory(model.onnx, false), [])
const copiedBytes = { auto: byDefault, low: 0, fast: Number.POSITIVE_INFINITY }[options.memory]
const labels = Array.from({ length: batch }, (_, i) => `label ${i % 2}`)
/** Makes a batch of each kind from the ids, which are the same for all contestants. */
const KINDS = {
  'causal-lm': (inputIds) => ({ inputIds, labels: inputIds }),
  'text-classification': (inputIds, i) => ({
    inputIds,
    tokenTypeIds: new Int32Array(sequence),
    label: labels[i],
    where: 'bench',
  }),
  'image-classification': (_, i) => ({
    pixels: Uint8Array.from({ length: 3 * model.config.image_size ** 2 }, (_, j) => (j * 31 + i * 7) % 256),
    label: labels[i],
    where: 'bench',
  }),
}
const examplesOf = (inputIds) =>
  Array.from({ length: batch }, (_, i) =>
    KINDS[options.kind](Int32Array.from(inputIds.slice(i * sequence, (i + 1) * sequence)), i),
  )
const kind = await loadTask(options.kind)
const task = kind.open(model, examplesOf(new Int32Array(batch * sequence)))
const heads = new Set(task.head?.tensors.map(({ name }) => name.replace(/\.weight$/, '')))
const linears = matchTargets(findLinears(new Graph(model.onnx.proto)), { targetModules: 'all-linear' })
const layers = linears
  .map(({ name, d, k }) => ({ name: task.moduleName?.(name) ?? name, d, k, rank, scaling: 2 }))
  .filter(({ name }) => !heads.has(name))
function startOfA(name, length, k) {
  const random = new Random(0, name)
  const bound = 1 / Math.sqrt(k)
  return Float32Array.from({ length }, () => (2 * random.uniform() - 1) * bound)
}

/** Makes a graph that multiplies rows by each weight, and the result by the transposed weight, with its feeds. */
async function openProducts() {
  const graph = new Graph(model.onnx.proto)
  const isFloat = ({ form, weight }) =>
    ['MatMul', 'Gemm'].includes(form.name) && graph.initializers.get(weight)?.dataType === DataType.FLOAT
  const found = new Map(findLinears(graph).flatMap((linear) => (isFloat(linear) ? [[linear.node, linear]] : [])))
  Object.assign(graph, { nodes: [], inputs: [], outputs: [], valueInfo: [] })
  graph.invalidate()
  const g = new Builder(graph, 'products')
  const rows = batch * sequence
  const feeds = {}
  const sums = new Map()
  let flops = 0
  for (const { weight, k, d, fused, transposed } of found.values()) {
    const x = `rows of ${k}`
    feeds[x] ??= { type: 'float32', data: startOfA(x, rows * k, k), dims: [rows, k] }
    const y = g.op('Gemm', [x, weight], { transB: transposed ? 1 : 0 })
    const row = g.slice(g.op('Gemm', [y, weight], { transB: transposed ? 0 : 1 }), 0, 1, 0)
    sums.set(k, sums.has(k) ? g.add(sums.get(k), row) : row)
    flops += 4 * rows * k * (fused?.width ?? d)
  }
  graph.inputs = Object.entries(feeds).map(([name, { dims }]) => valueInfo(name, DataType.FLOAT, dims))
  graph.outputs = [...sums.values()].map((name) => valueInfo(name, DataType.FLOAT))
  graph.prune()
  const proto = graph.toModel()
  const session = await runtime.createSession(await sessionModel(model.onnx, keepMapped(proto, copiedBytes)), {
    threads,
  })
  return { run: () => session.run(feeds), gigaflops: flops / 1e9 }
}

async function openStep() {
  const graph = await buildTrainingGraph(model.onnx, runtime, task, {
    layers,
    tokens: batch * sequence,
    ...blocksFor(sequence),
  })
  const engine = new TrainEngine(runtime)
  const { id: session } = await engine.openSession(await graph.sessionModel(undefined, copiedBytes), {
    threads,
    ...(options.profile === undefined ? {} : { profilePrefix: options.profile }),
  })
  const zeros = () => graph.parameters.map(({ shape }) => new Float32Array(shape.reduce((a, b) => a * b, 1)))
  const parameters = zeros()
  graph.parameters.forEach(({ name, shape: [, k] }, i) => {
    if (!name.endsWith('.B') && k !== undefined) {
      parameters[i].set(startOfA(name.slice(0, -2), parameters[i].length, k))
    }
  })
  const optimizer = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 }
  engine.start(
    { parameters: graph.parameters, optimizer, maxGradNorm: 1 },
    { parameters, firstMoments: zeros(), secondMoments: zeros(), updates: 0 },
  )
  let feeds
  return {
    batch(inputIds) {
      const examples = examplesOf(inputIds)
      feeds = graph.feeds(task.collate(examples, sequence), { normalizer: task.normalizer(examples) })
    },
    run: async () => {
      const { loss } = await engine.accumulate({ session, feeds, loss: graph.loss })
      return { loss, gradientNorm: await engine.update(loss, 1e-3) }
    },
    close: () => engine.dispose(),
  }
}

/** Milliseconds on the clock, or with --cpu of processor time, which a busy machine changes less. */
function now() {
  if (!options.cpu) return performance.now()
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}

const { batch: takeBatch, run, close, gigaflops } = await (options.products ? openProducts() : openStep())

async function step() {
  const started = now()
  const { loss } = await run()
  return { millis: now() - started, loss }
}

function memory() {
  const status = readFileSync('/proc/self/status', 'utf8')
  const bytes = (name) => Number(new RegExp(`${name}:\\s+(\\d+)`).exec(status)[1]) * 1024
  return { peakRssBytes: bytes('VmHWM'), anonymous: bytes('RssAnon'), mapped: bytes('RssFile') }
}

for await (const line of createInterface({ input: process.stdin })) {
  const question = JSON.parse(line)
  let answer = { gigaflops }
  if (question.do === 'batch') takeBatch?.(question.inputIds)
  else {
    const results = []
    for (let i = 0; i < (question.steps ?? 1); i++) results.push(await step())
    const millis = results.map((result) => result.millis).toSorted((a, b) => a - b)[results.length >> 1]
    answer = { millis, loss: results[results.length - 1].loss, ...memory() }
  }
  console.log(JSON.stringify(answer))
}
await close?.()
