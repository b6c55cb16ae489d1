// What accuracy level 4 costs and gains for models in q4: how often the likeliest token after each token of a held-out
// text is that of level 0 and of float32, the perplexity, and the tokens a second of 1 and 8 callers, in turns. It
// prints the rows of the table in docs/sessions.md.
//
//     npm run build && node bench/quantized/accuracy.mjs Q4=FP32 [Q4=FP32 …] [--places 512] [--rounds 5] [--tokens 64]
//         [--threads 2] [--text FILE]
//
// Q4 and FP32: folders of one model, such as smollm2-q4-32 and smollm2-fp32, gemma3-q4-32 and gemma3-fp32, union-q4-32
// of scripts/golden/graph_table.py and models/union-3m. --places: how many tokens of the text are predicted, as many as
// the model reads at most. --rounds 0 leaves the speeds out.
import { basename } from 'node:path'
import { parseArgs } from 'node:util'
import { loadModel, openSession } from 'lowrank'
import { PROMPTS } from '../callers.mjs'
import { agreementOf, heldOut, perplexityOf, predictionsOf } from '../quality.mjs'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    places: { type: 'string', default: '512' },
    rounds: { type: 'string', default: '5' },
    tokens: { type: 'string', default: '64' },
    threads: { type: 'string', default: '2' },
    text: { type: 'string' },
  },
})
const [places, rounds, maxNewTokens, threads] = [values.places, values.rounds, values.tokens, values.threads].map(
  Number,
)
const LEVELS = [0, 4]
const CALLERS = [1, 8]

async function open(folder, options) {
  // No text ends before its last token.
  const model = { ...(await loadModel(folder)), eosTokenIds: [], generationConfig: {} }
  return openSession(model, { threads, prefixCache: 0, ...options })
}

async function close(session) {
  await session.dispose()
  await session.model.close()
}

/** Tokens a second. */
async function measure(session, callers) {
  const startedAt = performance.now()
  const texts = PROMPTS.slice(0, callers).map((prompt) => session.generate(prompt, { maxNewTokens, temperature: 0 }))
  const tokens = (await Promise.all(texts)).reduce((sum, text) => sum + text.tokens, 0)
  return (1000 * tokens) / (performance.now() - startedAt)
}

const shown = (rates) => {
  const sorted = [...rates].sort((a, b) => a - b)
  if (sorted.length === 0) return 'not measured'
  return `${sorted[sorted.length >> 1].toFixed(0)} (${sorted[0].toFixed(0)} to ${sorted.at(-1).toFixed(0)})`
}

console.log('| model | level | likeliest token as level 0 | as float32 | perplexity | 1 caller | 8 callers |')
console.log('| --- | ---: | ---: | ---: | ---: | ---: | ---: |')
for (const [quantized, full] of positionals.map((given) => given.split('='))) {
  const reference = await open(full)
  const { tokenizer, contextLength = places + 1 } = reference.model
  const ids = heldOut(tokenizer, Math.min(places + 1, contextLength), values.text)
  const predictions = { float32: await predictionsOf(reference, ids) }
  await close(reference)
  const sessions = {}
  for (const level of LEVELS) {
    sessions[level] = await open(quantized, { accuracyLevel: level })
    predictions[level] = await predictionsOf(sessions[level], ids)
  }
  const rates = LEVELS.map(() => CALLERS.map(() => []))
  for (let round = 0; rounds > 0 && round <= rounds; round++) {
    for (const [k, callers] of CALLERS.entries()) {
      for (const [i, level] of LEVELS.entries()) {
        const rate = await measure(sessions[level], callers)
        if (round > 0) rates[i][k].push(rate)
      }
    }
  }
  const name = basename(quantized)
  console.log(`| ${name} | float32 | | | ${perplexityOf(predictions.float32).toFixed(2)} | | |`)
  for (const [i, level] of LEVELS.entries()) {
    const shares = [predictions[0], predictions.float32].map((other) => {
      return `${(100 * agreementOf(predictions[level], other)).toFixed(1)} %`
    })
    const perplexity = perplexityOf(predictions[level]).toFixed(2)
    console.log(`| ${name} | ${level} | ${[...shares, perplexity, ...rates[i].map(shown)].join(' | ')} |`)
  }
  for (const session of Object.values(sessions)) await close(session)
}
process.exit(0)
