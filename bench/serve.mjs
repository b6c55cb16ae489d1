// Many callers of one session: eight short prompts, 64 tokens each, on four adapters of rank 16. First all callers at
// once, whose texts share steps, then the same calls one after the other. Prints tokens a second and their ratio.
//
//     npm run build && node bench/serve.mjs [MODEL …] [--rounds 3] [--threads 2] [--tokens 64]
//
// MODEL: a folder of a causal language model, such as smollm2-fp32 of scripts/golden/graph_table.py. Default:
// models/union-3m.
import { cpus, loadavg } from 'node:os'
import { parseArgs } from 'node:util'
import { LoraAdapter, loadModel, openSession } from 'lowrank'
import { findLinears } from '../dist/graph/match/linears.js'
import { Graph } from '../dist/graph/view/graph.js'

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string', default: String(Math.min(2, cpus().length)) },
    tokens: { type: 'string', default: '64' },
  },
})
const [rounds, threads, maxNewTokens] = [options.rounds, options.threads, options.tokens].map(Number)
const RANK = 16
const ADAPTERS = 4
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
function noise(length) {
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0
    return (0.01 * state) / 2 ** 31
  })
}

function makeAdapter(linears) {
  const adapter = new LoraAdapter({ rank: RANK, alpha: RANK })
  for (const { name, d, k } of linears) {
    adapter.addFactors(name, { data: noise(RANK * k), shape: [RANK, k] }, { data: noise(d * RANK), shape: [d, RANK] })
  }
  return adapter
}

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]

async function measure(folder) {
  // No text ends before its last token.
  const model = { ...(await loadModel(folder)), eosTokenIds: [], generationConfig: {} }
  const linears = findLinears(new Graph(model.onnx.proto)).filter(({ name }) => name.includes('layers.'))
  const adapters = Object.fromEntries(Array.from({ length: ADAPTERS }, (_, i) => [`a${i}`, makeAdapter(linears)]))
  const session = await openSession(model, { adapters, threads })
  const write = (prompt, i) => session.generate(prompt, { adapter: `a${i % ADAPTERS}`, maxNewTokens, temperature: 0 })
  const timed = async (action) => {
    const startedAt = performance.now()
    const results = await action()
    const seconds = (performance.now() - startedAt) / 1000
    return { results, rate: results.reduce((sum, { tokens }) => sum + tokens, 0) / seconds }
  }
  await write(PROMPTS[0], 0)
  const rates = { together: [], apart: [] }
  let differ = 0
  for (let round = 0; round < rounds; round++) {
    const together = await timed(() => Promise.all(PROMPTS.map(write)))
    const apart = await timed(async () => {
      const results = []
      for (const [i, prompt] of PROMPTS.entries()) results.push(await write(prompt, i))
      return results
    })
    rates.together.push(together.rate)
    rates.apart.push(apart.rate)
    differ += apart.results.filter(({ text }, i) => text !== together.results[i].text).length
  }
  const [together, apart] = [median(rates.together), median(rates.apart)]
  console.log(
    `${folder}: ${together.toFixed(1)} tokens/s together, ${apart.toFixed(1)} one after the other: ${(together / apart).toFixed(2)} x; ${differ} of ${rounds * PROMPTS.length} texts differ`,
  )
  await session.dispose()
  await model.close()
}

console.log(`${threads} threads, load ${loadavg()[0].toFixed(1)}`)
for (const folder of positionals.length > 0 ? positionals : ['models/union-3m']) await measure(folder)
