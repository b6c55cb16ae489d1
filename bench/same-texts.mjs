// Checks that two builds write the same texts, byte for byte, for the same calls with all kinds of options. Calls one
// after the other and calls with several prompts must agree in all that they return: pieces, tokens, ends, scores to
// the last bit, and the tokens read from caches. Calls at the same time share steps by chance, which changes the last
// bits of logits: each of their texts must equal the text of the call alone, up to a step at which the two likeliest
// tokens differ by less than 0.0001.
//
//     npm run build && node bench/same-texts.mjs OTHER/dist [MODEL …] [--runtime worker|here] [--seed 1]
//
// OTHER/dist: the other build. MODEL: default models/union-3m and the golden models, which `npx vitest run tests/run`
// unpacks. --runtime here: this build runs ONNX Runtime in the caller's thread.
import { existsSync, readFileSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import * as ort from 'onnxruntime-node'
import { findLinears } from '../dist/model/match/linears.js'
import { Graph } from '../dist/onnx/view/graph.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { runtime: { type: 'string', default: 'worker' }, seed: { type: 'string', default: '1' } },
})
const [otherFolder, ...folders] = positionals
if (otherFolder === undefined) throw new Error('usage: node bench/same-texts.mjs OTHER/dist [MODEL …]')
const load = (dist) => import(pathToFileURL(join(resolve(dist), 'node.js')).href)
const builds = { old: await load(otherFolder), new: await load(join(root, 'dist')) }
const golden = (kind, names) => names.map((name) => join(root, 'tests/golden', kind, name))
const LLAMAS = ['llama-optimum', 'llama-genai', 'llama-genai-rotary', 'llama-fp16', 'llama-q4', 'llama-genai-int4']
const OTHERS = ['gpt2-optimum', 'qwen2-optimum', 'merged-if', 'llama-dynamo', 'llama-q8', 'qwen3-genai', 'phi3-genai']
const MODELS = [
  join(root, 'models/union-3m'),
  ...golden('models', [...LLAMAS, ...OTHERS]),
  ...golden('genai-decoders', ['gemma2', 'lfm2', 'qwen3_5']),
  ...golden('graphs', ['t5', 'bart', 'llava', 'idefics3', 'qwen2-vl']),
]

let state = Number(options.seed)
function random() {
  state = (Math.imul(state, 1664525) + 1013904223) | 0
  return (state >>> 8) / 2 ** 24
}
const pick = (list) => list[Math.floor(random() * list.length)]

const PROMPTS = [
  'The',
  'And the people of the United States',
  'In the beginning God created the heaven and the earth. And the earth',
  'Call me',
  'We hold these truths to be',
  'Article one of the',
  'The sea',
  'To be, or not to be, that is the question: whether',
]
const SCHEMAS = [
  {
    type: 'object',
    properties: { name: { type: 'string', maxLength: 8 }, age: { type: 'integer' } },
    required: ['name'],
  },
  { enum: ['yes', 'no', 3, null] },
]

/** Draws the options of a call. */
function draw(adapters, more = {}) {
  const kinds = [
    { temperature: 0 },
    { temperature: 1, topK: 20 },
    { temperature: 0.7, topP: 0.9, minP: 0.02 },
    { temperature: 0, repetitionPenalty: 1.3 },
  ]
  return {
    ...pick(kinds),
    seed: Math.floor(random() * 1e6),
    ...pick([{}, { stop: ['e', ' of th'] }, { stop: 'an' }, { logprobs: 3 }, { logprobs: 0 }]),
    adapter: pick(adapters),
    maxNewTokens: 1 + Math.floor(random() * 20),
    ...more,
  }
}

function adapterOf(lowrank, model, pattern, rank, seed) {
  let at = seed
  const noise = (length, size) =>
    Float32Array.from({ length }, () => {
      at = (Math.imul(at, 1664525) + 1013904223) | 0
      return (size * at) / 2 ** 31
    })
  const adapter = new lowrank.LoraAdapter({ rank, alpha: 2 * rank })
  const seen = new Set()
  for (const { name, d, k } of findLinears(new Graph(model.onnx.proto))) {
    if (!pattern.test(name) || seen.has(name)) continue
    seen.add(name)
    adapter.addFactors(
      name,
      { data: noise(rank * k, 0.1), shape: [rank, k] },
      { data: noise(d * rank, 0.5), shape: [d, rank] },
    )
  }
  return adapter
}

async function open(name, folder, plan) {
  const lowrank = builds[name]
  const runtime = name === 'new' && options.runtime === 'here' ? { module: ort } : undefined
  const model = { ...(await lowrank.loadModel(folder, { runtime })), generationConfig: plan.generationConfig }
  if (plan.contextLength !== undefined) model.contextLength = plan.contextLength
  const hasTokenizer = model.tokenizer !== undefined
  if (!hasTokenizer) {
    const union = await lowrank.loadModel(join(root, 'models/union-3m'))
    model.tokenizer = union.tokenizer
    await union.close()
  }
  const adapters = {}
  if (plan.hasAdapters) {
    adapters.a = adapterOf(lowrank, model, /(q_proj|v_proj|c_attn|up_proj|qkv_proj|\.q|\.v|query)$/, 2, 11)
    adapters.b = adapterOf(lowrank, model, /(v_proj|down_proj|c_proj|o_proj|\.o|wo|fc2)$/, 5, 12)
    adapters.c = adapterOf(lowrank, model, /(q_proj|c_attn)$/, 3, 13)
    for (const key of Object.keys(adapters)) if (adapters[key].size === 0) delete adapters[key]
  }
  const session = await lowrank.openSession(model, { adapters, threads: 1, on: {}, ...plan.session })
  // A model without a tokenizer gets token ids.
  const promptOf = (prompt) => {
    if (hasTokenizer || typeof prompt !== 'string') return prompt
    return { ids: model.tokenizer.encode(prompt).map((id) => id % model.vocabularySize) }
  }
  const write = session.generate
  const generate = (prompt, given) => {
    return write(
      Array.isArray(prompt) && typeof prompt[0] === 'string' ? prompt.map(promptOf) : promptOf(prompt),
      given,
    )
  }
  const { adapters: names } = session
  const close = () => session.dispose().then(() => model.close())
  return { session: { generate, adapters: names }, model, close }
}

async function call(session, prompt, { abortAt, ...given }) {
  const pieces = []
  const controller = new AbortController()
  const onText = (piece, row) => {
    pieces.push([row, piece])
    if (pieces.length === abortAt) controller.abort(new Error('enough'))
  }
  try {
    const results = await session.generate(prompt, { ...given, on: { text: onText }, signal: controller.signal })
    return { pieces, results: [results].flat().map(({ seconds: _, ...facts }) => facts) }
  } catch (error) {
    return { pieces, error: `${error.name}: ${error.message}` }
  }
}

let [compared, different, tied, failed] = [0, 0, 0, 0]
function expectEqual(where, given, old) {
  compared++
  if (old.error !== undefined) failed++
  const [a, b] = [given, old].map((value) => JSON.stringify(value))
  if (a === b) return
  different++
  console.log(`DIFFERENT ${where}\n  old ${b.slice(0, 600)}\n  new ${a.slice(0, 600)}`)
}

/** Compares calls that ran at the same time with the same calls alone. */
function expectSimilar(where, { results: [text] = [], pieces, error }, alone, abortAt) {
  compared++
  const [expected] = alone.results ?? [{ text: '', tokenIds: [] }]
  if (alone.error !== undefined && alone.error === error) return
  if (abortAt !== undefined && error !== undefined) {
    const whole = pieces.map(([, piece]) => piece).join('')
    if (expected.text.startsWith(whole) && pieces.length === abortAt && error === 'Error: enough') return
  } else if (text !== undefined) {
    const facts = ({ tokenIds, text: written, finish }) => JSON.stringify({ tokenIds, written, finish })
    if (facts(text) === facts(expected)) return
  }
  const at = expected.tokenIds.findIndex((id, i) => text?.tokenIds[i] !== id)
  const [first, second] = expected.logprobs?.[at]?.top ?? []
  if (second !== undefined && first.logprob - second.logprob < 1e-4) {
    tied++
    return
  }
  different++
  console.log(
    `DIFFERENT ${where} ${error ?? ''}\n  alone ${expected.text}\n  beside ${text?.text ?? JSON.stringify(pieces)}`,
  )
}

async function inTurns(where, folder, plan, scenario) {
  const outcomes = []
  const seed = state
  for (const name of ['old', 'new']) {
    state = seed
    const opened = await open(name, folder, plan)
    outcomes.push(await scenario(opened))
    await opened.close()
  }
  const [old, given] = outcomes
  for (const [i, outcome] of old.entries()) expectEqual(`${where}, call ${i}`, given[i], outcome)
}

const turns = async (count) => {
  for (let turn = 0; turn < count; turn++) await new Promise((settle) => setImmediate(settle))
}

async function compareTexts(folder) {
  const name = basename(folder)
  const plan = { hasAdapters: true, contextLength: name === 'union-3m' ? 2048 : undefined, generationConfig: {} }
  const picked = (session) => [null, ...session.adapters, ...(session.adapters.length > 1 ? [{ a: 0.5, b: -0.5 }] : [])]

  await inTurns(`${name}: one after the other`, folder, plan, async ({ session }) => {
    const outcomes = []
    for (let i = 0; i < 16; i++) outcomes.push(await call(session, pick(PROMPTS), draw(picked(session))))
    return outcomes
  })
  await inTurns(`${name}: several prompts`, folder, plan, async ({ session }) => {
    const outcomes = []
    for (const batchSize of [8, 3, 2]) {
      const adapter = PROMPTS.map(() => pick(picked(session)))
      outcomes.push(await call(session, PROMPTS, { ...draw([null]), adapter, batchSize, maxNewTokens: 18, seed: 5 }))
    }
    return outcomes
  })
  await inTurns(`${name}: turns of a chat, and long prompts`, folder, plan, async ({ session, model }) => {
    const words = model.tokenizer
      .encode(PROMPTS.join(' ').repeat(20))
      .map((id) => id % (model.vocabularySize ?? id + 1))
    const most = Math.min(1500, (model.contextLength ?? 1500) - 32)
    let ids = words.slice(0, 70)
    const outcomes = []
    for (const [i, more] of [10, 40, 600, 5, 700].entries()) {
      const outcome = await call(session, { ids }, draw(picked(session), { cacheScope: i === 3 ? 'other' : undefined }))
      outcomes.push(outcome)
      ids = [...ids, ...(outcome.results?.[0].tokenIds ?? []), ...words.slice(i, i + more)].slice(0, most)
    }
    outcomes.push(await call(session, [{ ids: ids.slice(0, 900) }, 'The', { ids: ids.slice(0, 80) }], { seed: 1 }))
    return outcomes
  })
  await inTurns(
    `${name}: its own settings, without caches`,
    folder,
    { session: { prefixCache: 0 } },
    async ({ session }) => {
      const outcomes = []
      for (let i = 0; i < 4; i++) outcomes.push(await call(session, PROMPTS[i], { seed: i, maxNewTokens: 16 }))
      return outcomes
    },
  )
  await inTurns(`${name}: schemas`, folder, plan, async ({ session }) => {
    const outcomes = []
    for (const schema of SCHEMAS) {
      outcomes.push(await call(session, PROMPTS.slice(0, 3), draw([null], { schema, maxNewTokens: 30, seed: 3 })))
    }
    return outcomes
  })
  const texts = join(folder, 'golden', 'texts.json')
  if (existsSync(texts)) {
    const { cases, pictures } = JSON.parse(readFileSync(texts, 'utf8'))
    const picture = (key) => ({ ...pictures[key], data: new Uint8Array(Buffer.from(pictures[key].data, 'base64')) })
    await inTurns(`${name}: pictures`, folder, plan, async ({ session }) => {
      const outcomes = []
      for (const { prompt, messages, images } of cases) {
        const settings = draw(picked(session), { images: images.map(picture) })
        outcomes.push(await call(session, prompt ?? messages, settings))
      }
      const plain = cases.filter(({ prompt }) => prompt !== undefined)
      const prompts = plain.map(({ prompt }) => prompt)
      const images = plain.map((plainText) => plainText.images.map(picture))
      outcomes.push(await call(session, prompts, { images, maxNewTokens: 8, seed: 1, logprobs: 1 }))
      return outcomes
    })
  }

  // Calls at the same time: alone in the old build, and all at once in both builds.
  const requests = Array.from({ length: 24 }, () => ({
    prompt: pick(PROMPTS).repeat(pick([1, 1, 1, 3, plan.contextLength === undefined ? 4 : 30])),
    adapter: Math.floor(random() * 4),
    settings: draw([null], { logprobs: 2 }),
    start: Math.floor(random() * 60),
    abortAt: pick([undefined, undefined, 1 + Math.floor(random() * 6)]),
  }))
  let alone
  for (const build of ['old', 'new']) {
    const opened = await open(build, folder, plan)
    const { session } = opened
    const choices = picked(session)
    const write = ({ prompt, settings, adapter }, more = {}) =>
      call(session, prompt, { ...settings, adapter: choices[adapter % choices.length], ...more })
    if (alone === undefined) {
      alone = []
      for (const request of requests) alone.push(await write(request))
    }
    const together = await Promise.all(
      requests.map(async (request) => {
        await turns(request.start)
        return write(request, { abortAt: request.abortAt })
      }),
    )
    for (const [i, outcome] of together.entries()) {
      expectSimilar(`${name}: beside others in the ${build} build, call ${i}`, outcome, alone[i], requests[i].abortAt)
    }
    await opened.close()
  }
}

for (const folder of folders.length > 0 ? folders : MODELS) {
  if (!existsSync(folder)) {
    console.log(`skipped, because it is not unpacked: ${folder}`)
    continue
  }
  const before = [compared, different, tied, failed]
  await compareTexts(folder)
  const [count, wrong, ties, errors] = [compared, different, tied, failed].map((value, i) => value - before[i])
  console.log(
    `${basename(folder)}: ${count} outcomes compared, ${wrong} differ, ${ties} part at a tie, ${errors} are errors`,
  )
}
console.log(`${compared} outcomes compared, ${different} differ, ${tied} part at a tie`)
process.exitCode = different > 0 ? 1 : 0
