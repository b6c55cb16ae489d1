// Trains adapters with lowrank for check_reverse.py: OUT/BASE/{adapter,logits.json,merged}, for two bases.
//
//     node scripts/golden/reverse.mjs OUT

import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadModel, merge, openSession, train } from 'lowrank'

const root = fileURLToPath(new URL('../..', import.meta.url))
const out = process.argv[2]
if (out === undefined) throw new Error('usage: node scripts/golden/reverse.mjs OUT')

const PROMPTS = ['And the people of the United States', 'In the beginning', 'Call me Ishmael.']

/** check_reverse.py's name of the base → its ONNX model, and its checkpoint where there is one. */
const BASES = {
  'union-3m': { model: 'models/union-3m', checkpoint: 'models/union-3m' },
  llama: { model: 'tests/golden/models/llama-optimum' },
}

for (const [base, paths] of Object.entries(BASES)) {
  const folder = join(out, base)
  mkdirSync(folder, { recursive: true })
  const model = await loadModel(join(root, paths.model))
  const { adapter } = await train({
    model,
    data: join(root, 'models/data/scripture.eval.jsonl'),
    out: join(folder, 'adapter'),
    config: { rank: 4, alpha: 8, useRslora: true, rankPattern: { k_proj: 2 }, alphaPattern: { v_proj: 3 } },
    maxSteps: 12,
    batchSize: 4,
    maxLength: 48,
    learningRate: 2e-2,
  })
  const session = await openSession(model, { adapters: { trained: adapter } })
  const prompts = []
  for (const prompt of PROMPTS) prompts.push(await lastLogits(session, model, prompt))
  writeFileSync(join(folder, 'logits.json'), JSON.stringify({ prompts }))
  await session.dispose()
  await model.close()
  if (paths.checkpoint !== undefined) {
    const adapters = join(folder, 'adapter')
    await merge({ base: join(root, paths.checkpoint), adapters, out: join(folder, 'merged'), format: 'safetensors' })
  }
  console.log(`${base}: trained, saved and run with ${adapter.size} layers`)
}

/** The logits of the prompt's last position. */
async function lastLogits(session, model, prompt) {
  const inputIds = model.tokenizer.encode(prompt)
  const dims = [1, inputIds.length]
  const feeds = { input_ids: { type: 'int64', data: BigInt64Array.from(inputIds, BigInt), dims } }
  const { logits } = await session.run(feeds, { adapter: 'trained', outputNames: ['logits'] })
  const vocabulary = logits.dims.at(-1)
  return { inputIds, logits: Array.from(logits.data.slice(-vocabulary)) }
}
