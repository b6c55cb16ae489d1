// Compares writing text here and in transformers.js. Both use the same graph file, prompt and threads, and write the
// likeliest token. Each contestant is a separate process, and they take turns, text by text, so that changes of the
// machine's speed affect all of them. One contestant only reads as many bytes as the weights have: nothing on the CPU
// can be faster.
//
//   node bench/decode/run.mjs --model OUT --dtype q4 --transformers DIR --tokens 32 --pair   # OUT: see hybrid.py
//   node bench/decode/run.mjs [--model models/union-3m] [--dtype fp32] [--transformers DIR] [--tokens 100] [--rounds 5] [--threads 2] [--accuracy-level 4]
//
// DIR is a folder in which `npm install @huggingface/transformers@4.3` was run. Without it, only lowrank is measured.
// Build first. --pair leaves out the batch and the reading. After them, the other two are slower for a while.
// --accuracy-level applies to lowrank's products with MatMulNBits; the default is the level in the file.
import { fork } from 'node:child_process'
import { cpus } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const here = dirname(fileURLToPath(import.meta.url))
const BUNDLED = join(here, '..', '..', 'models', 'union-3m')
const { values: options } = parseArgs({
  options: {
    model: { type: 'string', default: BUNDLED },
    dtype: { type: 'string', default: 'fp32' },
    transformers: { type: 'string' },
    tokens: { type: 'string', default: '100' },
    rounds: { type: 'string', default: '5' },
    threads: { type: 'string', default: String(Math.min(2, cpus().length)) },
    'accuracy-level': { type: 'string', default: '' },
    pair: { type: 'boolean', default: false },
  },
})

/** Thread pools spin for a while after their work; the next contestant must not share a core with them. */
const PAUSE_MS = 60
const READING = 'its weights, read once'
const BATCH = 'lowrank, 8 texts in a batch'
const CONTESTANTS = {
  lowrank: ['lowrank.mjs', '1'],
  ...(!options.pair && { [BATCH]: ['lowrank.mjs', '8'], [READING]: ['reading.mjs', '1'] }),
  ...(options.transformers !== undefined && {
    'transformers.js': ['transformers-js.mjs', '1'],
  }),
}

const median = (numbers) => numbers.toSorted((a, b) => a - b)[numbers.length >> 1]
const pause = () => new Promise((done) => setTimeout(done, PAUSE_MS))

const children = new Map()
for (const [name, [file, texts]] of Object.entries(CONTESTANTS)) {
  const { model, dtype, transformers = '', tokens, threads } = options
  const from = transformers === '' ? '' : resolve(transformers)
  const child = fork(join(here, file), [resolve(model), dtype, tokens, threads, texts, from, options['accuracy-level']])
  await once(child) // ready
  children.set(name, child)
}

const results = new Map([...children.keys()].map((name) => [name, []]))
for (let round = 0; round <= Number(options.rounds); round++) {
  for (const [name, child] of children) {
    await pause()
    child.send('go')
    const result = await once(child)
    if (round > 0) results.get(name).push(result) // the first round warms up
  }
}
for (const child of children.values()) child.disconnect()

const rate = (name) => median(results.get(name).map(({ tokens, seconds }) => tokens / seconds))
const cpuOf = (name) => median(results.get(name).map(({ tokens, cpuSeconds }) => cpuSeconds / tokens))
const ratios = (a, b) => `${(rate(a) / rate(b)).toFixed(2)} × (by processor time ${(cpuOf(b) / cpuOf(a)).toFixed(2)} ×)`
console.log(
  `${options.model}, ${options.dtype}, ${options.tokens} tokens, ${options.threads} threads, ${cpus()[0].model}`,
)
for (const [name, list] of results) {
  const outside = median(list.map(({ seconds, inside }) => 1 - inside / seconds))
  const step = median(list.map(({ seconds, steps }) => (1000 * seconds) / steps))
  const cpu = median(list.map(({ cpuSeconds, steps }) => (1000 * cpuSeconds) / steps))
  console.log(
    `${name.padEnd(30)}${rate(name).toFixed(1).padStart(8)} tokens/s  ${step.toFixed(2).padStart(7)} ms a step ${cpu.toFixed(2).padStart(7)} ms of processor time  ` +
      `${(100 * outside).toFixed(1).padStart(5)} % of it outside ONNX Runtime`,
  )
}
if (!options.pair) {
  console.log(`8 texts against 1: ${(rate(BATCH) / rate('lowrank')).toFixed(2)} × the tokens a second`)
  const [{ bytes }] = results.get(READING)
  const share = (name) => `${name} ${((100 * rate(name)) / rate(READING)).toFixed(0)} %`
  const writers = ['lowrank', 'transformers.js'].filter((name) => children.has(name))
  console.log(
    `a token reads ${(bytes / 1e6).toFixed(0)} MB of weights, which alone goes at ${((bytes * rate(READING)) / 1e9).toFixed(1)} GB/s. Of this speed have: ${writers.map(share).join(', ')}`,
  )
}
if (children.has('transformers.js')) {
  const [ours, theirs] = ['lowrank', 'transformers.js'].map((name) => results.get(name)[0].text)
  console.log(`against transformers.js: ${ratios('lowrank', 'transformers.js')}`)
  console.log(ours === theirs ? 'both wrote the same text' : `other texts:\n  ${ours}\n  ${theirs}`)
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
