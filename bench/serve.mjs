// Many callers of one session, on four adapters of rank 16:
//
// - short: eight short prompts, 64 tokens each. First all callers at once, whose texts share steps, then the same calls
//   one after the other. Tokens a second and their ratio.
// - spread: prompts and answers of many lengths, which come one by one; two of them are long chats. The same ratio, and
//   the time to the first token and between tokens. Then what limits the ratio: reading prompts gains nothing from a
//   batch, so it is what it would be if all other steps gained as in `short`.
// - turn: the time to the first token of 50 new tokens after a chat of 2,000, against reading all of them.
// - idle: the time of a token of the base, with inputs for adapters that nobody uses, against the plain graph.
// - sampled: the time of a drawn token (temperature 1, topK 64, topP 0.95) against that of the likeliest one.
// - operators: the milliseconds of a step of eight rows by operator, as ONNX Runtime's profile has them. Of each node
//   the quickest quarter of its runs counts, so that other programs disturb little. Then what a step has to do: products
//   with weights, bytes of factors, and how quickly this machine copies memory.
// - delay: how long a request with a large body keeps a server from all others, see serve-delay.mjs.
// - beside (only if it is named): eight callers at once in a process of their own, with the build of --against and this
//   one in turns: alone; while the callers' thread parses 5 MB of JSON every 50 ms, and while another process does; and
//   while other programs keep all processors busy. The part of the throughput that is left, and the part of the
//   processors that the process gets. The last tokens are counted when a parse has ended, so short texts seem slower
//   than they are: take as many tokens as the model reads.
// - training (only with --training): what a job costs the callers of its server, see serve-training.mjs.
//
//     npm run build && node bench/serve.mjs [MODEL …] [--rounds 3] [--threads 2] [--tokens 64] [--only short,turn]
//         [--accuracy-level 4] [--dtype q4]
//     npm run build && node bench/serve.mjs MODEL --only beside --against OTHER/dist --rounds 5 --tokens 240
//         [--yields]
//     npm run build && node bench/serve.mjs MODEL --training [--rounds 3] [--seconds 8]
//
// MODEL: a folder of a causal language model, such as smollm2-fp32 of scripts/golden/graph_table.py. Default:
// models/union-3m. Lengths are smaller where a model's context is. Where other programs are busy, compare processor
// times, with --threads 1: idle threads of ONNX Runtime spin.
import { spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { LoraAdapter, loadModel, openSession } from 'lowrank'
import { findLinears } from '../dist/model/match/linears.js'
import { Graph } from '../dist/onnx/view/graph.js'
import { ADAPTERS, makeAdapters, PARSE_MS, PROMPTS, RANK } from './callers.mjs'
import { measureDelay } from './serve-delay.mjs'
import { measureTraining } from './serve-training.mjs'

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string', default: String(Math.min(2, cpus().length)) },
    tokens: { type: 'string', default: '64' },
    only: { type: 'string', default: 'short,spread,turn,idle,sampled,operators,delay' },
    'accuracy-level': { type: 'string' },
    against: { type: 'string' },
    dtype: { type: 'string' },
    yields: { type: 'boolean', default: false },
    training: { type: 'boolean', default: false },
    seconds: { type: 'string', default: '8' },
  },
})
const [rounds, threads, maxNewTokens] = [options.rounds, options.threads, options.tokens].map(Number)
const only = options.only.split(',')
const level = options['accuracy-level']
const opening = { threads, ...(level !== undefined && { accuracyLevel: Number(level) }) }
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]

const percentile = (values, share) => [...values].sort((a, b) => a - b)[Math.floor(share * (values.length - 1))]
const ms = (value) => `${(1000 * value).toFixed(0)} ms`
const pause = (time) => new Promise((resolve) => setTimeout(resolve, time))

async function timed(action) {
  const [before, startedAt] = [process.cpuUsage(), performance.now()]
  const results = await action()
  const seconds = (performance.now() - startedAt) / 1000
  const { user, system } = process.cpuUsage(before)
  const count = results.reduce((sum, { tokens }) => sum + tokens, 0)
  return { results, rate: count / seconds, processor: (user + system) / 1000 / count }
}

const timeOf = async (action) => {
  const startedAt = performance.now()
  await action()
  return (performance.now() - startedAt) / 1000
}

/** The same calls at once and one after the other, in turns. */
async function compare(name, count, together, callOne) {
  const rates = { together: [], apart: [] }
  const processor = { together: [], apart: [] }
  let differ = 0
  for (let round = 0; round < rounds; round++) {
    const all = await timed(together)
    const apart = await timed(async () => {
      const results = []
      for (let i = 0; i < count; i++) results.push(await callOne(i))
      return results
    })
    rates.together.push(all.rate)
    rates.apart.push(apart.rate)
    processor.together.push(all.processor)
    processor.apart.push(apart.processor)
    differ += apart.results.filter(({ text }, i) => text !== all.results[i].text).length
  }
  const [most, least] = [median(rates.together), median(rates.apart)]
  console.log(
    `  ${name}: ${most.toFixed(1)} tokens/s together, ${least.toFixed(1)} one after the other: ${(most / least).toFixed(2)} x; ${differ} of ${rounds * count} texts differ`,
  )
  const [few, many] = [median(processor.together), median(processor.apart)]
  console.log(`    processor time a token: ${few.toFixed(2)} ms, ${many.toFixed(2)} ms: ${(many / few).toFixed(2)} x`)
  return many / few
}

async function measure(folder) {
  // No text ends before its last token.
  const model = { ...(await loadModel(folder, { dtype: options.dtype })), eosTokenIds: [], generationConfig: {} }
  if (only.includes('beside')) await compareBeside(folder)
  const adapters = makeAdapters(LoraAdapter, model)
  const scale = Math.min(1, ((model.contextLength ?? 4096) - 64) / 2400)
  const scaled = (tokens) => Math.max(4, Math.round(tokens * scale))
  const words = model.tokenizer.encode(PROMPTS.join(' '))
  const promptOf = (tokens, start = 0) => ({
    ids: Array.from({ length: tokens }, (_, i) => words[(i * 7 + start) % words.length]),
  })
  const session = await openSession(model, { ...opening, adapters, prefixCache: 0 })
  console.log(folder)
  let gain
  if (only.includes('short')) {
    const write = (i) => session.generate(PROMPTS[i], { adapter: `a${i % ADAPTERS}`, maxNewTokens, temperature: 0 })
    await write(0)
    gain = await compare('short', PROMPTS.length, () => Promise.all(PROMPTS.map((_, i) => write(i))), write)
  }
  if (only.includes('spread')) {
    const lengths = [20, 600, 60, 2000, 150, 300, 40, 2000, 90, 20, 450, 120].map(scaled)
    const answers = [256, 16, 128, 64, 32, 96, 200, 48, 16, 160, 64, 80].map(scaled)
    const [firsts, nexts] = [[], []]
    const write = async (i, isTimed = false) => {
      const call = { adapter: `a${i % ADAPTERS}`, maxNewTokens: answers[i], temperature: 0 }
      let at = performance.now()
      let isFirst = true
      const onText = () => {
        const now = performance.now()
        if (isTimed) (isFirst ? firsts : nexts).push((now - at) / 1000)
        at = now
        isFirst = false
      }
      return session.generate(promptOf(lengths[i], i), { ...call, on: { text: onText } })
    }
    const together = () => Promise.all(lengths.map((_, i) => pause(i * 50).then(() => write(i, true))))
    await compare('spread', lengths.length, together, write)
    const read = (i) => session.generate(promptOf(lengths[i], i), { adapter: `a${i % ADAPTERS}`, maxNewTokens: 1 })
    const processorTime = async (call) => {
      const before = process.cpuUsage()
      for (const i of lengths.keys()) await call(i)
      const { user, system } = process.cpuUsage(before)
      return user + system
    }
    const reading = (await processorTime(read)) / (await processorTime(write))
    const most =
      gain === undefined
        ? ''
        : `; if other steps gained as in short, ${(1 / (reading + (1 - reading) / gain)).toFixed(2)} x`
    console.log(`    reading prompts is ${(100 * reading).toFixed(0)} % of the time one after the other${most}`)
    const shown = (values) => `p50 ${ms(percentile(values, 0.5))}, p95 ${ms(percentile(values, 0.95))}`
    console.log(`    first token ${shown(firsts)}; between tokens ${shown(nexts)}`)
  }
  await session.dispose()
  if (only.includes('turn')) {
    const chats = await openSession(model, { ...opening, adapters })
    const [whole, turns] = [[], []]
    for (let round = 0; round < rounds; round++) {
      const chat = promptOf(scaled(2000), round + 1)
      const quick = { adapter: 'a0', maxNewTokens: 1, temperature: 0 }
      whole.push(await timeOf(() => chats.generate(chat, quick)))
      const next = { ids: [...chat.ids, ...promptOf(scaled(50), 3).ids] }
      turns.push(await timeOf(() => chats.generate(next, quick)))
    }
    const [all, turn] = [median(whole), median(turns)]
    console.log(
      `  turn: ${ms(turn)} for ${scaled(50)} tokens after ${scaled(2000)}, ${ms(all)} to read those: ${(turn / all).toFixed(3)}`,
    )
    await chats.dispose()
  }
  if (only.includes('sampled')) {
    const sampling = await openSession(model, { ...opening, prefixCache: 0 })
    const [greedy, drawn] = [[], []]
    for (let round = 0; round <= rounds; round++) {
      const settings = { temperature: 1, topK: 64, topP: 0.95, seed: round }
      const likeliest = await timed(() => sampling.generate([PROMPTS[0]], { maxNewTokens, temperature: 0 }))
      const sampled = await timed(() => sampling.generate([PROMPTS[0]], { maxNewTokens, ...settings }))
      if (round === 0) continue
      greedy.push(1 / likeliest.rate)
      drawn.push(1 / sampled.rate)
    }
    const [least, most] = [median(greedy), median(drawn)]
    console.log(
      `  sampled: ${ms(most)} a token, ${ms(least)} where the likeliest is taken: ${(most / least).toFixed(2)} x`,
    )
    await sampling.dispose()
  }
  if (only.includes('idle')) {
    const kinds = { plain: undefined, lora: ['lora'], 'lora and dora': ['lora', 'dora'] }
    const times = Object.fromEntries(Object.keys(kinds).map((name) => [name, []]))
    const sessions = {}
    for (const [name, allow] of Object.entries(kinds)) sessions[name] = await openSession(model, { ...opening, allow })
    for (let round = 0; round <= rounds; round++) {
      for (const [name, opened] of Object.entries(sessions)) {
        const seconds = await timeOf(() => opened.generate(PROMPTS[0], { maxNewTokens, temperature: 0 }))
        if (round > 0) times[name].push(seconds / maxNewTokens)
      }
    }
    const [plain, ...others] = Object.keys(kinds).map((name) => median(times[name]))
    const shown = others.map((time, i) => `${(time / plain).toFixed(2)} x with ${Object.keys(kinds)[i + 1]}`)
    console.log(`  idle: ${(1000 * plain).toFixed(1)} ms a token without inputs, ${shown.join(', ')}`)
    for (const opened of Object.values(sessions)) await opened.dispose()
  }
  if (only.includes('operators')) await showOperators(model, adapters)
  if (only.includes('delay')) await measureDelay(folder, { rounds, threads })
  await model.close()
}

const CALLERS = fileURLToPath(new URL('callers.mjs', import.meta.url))
const BUSY = 'for (;;) {}'
const PARSING = `import { PARSED } from ${JSON.stringify(pathToFileURL(CALLERS).href)}
setInterval(() => JSON.parse(PARSED), ${PARSE_MS})`
const CASES = {
  idle: { parses: false, others: [] },
  'parsing here': { parses: true, others: [] },
  'parsing in another process': { parses: false, others: [PARSING] },
  busy: { parses: false, others: cpus().map(() => BUSY) },
}

/** Callers of two builds in turns, beside other work. */
async function compareBeside(folder) {
  const here = fileURLToPath(new URL('../dist', import.meta.url))
  const builds = { ...(options.against !== undefined && { old: options.against }), new: here }
  const measured = {}
  for (let round = 0; round < rounds; round++) {
    for (const [name, { parses, others }] of Object.entries(CASES)) {
      for (const [build, dist] of Object.entries(builds)) {
        const running = others.map((code) => spawn(process.execPath, ['--input-type=module', '-e', code]))
        if (others.length > 0) await pause(500)
        const settings = [
          '--threads',
          String(threads),
          '--tokens',
          String(maxNewTokens),
          ...(parses ? ['--parses'] : []),
          ...(options.yields ? ['--yields'] : []),
        ]
        const output = await outputOf([CALLERS, dist, folder, ...settings])
        for (const child of running) child.kill()
        measured[build] ??= {}
        measured[build][name] ??= []
        measured[build][name].push(JSON.parse(output))
      }
    }
  }
  for (const [build, cases] of Object.entries(measured)) {
    const of = (name, key) => median(cases[name].map((sample) => sample[key]))
    console.log(`  beside, ${build} build`)
    for (const name of Object.keys(CASES)) {
      console.log(
        `    ${name}: ${of(name, 'rate').toFixed(1)} tokens/s on ${of(name, 'processors').toFixed(2)} processors`,
      )
    }
    const parsing = of('parsing here', 'rate') / of('parsing in another process', 'rate')
    console.log(`    parsing here against parsing in another process: ${parsing.toFixed(2)} (goal: 0.95)`)
    const [rate, share] = ['rate', 'processors'].map((key) => of('busy', key) / of('idle', key))
    console.log(`    busy against idle: ${rate.toFixed(2)} of the tokens, ${share.toFixed(2)} of the processors`)
    console.log(`    the first over the second: ${(rate / share).toFixed(2)} (goal: 0.90)`)
  }
}

function outputOf(args) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    let text = ''
    child.stdout.on('data', (chunk) => {
      text += chunk
    })
    child.on('close', (code) =>
      code === 0 ? resolve(text) : reject(new Error(`${args.join(' ')}: exit code ${code}`)),
    )
  })
}

async function showOperators(model, adapters) {
  const folder = mkdtempSync(join(tmpdir(), 'serve-'))
  const profilePrefix = join(folder, 'profile')
  const session = await openSession(model, { ...opening, adapters, prefixCache: 0, profilePrefix })
  const choice = (i) => ({ adapter: `a${i % ADAPTERS}`, maxNewTokens, temperature: 0 })
  await Promise.all(PROMPTS.map((prompt, i) => session.generate(prompt, choice(i))))
  await session.dispose()
  const [file] = readdirSync(folder)
  const events = JSON.parse(readFileSync(join(folder, file), 'utf8')).sort((a, b) => a.ts - b.ts)
  rmSync(folder, { recursive: true })
  // Prompts are read in the first run or two; the last runs have fewer rows.
  const runs = events.filter(({ name }) => name === 'model_run')
  const steps = runs.slice(Math.floor(runs.length / 4), Math.floor((3 * runs.length) / 4))
  const nodes = new Map()
  const [from, to] = [steps[0].ts, steps.at(-1).ts + steps.at(-1).dur]
  for (const { name, ts, dur, args } of events) {
    if (ts < from || ts > to || !name.endsWith('_kernel_time')) continue
    const node = nodes.get(name) ?? { operator: kindOf(name, args.op_name), times: [] }
    node.times.push(dur / 1000)
    nodes.set(name, node)
  }
  const sums = new Map()
  for (const { operator, times } of nodes.values()) {
    const sum = sums.get(operator) ?? { count: 0, time: 0 }
    sums.set(operator, { count: sum.count + 1, time: sum.time + percentile(times, 0.25) })
  }
  const between = steps.slice(1).map(({ ts }, i) => (ts - steps[i].ts - steps[i].dur) / 1000)
  const total = [...sums.values()].reduce((sum, { time }) => sum + time, 0)
  console.log(
    `  operators: ${total.toFixed(1)} ms a step in them, ${percentile(between, 0.25).toFixed(1)} ms between steps`,
  )
  for (const [operator, { count, time }] of [...sums].sort((a, b) => b[1].time - a[1].time)) {
    if (time >= 0.01 * total) console.log(`    ${time.toFixed(2).padStart(6)} ms  ${operator} (${count} nodes)`)
  }
  const timeOfAll = (kind) => [...sums].reduce((sum, [name, { time }]) => (kind(name) ? sum + time : sum), 0)
  const linears = findLinears(new Graph(model.onnx.proto))
  const products = PROMPTS.length * linears.reduce((sum, { d, k }) => sum + d * k, 0)
  const inLayers = linears.filter(({ name }) => name.includes('layers.'))
  const bytes = 4 * ADAPTERS * RANK * inLayers.reduce((sum, { d, k }) => sum + d + k, 0)
  const [rate, read] = [
    products / timeOfAll((name) => name.startsWith('MatMul')),
    bytes / timeOfAll((name) => name === 'FusedMatMul of adapters'),
  ]
  console.log(
    `    ${(products / 1e6).toFixed(0)} million products with weights: ${(rate / 1e6).toFixed(0)} billion a second`,
  )
  console.log(
    `    ${(bytes / 1e6).toFixed(0)} MB of factors: ${(read / 1e6).toFixed(1)} GB/s; copies ${copyRate()} GB/s`,
  )
}

/** Of memory that is in no cache. */
function copyRate() {
  const [from, to] = [1, 2].map((value) => new Float32Array(2e7).fill(value))
  const times = Array.from({ length: 8 }, () => {
    const startedAt = performance.now()
    to.set(from)
    return performance.now() - startedAt
  })
  return (from.byteLength / 1e6 / Math.min(...times)).toFixed(1)
}

/** Names the kind of an operator. Operators of adapters and of the output layer are kinds of their own. */
function kindOf(name, operator) {
  if (/lora/.test(name)) return `${operator} of adapters`
  return /lm_head/.test(name) ? `${operator} of the output layer` : operator
}

console.log(`${threads} threads, load ${loadavg()[0].toFixed(1)}`)
for (const folder of positionals.length > 0 ? positionals : ['models/union-3m']) {
  if (!options.training) await measure(folder)
  else {
    console.log(folder)
    await measureTraining(folder, { rounds, seconds: Number(options.seconds) })
  }
}
