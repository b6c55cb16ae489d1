// Measures what adapters cost in a session: an adapter of rank 16 on q and v, or on all linear layers, compared with
// the base, for one more token and for 256 tokens at once; eight adapters in a batch compared with one; and the same
// adapter merged as branches beside quantized weights.
//
//     npm run build && node bench/quantized/sessions.mjs MODEL [--dtype fp32,q4] [--rounds 5] [--steps 8] [--threads 2] [--rank 16] [--accuracy-level 4] [--cpu]
//
// MODEL: a folder for transformers.js whose graph has a cache, such as SmolLM2-135M. The adapters have random values.
// Entries take turns, so that changes of the machine's speed affect all of them. A round times several steps of each
// entry; ratios are within a round, and the first round does not count. --cpu counts the time that the processor
// worked, with one thread; use it on a busy machine. The place of a session's memory changes its times by a few
// percent, so run it several times.
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { LoraAdapter, loadModel, merge, openSession } from '../../dist/api/node.js'
import { findLinears } from '../../dist/model/match/linears.js'
import { Graph } from '../../dist/onnx/view/graph.js'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    dtype: { type: 'string', default: 'fp32,q4' },
    rounds: { type: 'string', default: '5' },
    steps: { type: 'string', default: '8' },
    threads: { type: 'string', default: String(Math.min(2, cpus().length)) },
    rank: { type: 'string', default: '16' },
    'accuracy-level': { type: 'string' },
    cpu: { type: 'boolean', default: false },
  },
})
const [folder] = positionals
if (folder === undefined) throw new Error('usage: node bench/quantized/sessions.mjs MODEL [--dtype fp32,q4] …')
const [rounds, steps, rank] = ['rounds', 'steps', 'rank'].map((name) => Number(values[name]))
// ONNX Runtime's threads spin while they wait, which would count as work.
const threads = values.cpu ? 1 : Number(values.threads)
const PAST = 64
const BATCH = 8

let state = 1
/** Makes noise that is small enough to keep products finite. */
function noise(length) {
  const result = new Float32Array(length)
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0
    result[i] = (0.01 * state) / 2 ** 31
  }
  return result
}

function makeAdapter(layers) {
  const adapter = new LoraAdapter({ rank, alpha: rank })
  for (const { name, d, k } of layers) {
    adapter.addFactors(name, { data: noise(rank * k), shape: [rank, k] }, { data: noise(d * rank), shape: [d, rank] })
  }
  return adapter
}

const ids = (batch, length) => ({
  type: 'int64',
  data: BigInt64Array.from({ length: batch * length }, (_, i) => BigInt(5 + (i % 100))),
  dims: [batch, length],
})

/** Makes feeds of one more token after `PAST` tokens. */
async function growing(session, batch) {
  const outputs = await session.run({ input_ids: ids(batch, PAST) })
  const past = Object.entries(outputs).filter(([name]) => name.startsWith('present'))
  return {
    input_ids: ids(batch, 1),
    ...Object.fromEntries(past.map(([name, tensor]) => [name.replace('present', 'past_key_values'), tensor])),
  }
}

/** Milliseconds since some moment. */
function now() {
  if (!values.cpu) return performance.now()
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}

const median = (numbers) => numbers.toSorted((a, b) => a - b)[numbers.length >> 1]
const spread = (numbers) => `${Math.min(...numbers).toFixed(2)}–${Math.max(...numbers).toFixed(2)}`

/** Returns the milliseconds of each entry, round by round. */
async function measure(entries) {
  const times = entries.map(() => [])
  for (let round = 0; round <= rounds; round++) {
    for (const [i, { session, feeds, adapter, count = steps }] of entries.entries()) {
      const startedAt = now()
      for (let step = 0; step < count; step++) await session.run(feeds, { adapter, outputNames: ['logits'] })
      if (round > 0) times[i].push((now() - startedAt) / count)
    }
  }
  return times
}

async function compare(title, entries) {
  const times = await measure(entries)
  console.log(`\n${title}`)
  for (const [i, { name }] of entries.entries()) {
    const ratios = times[i].map((ms, round) => ms / times[0][round])
    console.log(
      `  ${name.padEnd(34)}${median(times[i]).toFixed(2).padStart(9)} ms  ${median(ratios).toFixed(2)} × (${spread(ratios)})`,
    )
  }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`
const SUFFIXES = { fp32: '', fp16: '_fp16', q8: '_quantized', q4: '_q4' }

/** Returns the bytes of a graph and its data files. */
function sizeOf(dtype) {
  const onnx = join(folder, 'onnx')
  const graphFiles = readdirSync(onnx).filter((name) => name.startsWith(`model${SUFFIXES[dtype] ?? `_${dtype}`}.onnx`))
  return graphFiles.reduce((sum, name) => sum + statSync(join(onnx, name)).size, 0)
}

async function benchDtype(dtype) {
  const out = mkdtempSync(join(tmpdir(), 'lowrank-sessions-'))
  const model = await loadModel(folder, { dtype })
  const proj = findLinears(new Graph(model.onnx.proto)).filter(({ name }) => /_proj$/.test(name))
  const [some, all] = [proj.filter(({ name }) => /\b[qv]_proj$/.test(name)), proj].map(makeAdapter)
  const many = Object.fromEntries(Array.from({ length: BATCH }, (_, i) => [`a${i}`, i === 0 ? all : makeAdapter(proj)]))
  const level = values['accuracy-level']
  const options = { threads, ...(level !== undefined && { accuracyLevel: Number(level) }) }
  const base = await openSession(model, options)
  const onSome = await openSession(model, { ...options, adapters: { some } })
  const onAll = await openSession(model, { ...options, adapters: many })
  const isQuantized = dtype !== 'fp32' && dtype !== 'fp16'
  let merged
  if (isQuantized) {
    await merge({ base: folder, dtype, adapters: [all], out: join(out, 'merged') })
    merged = await loadModel(join(out, 'merged'), { dtype })
  }
  const branches = merged && (await openSession(merged, options))
  const factors = [some, all].map((adapter) => {
    const parts = adapter.parts('linear')
    return parts.reduce((sum, { weightA, weightB }) => sum + 4 * (weightA.data.length + weightB.data.length), 0)
  })
  console.log(
    `\n== ${dtype}: ${factors.map(megabytes).join(' and ')} of factors, ${megabytes(sizeOf(dtype))} of graph and weights`,
  )
  const token = await growing(base, 1)
  const whole = { input_ids: ids(1, 256) }
  const entriesOf = (feeds, count) => [
    { name: 'base', session: base, feeds, adapter: null, count },
    { name: 'session, adapter on q and v', session: onSome, feeds, adapter: 'some', count },
    { name: 'session, adapter on all', session: onAll, feeds, adapter: 'a0', count },
    { name: 'session of all, no adapter', session: onAll, feeds, adapter: null, count },
    ...(branches === undefined
      ? []
      : [{ name: 'merged as branches, all', session: branches, feeds, adapter: null, count }]),
  ]
  await compare('one token behind 64', entriesOf(token, steps))
  await compare('1 × 256 tokens', entriesOf(whole, 1))
  const names = Object.keys(many)
  const batchOf = (feeds, count) => [
    { name: 'one adapter', session: onAll, feeds, adapter: 'a0', count },
    { name: `${BATCH} adapters`, session: onAll, feeds, adapter: names, count },
    { name: 'base', session: base, feeds, adapter: null, count },
  ]
  await compare(`${BATCH} × 16 tokens`, batchOf({ input_ids: ids(BATCH, 16) }, 2))
  await compare(`${BATCH} × 1 token behind 64`, batchOf(await growing(base, BATCH), Math.ceil(steps / 2)))
  for (const session of [base, onSome, onAll, branches]) await session?.dispose()
  for (const opened of [model, merged]) await opened?.close()
  rmSync(out, { recursive: true, force: true })
}

console.log(
  `${folder}, rank ${rank}, ${threads} threads, ${cpus().length} × ${cpus()[0].model}, Node ${process.version}, load ${loadavg()[0].toFixed(1)}`,
)
for (const dtype of values.dtype.split(',')) await benchDtype(dtype)
