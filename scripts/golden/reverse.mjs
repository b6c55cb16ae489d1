// Trains adapters on two bases with lowrank for check_reverse.py: OUT/BASE/{adapter,logits.json,merged}. Also writes an
// adapter with a new head, OUT/head, for check_head.py.
//
//     node scripts/golden/reverse.mjs OUT

import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { LoraAdapter, loadModel, merge, openSession, saveAdapter, train } from 'lowrank'

const root = fileURLToPath(new URL('../..', import.meta.url))
const out = process.argv[2]
if (out === undefined) throw new Error('usage: node scripts/golden/reverse.mjs OUT')

const PROMPTS = ['And the people of the United States', 'In the beginning', 'Call me Ishmael.']

/** check_reverse.py's name of the base → its ONNX model, and its checkpoint if there is one. */
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

await saveAdapter(withHead(), join(out, 'head'))
console.log('head: an adapter with a head that its base does not have')

/** Makes an adapter for a tiny BERT: its attention, and a classifier with three classes. */
function withHead() {
  const values = (seed, ...shape) => {
    const data = new Float32Array(shape.reduce((product, dim) => product * dim, 1))
    return { data: data.map((_, i) => Math.sin(seed + 1.7 * i)), shape }
  }
  const adapter = new LoraAdapter({ rank: 3, alpha: 6, taskType: 'SEQ_CLS', targetModules: ['query', 'value'] })
  for (const [i, layer] of [0, 1].entries()) {
    for (const [j, part] of ['query', 'value'].entries()) {
      const name = `bert.encoder.layer.${layer}.attention.self.${part}`
      adapter.addFactors(name, values(i + j, 3, 16), values(i + j + 5, 16, 3))
    }
  }
  const weight = adapter.addReplacement('classifier.weight', values(7, 3, 16))
  adapter.addReplacement('classifier.bias', values(8, 3))
  // Training changes the values of a part in place, too.
  weight.weight.data.forEach((value, at, data) => {
    data[at] = value / 2
  })
  return adapter
}

/** Returns the logits at the last token of the prompt. */
async function lastLogits(session, model, prompt) {
  const inputIds = model.tokenizer.encode(prompt)
  const dims = [1, inputIds.length]
  const feeds = { input_ids: { type: 'int64', data: BigInt64Array.from(inputIds, BigInt), dims } }
  const { logits } = await session.run(feeds, { adapter: 'trained', outputNames: ['logits'] })
  const vocabulary = logits.dims.at(-1)
  return { inputIds, logits: Array.from(logits.data.slice(-vocabulary)) }
}
