// Our side of the training benchmark: the trainer's own graph and engine in this thread, one step per request. JSON lines, as
// peer.py. Internal modules are used because the public trainer cannot be made to wait between two steps.
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { Random } from '../../dist/base/random.js'
import { loadOnnx } from '../../dist/formats/onnx/model.js'
import { findLinears } from '../../dist/graph/match/linears.js'
import { matchTargets } from '../../dist/graph/match/match.js'
import { buildTrainingGraph } from '../../dist/graph/training/training-graph.js'
import { Graph } from '../../dist/graph/view/graph.js'
import { NodeDirectory } from '../../dist/io/node/files.js'
import { loadNodeRuntime } from '../../dist/runtime/node/runtime.js'
import { causalLm } from '../../dist/tasks/causal-lm.js'
import { TrainEngine } from '../../dist/train/engine.js'

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
    'low-memory': { type: 'boolean', default: false },
    profile: { type: 'string' },
    cpu: { type: 'boolean', default: false },
  },
})
const [batch, sequence, threads, rank] = [options.batch, options.sequence, options.threads, options.rank].map(Number)

const runtime = await loadNodeRuntime()
const model = await loadOnnx(new NodeDirectory(folder), 'onnx/model.onnx')
const linears = matchTargets(findLinears(new Graph(model.proto)), { targetModules: 'all-linear' })
const layers = linears.map(({ name, d, k }) => ({ name, d, k, rank, scaling: 2 }))
const task = causalLm.open({ onnx: model, padTokenId: 0 }, [])
const graph = await buildTrainingGraph(model, runtime, task, { layers })
const engine = new TrainEngine(runtime)
const { id: session } = await engine.openSession(await graph.sessionModel(), {
  threads,
  lowMemory: options['low-memory'],
  ...(options.profile === undefined ? {} : { profilePrefix: options.profile }),
})
const zeros = () => graph.parameters.map(({ shape: [rows, columns] }) => new Float32Array(rows * columns))
const parameters = zeros()
graph.parameters.forEach(({ name, shape: [, k] }, i) => {
  if (name.endsWith('.B')) return
  const random = new Random(0, name.slice(0, -2))
  const bound = 1 / Math.sqrt(k)
  for (let j = 0; j < parameters[i].length; j++) parameters[i][j] = (2 * random.uniform() - 1) * bound
})
const optimizer = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 }
engine.start(
  { parameters: graph.parameters, optimizer, maxGradNorm: 1 },
  { parameters, firstMoments: zeros(), secondMoments: zeros(), updates: 0 },
)

/** Milliseconds since some moment; with --cpu those in which the processor worked, which one thread makes comparable on a busy machine. */
function now() {
  if (!options.cpu) return performance.now()
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}

let feeds
async function step() {
  const started = now()
  const { loss } = await engine.step([{ session, feeds, loss: graph.loss }], 1e-3)
  return { millis: now() - started, loss }
}

function peakRssBytes() {
  return Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024
}

for await (const line of createInterface({ input: process.stdin })) {
  const question = JSON.parse(line)
  let answer = {}
  if (question.do === 'batch') {
    const rows = Array.from({ length: batch }, (_, i) =>
      Int32Array.from(question.inputIds.slice(i * sequence, (i + 1) * sequence)),
    )
    const examples = rows.map((inputIds) => ({ inputIds, labels: inputIds }))
    feeds = graph.feeds(task.collate(examples, sequence), { normalizer: task.normalizer(examples) })
  } else {
    const results = []
    for (let i = 0; i < (question.steps ?? 1); i++) results.push(await step())
    const millis = results.map((result) => result.millis).toSorted((a, b) => a - b)[results.length >> 1]
    answer = { millis, loss: results[results.length - 1].loss, peakRssBytes: peakRssBytes() }
  }
  console.log(JSON.stringify(answer))
}
await engine.dispose()
