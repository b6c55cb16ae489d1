// Prompts and adapters for the benchmarks with several callers. Run as a program, it takes one measurement for
// `bench/serve.mjs --only beside`: eight callers write at once with the given build, and one line of JSON tells the
// tokens per second and the share of the processors.
//
//     node bench/callers.mjs DIST MODEL --threads 2 --tokens 64 [--parses] [--yields]
//
// --parses: the callers' thread also parses 5 MB of JSON every 50 ms.
// --yields: the option yieldProcessors.
import { join, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { findLinears } from '../dist/model/match/linears.js'
import { Graph } from '../dist/onnx/view/graph.js'

export const RANK = 16
export const ADAPTERS = 4
export const PROMPTS = [
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

/** Makes adapters a0, a1, … for all layers of a model. */
export function makeAdapters(LoraAdapter, model) {
  const linears = findLinears(new Graph(model.onnx.proto)).filter(({ name }) => name.includes('layers.'))
  const make = () => {
    const adapter = new LoraAdapter({ rank: RANK, alpha: RANK })
    for (const { name, d, k } of linears) {
      adapter.addFactors(name, { data: noise(RANK * k), shape: [RANK, k] }, { data: noise(d * RANK), shape: [d, RANK] })
    }
    return adapter
  }
  return Object.fromEntries(Array.from({ length: ADAPTERS }, (_, i) => [`a${i}`, make()]))
}

export const PARSED = JSON.stringify(
  Array.from({ length: 60_000 }, (_, i) => ({ id: i, name: `row ${i}`, values: [i, i / 3, null] })),
)
export const PARSE_MS = 50

async function measure([dist, folder], { threads, tokens, parses, yields }) {
  const { LoraAdapter, loadModel, openSession } = await import(pathToFileURL(join(resolve(dist), 'node.js')).href)
  // Without end tokens, every text has its full length.
  const model = { ...(await loadModel(folder)), eosTokenIds: [], generationConfig: {} }
  const adapters = makeAdapters(LoraAdapter, model)
  const settings = { threads: Number(threads), ...(yields && { yieldProcessors: true }) }
  const session = await openSession(model, { ...settings, adapters, prefixCache: 0 })
  const write = (i, maxNewTokens) =>
    session.generate(PROMPTS[i], { adapter: `a${i % ADAPTERS}`, maxNewTokens, temperature: 0 })
  await Promise.all(PROMPTS.map((_, i) => write(i, 8)))
  let parsed = 0
  const timer = parses ? setInterval(() => (parsed += JSON.parse(PARSED).length), PARSE_MS) : undefined
  const [before, startedAt] = [process.cpuUsage(), performance.now()]
  const texts = await Promise.all(PROMPTS.map((_, i) => write(i, Number(tokens))))
  const seconds = (performance.now() - startedAt) / 1000
  const { user, system } = process.cpuUsage(before)
  clearInterval(timer)
  const count = texts.reduce((sum, text) => sum + text.tokens, 0)
  console.log(JSON.stringify({ rate: count / seconds, processors: (user + system) / 1e6 / seconds, parsed }))
  await session.dispose()
  await model.close()
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const options = {
    threads: { type: 'string' },
    tokens: { type: 'string' },
    parses: { type: 'boolean', default: false },
    yields: { type: 'boolean', default: false },
  }
  const { values, positionals } = parseArgs({ allowPositionals: true, options })
  await measure(positionals, values)
}
