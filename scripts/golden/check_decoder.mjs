// Runs the results of check_decoder.py in other programs: transformers.js on the merged graph, and llama.cpp on the
// GGUF file with the adapter.
//
//     check_decoder.mjs CHECK TRANSFORMERS [NODE_LLAMA_CPP GGUF]
//
// CHECK: the folder WORK/NAME-check. TRANSFORMERS: a folder into which transformers.js is installed. NODE_LLAMA_CPP: as
// in check_gguf.mjs. GGUF: the base, such as WORK/gemma3-gguf/gemma-3-270m-q4_k_m.gguf. llama.cpp rounds activations to
// 8 bits, so that log-probabilities differ from those of float32; the change by the adapter must have the same
// direction.

import assert from 'node:assert/strict'
import { readFileSync, rmSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { convertAdapter } from '../../dist/api/node.js'
import { installTransformers, loadTransformers, openPipeline } from '../transformers-js.mjs'

const [check, scratch, packages, gguf] = process.argv.slice(2).map((path) => resolve(path))
const { prompt, text, inputIds, base, adapted } = JSON.parse(readFileSync(join(check, 'numbers.json'), 'utf8'))

installTransformers(scratch)
const pipeline = await openPipeline(loadTransformers(scratch).transformers, 'text-generation', join(check, 'graph'))
const [{ generated_text: written }] = await pipeline(prompt, { max_new_tokens: 24, do_sample: false })
assert.equal(written, text)
console.log('transformers.js writes the text of PEFT:', JSON.stringify(written))
await pipeline.dispose()

if (packages !== undefined) {
  const module = join(packages, 'node_modules/node-llama-cpp/dist/index.js')
  const { getLlama, LlamaLogLevel } = await import(pathToFileURL(module).href)
  const llama = await getLlama({ gpu: false, build: 'never', logLevel: LlamaLogLevel.error })
  const model = await llama.loadModel({ modelPath: gguf })
  const out = join(check, 'adapter.gguf')
  rmSync(out, { force: true })
  await convertAdapter(join(check, 'adapter'), { to: 'gguf', base: join(check, 'graph'), out })
  const plain = await logProbabilities(model)
  const theirs = minus(await logProbabilities(model, out), plain)
  const same = cosine(theirs, minus(logSoftmax(adapted), logSoftmax(base)))
  console.log(`llama.cpp: the change by the adapter has the cosine ${same.toFixed(4)} to PEFT's`)
  assert.ok(same > 0.98)
  await llama.dispose()
}
process.exit(0)

/** Returns the log-probabilities of the next token, by token id. */
async function logProbabilities(model, adapter) {
  const lora = adapter === undefined ? undefined : { adapters: [{ filePath: adapter, scale: 1 }] }
  const context = await model.createContext({ contextSize: 256, flashAttention: false, lora })
  const input = [...inputIds.slice(0, -1), [inputIds.at(-1), { generateNext: { probabilities: true } }]]
  const { next } = (await context.getSequence().controlledEvaluate(input)).at(-1)
  await context.dispose()
  return [...next.probabilities].sort(([a], [b]) => a - b).map(([, value]) => Math.log(value))
}

function logSoftmax(logits) {
  const most = logits.reduce((a, b) => Math.max(a, b))
  const total = Math.log(logits.reduce((sum, value) => sum + Math.exp(value - most), 0)) + most
  return logits.map((value) => value - total)
}

/** Subtracts log-probabilities. Where a probability is 0 in float32, the difference counts as 0. */
function minus(a, b) {
  return a.map((value, i) => (Number.isFinite(value - b[i]) ? value - b[i] : 0))
}

/** Σ ab / √(Σ a² Σ b²) */
function cosine(a, b) {
  const sum = (x, y) => x.reduce((total, value, i) => total + value * y[i], 0)
  return sum(a, b) / Math.sqrt(sum(a, a) * sum(b, b))
}
