// Compares pipelines of transformers.js with an adapter to its plain pipeline. All use the same graph file, prompt and
// threads, and write the likeliest token. Adapters with random values are on q and v, or on all linear layers. Each
// contestant is a separate process, and they take turns, text by text. Ratios are within a round. One more contestant
// only reads as many bytes as the weights have: nothing on the CPU can be faster.
//
//   npm run build && node bench/decode/pipelines.mjs --transformers DIR [--model models/union-3m] [--dtype fp32] [--tokens 60,200]
//     [--rounds 7] [--threads 2] [--rank 16] [--cpu]
//
// DIR is a folder in which `npm install @huggingface/transformers@4.3` was run. --cpu counts the time that the
// processor worked, with one thread. Use it on a busy machine.
import { fork } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { LoraAdapter, loadModel, saveAdapter } from '../../dist/api/node.js'
import { findLinears } from '../../dist/model/match/linears.js'
import { readGraph } from '../../dist/onnx/view/graph.js'

const here = dirname(fileURLToPath(import.meta.url))
const { values: options } = parseArgs({
  options: {
    transformers: { type: 'string' },
    model: { type: 'string', default: join(here, '..', '..', 'models', 'union-3m') },
    dtype: { type: 'string', default: 'fp32' },
    tokens: { type: 'string', default: '60,200' },
    rounds: { type: 'string', default: '7' },
    threads: { type: 'string', default: String(Math.min(2, cpus().length)) },
    rank: { type: 'string', default: '16' },
    cpu: { type: 'boolean', default: false },
  },
})
if (options.transformers === undefined) throw new Error('usage: node bench/decode/pipelines.mjs --transformers DIR …')
const [rounds, rank] = [Number(options.rounds), Number(options.rank)]
const lengths = options.tokens.split(',').map(Number)
// ONNX Runtime's threads spin while they wait, which would count as work.
const threads = options.cpu ? '1' : options.threads

/** Thread pools spin for a while after their work; the next contestant must not share a core with them. */
const PAUSE_MS = 60
const [PLAIN, READING] = ['plain pipeline', 'its weights, read once']

let state = 1
/** Makes noise that is small enough to keep the texts sensible. */
function noise(length) {
  const result = new Float32Array(length)
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0
    result[i] = (0.01 * state) / 2 ** 31
  }
  return result
}

/** Saves an adapter for the layers whose names match. */
async function makeAdapter(layers, modules, folder) {
  const adapter = new LoraAdapter({ rank, alpha: rank })
  for (const { name, d, k } of layers.filter((layer) => modules.test(layer.name))) {
    adapter.addFactors(name, { data: noise(rank * k), shape: [rank, k] }, { data: noise(d * rank), shape: [d, rank] })
  }
  await saveAdapter(adapter, folder)
  return folder
}

const scratch = mkdtempSync(join(tmpdir(), 'lowrank-pipelines-'))
const children = new Map()
try {
  const model = await loadModel(options.model, { dtype: options.dtype })
  const layers = findLinears(readGraph(model.onnx))
  const qv = await makeAdapter(layers, /\b[qv]_proj$/, join(scratch, 'qv'))
  const all = await makeAdapter(layers, /_proj$/, join(scratch, 'all'))
  await model.close()
  const contestants = {
    [PLAIN]: ['pipeline.mjs'],
    'with an adapter on q and v': ['pipeline.mjs', qv],
    'with one on all linear layers': ['pipeline.mjs', all],
    [READING]: ['reading.mjs'],
  }
  for (const [name, [file, ...more]] of Object.entries(contestants)) {
    const modelArguments = [
      resolve(options.model),
      options.dtype,
      String(lengths[0]),
      threads,
      '1',
      resolve(options.transformers),
    ]
    const child = fork(join(here, file), [...modelArguments, ...more])
    children.set(name, child)
    await once(child) // ready
  }
  const device = `${threads} threads, ${cpus()[0].model}, load ${loadavg()[0].toFixed(1)}`
  console.log(`${options.model}, ${options.dtype}, rank ${rank}, ${device}`)
  for (const tokens of lengths) await compare(tokens)
} finally {
  for (const child of children.values()) if (child.connected) child.disconnect()
  rmSync(scratch, { recursive: true, force: true })
}

async function compare(tokens) {
  const times = new Map([...children.keys()].map((name) => [name, []]))
  const outside = new Map([...children.keys()].map((name) => [name, []]))
  for (let round = 0; round <= rounds; round++) {
    for (const [name, child] of children) {
      await new Promise((done) => setTimeout(done, PAUSE_MS))
      child.send(tokens)
      const result = await once(child)
      if (round === 0) continue // the first round warms up
      times.get(name).push((1000 * (options.cpu ? result.cpuSeconds : result.seconds)) / result.tokens)
      outside.get(name).push(1 - result.inside / result.seconds)
    }
  }
  console.log(`\n${tokens} tokens${options.cpu ? ', processor time' : ''}`)
  for (const [name, ms] of times) {
    const ratios = times.get(PLAIN).map((plain, round) => plain / ms[round])
    const others = name === READING ? '' : `, ${(100 * median(outside.get(name))).toFixed(1)} % outside ONNX Runtime`
    const spread = `${Math.min(...ratios).toFixed(2)}–${Math.max(...ratios).toFixed(2)}`
    console.log(
      `  ${name.padEnd(30)}${median(ms).toFixed(2).padStart(8)} ms a token  ${median(ratios).toFixed(2)} × the plain one’s speed (${spread})${others}`,
    )
  }
}

function median(numbers) {
  return numbers.toSorted((a, b) => a - b)[numbers.length >> 1]
}

function once(child) {
  return new Promise((done, fail) => {
    const ended = (code) => fail(new Error(`a contestant ended with code ${code}`))
    child.once('exit', ended)
    child.once('message', (message) => {
      child.off('exit', ended)
      done(message)
    })
  })
}
