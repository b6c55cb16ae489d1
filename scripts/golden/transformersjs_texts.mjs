// Lets transformers.js write texts with models/union-3m and with models merged from it, for tests of `generate`.
//
//     node scripts/golden/transformersjs_texts.mjs SCRATCH [OUT]
//
// SCRATCH: a folder for transformers.js 4.3.1, which scripts/transformers-js.mjs installs there, and for the merged
// models. tests/golden/README.md explains the fields.

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { merge } from 'lowrank'
import { installTransformers, loadTransformers, openPipeline, ROOT } from '../transformers-js.mjs'

const [scratch, out = join(ROOT, 'tests/golden/transformers-js/texts.json')] = process.argv.slice(2)
if (scratch === undefined) throw new Error('usage: node scripts/golden/transformersjs_texts.mjs SCRATCH [OUT]')

const MODEL = 'models/union-3m'
const MAX_NEW_TOKENS = 48
/** If the logits of two tokens are nearer than this, rounding may swap them. */
const LEAST_LEAD = 1e-3
const PROMPTS = [
  'And the people',
  'The Constitution of the United States',
  'Fellow-citizens of the Senate and House of Representatives:\n',
  'In 1861, "Déjà vu" — 3.5 % of it;  two spaces',
  'The',
]
const CASES = [{}, { adapter: 'tests/golden/peft/rslora' }, { adapter: 'tests/golden/peft/bf16' }]

installTransformers(scratch)
const { transformers, versions } = loadTransformers(scratch)
const cases = []
for (const { adapter } of CASES) {
  const generator = await openPipeline(transformers, 'text-generation', await folderOf(adapter))
  const texts = []
  for (const prompt of PROMPTS) {
    const options = { max_new_tokens: MAX_NEW_TOKENS, do_sample: false, return_full_text: false }
    const [{ generated_text: text }] = await generator(prompt, options)
    texts.push({ prompt, text, smallestLead: await smallestLead(generator, prompt) })
  }
  cases.push({ ...(adapter && { adapter }), texts })
  await generator.dispose()
}
writeFileSync(out, `${JSON.stringify({ versions, model: MODEL, maxNewTokens: MAX_NEW_TOKENS, cases }, null, 2)}\n`)

async function folderOf(adapter) {
  if (adapter === undefined) return join(ROOT, MODEL)
  const folder = join(scratch, 'merged', adapter)
  await merge({
    base: join(ROOT, MODEL, 'onnx/model.onnx'),
    adapters: join(ROOT, adapter),
    out: folder,
    overwrite: true,
  })
  return folder
}

/** Returns the smallest lead of a chosen token's logit over the second best. */
async function smallestLead({ tokenizer, model }, prompt) {
  const inputs = tokenizer(prompt)
  const tokens = await model.generate({ ...inputs, max_new_tokens: MAX_NEW_TOKENS, do_sample: false })
  const { logits } = await model({ input_ids: tokens, attention_mask: transformers.ones_like(tokens) })
  const [, length, vocabulary] = logits.dims
  let smallest = Number.POSITIVE_INFINITY
  for (let i = inputs.input_ids.dims[1] - 1; i < length - 1; i++) {
    const [second, first] = logits.data
      .slice(i * vocabulary, (i + 1) * vocabulary)
      .sort()
      .subarray(-2)
    smallest = Math.min(smallest, first - second)
  }
  if (smallest < LEAST_LEAD) throw new Error(`${prompt}: rounding may change this text (${smallest}): choose another`)
  return smallest
}
