// Compares a training step on quantized weights with one on float32: the time, and the peak memory of each process.
// They take turns, step by step.
//
//     npm run build && node bench/quantized/train-step.mjs FLOAT QUANTIZED [--batch 1] [--sequence 256] [--steps 10] [--threads 2] [--fast] [--cpu]
//
// FLOAT and QUANTIZED: folders with onnx/model.onnx of the same model, such as smollm2-fp32 and smollm2-q4-32 or
// smollm2-fp16 of scripts/golden/graph_table.py. --fast repacks all weights, as `train --memory fast` does. --cpu
// counts the time that the processor worked, with one thread; use it on a busy machine.
import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { cpus, loadavg } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    batch: { type: 'string', default: '1' },
    sequence: { type: 'string', default: '256' },
    steps: { type: 'string', default: '10' },
    threads: { type: 'string', default: String(Math.min(2, cpus().length)) },
    rank: { type: 'string', default: '8' },
    fast: { type: 'boolean', default: false },
    cpu: { type: 'boolean', default: false },
  },
})
if (positionals.length !== 2) throw new Error('usage: node bench/quantized/train-step.mjs FLOAT QUANTIZED …')
const threads = values.cpu ? '1' : values.threads
const WARM_UP_STEPS = 3
/** Thread pools spin for a while after their work. */
const PAUSE_MS = 60

const script = join(dirname(fileURLToPath(import.meta.url)), '..', 'train-step', 'contestant.mjs')
const { vocab_size: vocabulary } = JSON.parse(readFileSync(join(positionals[0], 'config.json'), 'utf8'))
const length = Number(values.batch) * Number(values.sequence)
const inputIds = Array.from({ length }, (_, i) => 3 + ((i * 7919) % (vocabulary - 3)))
const median = (numbers) => numbers.toSorted((a, b) => a - b)[numbers.length >> 1]

function contestant(folder) {
  const sizes = ['batch', 'sequence', 'rank'].flatMap((name) => [`--${name}`, values[name]])
  const flags = [...sizes, '--threads', threads, ...(values.cpu ? ['--cpu'] : [])]
  if (values.fast) flags.push('--memory', 'fast')
  const child = spawn(process.execPath, [script, folder, ...flags], { stdio: ['pipe', 'pipe', 'inherit'] })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const ask = async (question) => {
    child.stdin.write(`${JSON.stringify(question)}\n`)
    const { value, done } = await lines.next()
    if (done) throw new Error(`${folder}: no answer`)
    return JSON.parse(value)
  }
  return { folder, ask, close: () => child.stdin.end() }
}

const both = positionals.map(contestant)
for (const { ask } of both) {
  await ask({ do: 'batch', inputIds })
  await ask({ do: 'step', steps: WARM_UP_STEPS })
}
const times = both.map(() => [])
const peaks = []
for (let step = 0; step < Number(values.steps); step++) {
  for (const [i, { ask }] of both.entries()) {
    await new Promise((done) => setTimeout(done, PAUSE_MS))
    const { millis, peakRssBytes } = await ask({ do: 'step' })
    times[i].push(millis)
    peaks[i] = peakRssBytes
  }
}
console.log(
  `${values.batch} × ${values.sequence}, ${threads} threads, ${cpus()[0].model}, load ${loadavg()[0].toFixed(1)}`,
)
for (const [i, { folder, close }] of both.entries()) {
  const [ms, megabytes] = [median(times[i]).toFixed(0).padStart(6), (peaks[i] / 1e6).toFixed(0).padStart(6)]
  const ratio = median(times[i].map((time, step) => time / times[0][step]))
  const memory = peaks[i] / peaks[0]
  console.log(`  ${folder}  ${ms} ms, ${ratio.toFixed(2)} × time  ${megabytes} MB, ${memory.toFixed(2)} × memory`)
  close()
}
