// Writes models with inputs for adapters, adapters for them, and the logits of lowrank's own sessions, for
// lora_inputs.py. Phi-3 and LFM2 as onnxruntime-genai exports them have packed modules, unlike their adapters.
// Usage: node scripts/golden/lora_inputs.mjs OUT

import { mkdirSync, writeFileSync } from 'node:fs'
import { addLoraInputs } from '../../dist/handoff-entry/node/entry.js'
import { convertAdapter, loadAdapter, openSession } from '../../dist/node.js'

const [out] = process.argv.slice(2)
const golden = 'tests/golden'
const MODELS = {
  union: {
    model: 'models/union-3m',
    ids: [0, 35, 274, 630, 376],
    adapters: { f32: `${golden}/peft/f32`, rslora: `${golden}/peft/rslora` },
  },
  lfm2: {
    model: `${golden}/genai-decoders/lfm2`,
    ids: [5, 17, 40, 3, 99, 64],
    adapters: { lfm2: `${golden}/genai-decoders/lfm2/golden/adapter` },
  },
  phi3: {
    model: `${golden}/models/phi3-genai`,
    ids: [5, 17, 40, 3, 59, 33],
    adapters: { phi3: await withB(`${golden}/models/phi3-genai/golden/adapter-init`) },
  },
}

/** A fresh adapter changes nothing: fill B in. */
async function withB(folder) {
  const adapter = await loadAdapter(folder)
  for (const { weightB } of adapter.parts('linear')) {
    for (const i of weightB.data.keys()) weightB.data[i] = Math.sin(i + 1) / 8
  }
  return adapter
}

const int64 = (data) => ({ type: 'int64', data: BigInt64Array.from(data, BigInt), dims: [1, data.length] })
for (const [name, { model, ids, adapters }] of Object.entries(MODELS)) {
  const folder = `${out}/${name}`
  mkdirSync(folder, { recursive: true })
  await addLoraInputs(model, { out: `${folder}/model` })
  const session = await openSession(model, { adapters })
  const feeds = { input_ids: int64(ids), attention_mask: int64(ids.map(() => 1)) }
  const here = {}
  for (const adapter of [undefined, ...Object.keys(adapters)]) {
    const { logits } = await session.run(feeds, { adapter: adapter ?? null })
    here[adapter ?? 'base'] = Array.from(logits.data.slice(-logits.dims.at(-1)))
    if (adapter === undefined) continue
    const file = `${folder}/${adapter}.onnx_adapter`
    await convertAdapter(adapters[adapter], { to: 'onnx-adapter', base: `${folder}/model`, out: file })
  }
  await session.dispose()
  writeFileSync(`${folder}/here.json`, JSON.stringify(here))
  writeFileSync(`${folder}/ids.json`, JSON.stringify(ids))
}
