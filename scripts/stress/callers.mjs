// Many callers of one server, with four keys: adapters of several ranks and kinds come and go, a third of the callers
// leave early, some read slowly, and some send half a body. Each text must be the text alone, or differ first where
// the two best logits lie within 1e-4. Memory stays flat.
//   npm run build && node --expose-gc scripts/stress/callers.mjs [--requests 10000] [--adapters 64] [--seed 1]
//       [--most-pause 50]
// --most-pause: on a quiet machine, the most milliseconds for which the thread of the server may be blocked. It is the
// thread of all callers too.

import { mkdtempSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { parseArgs } from 'node:util'
import { LoraAdapter, loadModel, openSession, saveAdapter } from '../../dist/api/node.js'
import { findLinears } from '../../dist/model/match/linears.js'
import { Graph } from '../../dist/onnx/view/graph.js'
import { createHandler, folderOfAdapters, listen } from '../../dist/serve/node/entry.js'
import { randomFrom } from '../fuzz/random.mjs'
import { root } from './commands.mjs'

const { values } = parseArgs({
  options: {
    requests: { type: 'string', default: '10000' },
    adapters: { type: 'string', default: '64' },
    seed: { type: 'string', default: '1' },
    'most-pause': { type: 'string', default: 'Infinity' },
  },
})
const [requests, adapterCount, seed] = [values.requests, values.adapters, values.seed].map(Number)
const mostPause = Number(values['most-pause'])
const CALLERS = 24
const KEYS = ['alice', 'bob', 'carol', 'dave']
/** Adapters that the server has at the same time. */
const SERVED = Math.ceil(adapterCount / 2)
const TIE = 1e-4
const TOKENS = 24
/** The memory that pools of the runtime, the engine and sockets may take. */
const LIMIT_BYTES = 150 * 2 ** 20
const RANKS = [4, 8, 16, 32, 64]
const KINDS = [{}, { useRslora: true }, { useDora: true }, { loraBias: true }, { isEmbedding: true }]
const PROMPTS = [
  'And the people',
  'We hold these truths',
  'In the beginning',
  'The sea was calm that morning, and the captain said unto the men of the ship that',
  'No person shall be',
  'And it came to pass, when the king heard of it, that he went up into the mountain with all his servants and',
]

const random = randomFrom(`callers ${seed}`)
const scratch = mkdtempSync(join(tmpdir(), 'lowrank-callers-'))
const problems = []
const note = (problem) => {
  problems.push(problem)
  if (problems.length <= 10) console.error(problem)
}
process.on('unhandledRejection', (error) => note(`unhandled: ${error?.stack ?? error}`))
process.on('uncaughtException', (error) => note(`uncaught: ${error?.stack ?? error}`))

function noise(length, scale) {
  return Float32Array.from({ length }, () => scale * (random.below(2001) / 1000 - 1))
}

const model = await loadModel(join(root, 'models/union-3m'))
const linears = findLinears(new Graph(model.onnx.proto)).filter(({ isHead }) => !isHead)
const names = Array.from({ length: adapterCount }, (_, i) => `adapter-${i}`)
for (const [i, name] of names.entries()) {
  const [rank, { isEmbedding, ...kind }] = [RANKS[i % RANKS.length], KINDS[(i >> 1) % KINDS.length]]
  const adapter = new LoraAdapter({ rank, alpha: rank, ...kind })
  const few = linears.filter((_, place) => i % 3 > 0 || place % 2 === 0)
  for (const { name: module, d, k } of few) {
    const factors = [
      { data: noise(rank * k, 0.1), shape: [rank, k] },
      { data: noise(d * rank, 0.1 / Math.sqrt(rank)), shape: [d, rank] },
    ]
    adapter.addFactors(module, ...factors, {
      ...(kind.useDora && { magnitude: noise(d, 0.2).map((value) => 1 + value) }),
      ...(kind.loraBias && { biasB: noise(d, 0.05) }),
    })
  }
  if (isEmbedding) {
    const [{ k: width }] = linears
    const shape = [3, width]
    adapter.addTokenRows('model.embed_tokens', [300 + i, 400 + i, 500 + i], { data: noise(3 * width, 0.1), shape })
  }
  await saveAdapter(adapter, join(scratch, name))
}

const handler = await createHandler({
  model,
  servedModelName: 'base',
  resolveAdapter: folderOfAdapters(scratch),
  maxAdapters: SERVED,
  apiKeys: [...KEYS, { key: 'admin', isAdmin: true }],
  session: { allow: ['lora', 'dora', 'biases', 'embeddings'], threads: 2 },
  on: { error: (error) => note(`status 500: ${error?.stack ?? error}`) },
})
const { server, url } = await listen(handler, { port: 0 })

/** A session in which each text runs alone. */
const alone = await openSession(model, { threads: 2, maxBatch: 1 })
const texts = new Map()
/** Writes the text that a caller should get, with its scores. A shorter answer must be its beginning. */
function expected(name, prompt, sampling) {
  const key = JSON.stringify([name, prompt, sampling])
  const make = async () => {
    if (name !== 'base' && !alone.adapters.includes(name)) await alone.add(name, join(scratch, name))
    const adapter = name === 'base' ? null : name
    return alone.generate(prompt, { adapter, maxNewTokens: TOKENS, logprobs: 2, ...sampling })
  }
  if (!texts.has(key)) {
    last = last.then(make)
    texts.set(key, last)
  }
  return texts.get(key)
}
let last = Promise.resolve()

/** Returns undefined if the texts are equal, true if they first differ at a tie, else false. */
function tieOf(text, { text: whole, logprobs }) {
  if (whole.startsWith(text)) return undefined
  let sum = ''
  for (const { text: piece, top } of logprobs) {
    if (!text.startsWith(sum + piece)) return top[0].logprob - top[1].logprob <= TIE
    sum += piece
  }
  return false
}

const post = (path, body, key, signal) =>
  fetch(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${key}` },
    body: JSON.stringify(body),
    signal,
  })

const counts = {
  requests: 0,
  whole: 0,
  left: 0,
  slow: 0,
  halves: 0,
  waited: 0,
  tokens: 0,
  ties: 0,
  loads: 0,
  unloads: 0,
}
const pause = (ms) => new Promise((done) => setTimeout(done, ms))

/** Reads the text of a stream, or the part that comes before the caller leaves. */
async function streamed(response, { leaves, isSlow }, left) {
  const leaveAfter = leaves?.pieces
  let text = ''
  let [rest, pieces] = ['', 0]
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  try {
    for (;;) {
      const { value, done } = await reader.read()
      if (done) return text
      if (isSlow) await pause(20)
      const lines = (rest + value).split('\n\n')
      rest = lines.pop()
      for (const line of lines) {
        if (line === 'data: [DONE]' || line.startsWith(':')) continue
        const { choices, error } = JSON.parse(line.slice(6))
        if (error !== undefined) throw new Error(error.message)
        text += choices[0]?.text ?? ''
        if (++pieces < leaveAfter || leaveAfter === undefined) continue
        // Stop reading here: the fetch of Node 20 would wait for ever if the answer has just ended.
        left.abort()
        return text
      }
    }
  } catch (error) {
    if (!left.signal.aborted) throw error
  }
  return text
}

async function ask(choice) {
  const { name, key, prompt, sampling, max_tokens, leaves, isStream, isSlow } = choice
  const left = new AbortController()
  if (leaves?.ms !== undefined) setTimeout(() => left.abort(), leaves.ms)
  const body = { model: name, prompt, max_tokens, ...sampling, stream: isStream }
  let text
  try {
    const response = await post('/v1/completions', body, key, left.signal)
    if (response.status === 429) {
      counts.waited++
      await response.text()
      await pause(20)
      return ask(choice)
    }
    // Only an admin's request loads an adapter.
    if (response.status === 404) {
      await response.text()
      await load(name)
      return ask(choice)
    }
    if (response.status !== 200) return note(`${response.status} for ${name}: ${await response.text()}`)
    if (isStream) text = await streamed(response, choice, left)
    else {
      const { choices, usage } = await response.json()
      text = choices[0].text
      counts.tokens += usage.completion_tokens
    }
  } catch (error) {
    if (!left.signal.aborted) return note(`a caller fails: ${error?.stack ?? error}, ${error?.cause}`)
  }
  if (left.signal.aborted) counts.left++
  else counts.whole++
  if (isSlow) counts.slow++
  if (text === undefined) return
  const wanted = await expected(name, prompt, sampling)
  const tie = tieOf(text, wanted)
  if (tie === true) counts.ties++
  if (tie === false)
    note(`${name}, ${JSON.stringify(body)}: ${JSON.stringify(text)}, alone: ${JSON.stringify(wanted.text)}`)
  if (!left.signal.aborted && isStream) counts.tokens += max_tokens
}

function choose() {
  const isStream = random.below(2) === 0
  const isLeaving = random.below(3) === 0
  const ms = isLeaving && (!isStream || random.below(2) === 0) ? random.below(60) : undefined
  const isSampled = random.below(4) === 0
  const prompt = random.pick(PROMPTS)
  return {
    name: random.below(10) === 0 ? 'base' : random.pick(names),
    key: random.pick(KEYS),
    isSlow: random.below(8) === 0,
    prompt,
    sampling: isSampled ? { temperature: 0.8, seed: prompt.length } : { temperature: 0 },
    max_tokens: 4 + random.below(TOKENS - 3),
    isStream: isStream || ms === undefined,
    leaves: isLeaving ? (ms === undefined ? { pieces: 1 + random.below(4) } : { ms }) : undefined,
  }
}

const load = (name) => change('load', { lora_name: name, lora_path: name }, 400)
const unload = (name) => change('unload', { lora_name: name }, 404)

/** @param known the status for an adapter that is loaded already, or not loaded */
async function change(verb, body, known) {
  const response = await post(`/v1/${verb}_lora_adapter`, body, 'admin')
  const text = await response.text()
  if (response.status !== 200 && response.status !== known) note(`${response.status}: ${text}`)
  if (response.status === 200) counts[`${verb}s`]++
}

/** Sends half a body, and leaves after a while. */
async function sendHalf() {
  counts.halves++
  const { hostname, port } = new URL(url)
  const socket = connect(Number(port), hostname)
  socket.on('error', () => {})
  const head = ['POST /v1/completions HTTP/1.1', 'Host: localhost', 'Content-Type: application/json']
  socket.write([...head, `Authorization: Bearer ${KEYS[0]}`, 'Content-Length: 200', '', '{"prompt": "And'].join('\r\n'))
  await pause(random.below(200))
  socket.destroy()
}

const pauses = monitorEventLoopDelay({ resolution: 10 })
let longestPause = 0
/** The collection that follows is ours: its pause does not count. */
function keepPause() {
  longestPause = Math.max(longestPause, pauses.max / 1e6)
  pauses.reset()
}

const heldBytes = () => {
  globalThis.gc?.()
  return process.memoryUsage().rss
}

let warmBytes
const startedAt = performance.now()
async function caller() {
  while (counts.requests < requests && problems.length < 100) {
    const number = counts.requests++
    if (number === Math.floor(requests / 2)) {
      keepPause()
      warmBytes = heldBytes()
      await pause(20)
      pauses.reset()
    }
    if (number % 10 === 9) await (random.below(2) === 0 ? load : unload)(random.pick(names))
    if (number % 20 === 5) await sendHalf()
    else await ask(choose())
  }
}
pauses.enable()
await Promise.all(Array.from({ length: CALLERS }, caller))
keepPause()
pauses.disable()
const seconds = (performance.now() - startedAt) / 1000
const grownBytes = heldBytes() - warmBytes
if (grownBytes > LIMIT_BYTES) note(`memory grew by ${(grownBytes / 2 ** 20).toFixed(0)} MiB`)
if (longestPause > mostPause) note(`the server's thread was blocked for ${longestPause.toFixed(0)} ms`)
const metrics = await handler.metrics()
for (const name of ['running', 'waiting']) {
  if (!metrics.includes(`vllm:num_requests_${name} 0\n`)) note(`requests are ${name} still`)
}
if (handler.session.adapters.length > SERVED) note(`adapters are left: ${handler.session.adapters.length}`)
if (counts.ties > Math.max(1, counts.tokens / 10_000)) note(`${counts.ties} ties in ${counts.tokens} tokens`)
const closing = post('/v1/completions', { prompt: PROMPTS[0], max_tokens: 100 }, KEYS[0]).then(
  (response) => response.status,
)
await new Promise((resolve) => setTimeout(resolve, 50))
await Promise.all([handler.close(), closing.then((status) => status !== 200 && note(`drained: ${status}`))])
server.close()
server.closeAllConnections()
await alone.dispose()
await model.close()
rmSync(scratch, { recursive: true })
const grown = `${(grownBytes / 2 ** 20).toFixed(0)} MiB more memory than after half of them`
console.log(
  `${seconds.toFixed(0)} s, ${grown}, longest pause ${longestPause.toFixed(0)} ms, ${JSON.stringify(counts)}, ${problems.length} problems`,
)
process.exitCode = problems.length === 0 ? 0 : 1
