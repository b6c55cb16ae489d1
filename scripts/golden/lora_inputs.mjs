// Writes a model with inputs for adapters, adapters of two ranks, and the logits of lowrank's own session, for
// lora_inputs.py.
// Usage: node scripts/golden/lora_inputs.mjs OUT

import { mkdirSync, writeFileSync } from 'node:fs'
import { addLoraInputs } from '../../dist/handoff-entry/node/entry.js'
import { convertAdapter, openSession } from '../../dist/node.js'

const [out] = process.argv.slice(2)
const ids = [0, 35, 274, 630, 376]
const adapters = { f32: 'tests/golden/peft/f32', rslora: 'tests/golden/peft/rslora' }
mkdirSync(out, { recursive: true })
await addLoraInputs('models/union-3m', { out: `${out}/model` })
const session = await openSession('models/union-3m', { adapters })
const int64 = (data) => ({ type: 'int64', data: BigInt64Array.from(data, BigInt), dims: [1, data.length] })
const mask = ids.map(() => 1)
const feeds = { input_ids: int64(ids), attention_mask: int64(mask), position_ids: int64(ids.map((_, i) => i)) }
const used = feeds
const here = {}
for (const name of [undefined, ...Object.keys(adapters)]) {
  const { logits } = await session.run(
    { input_ids: feeds.input_ids, attention_mask: feeds.attention_mask },
    { adapter: name ?? null },
  )
  here[name ?? 'base'] = Array.from(logits.data.slice(-logits.dims.at(-1)))
  if (name !== undefined)
    await convertAdapter(adapters[name], { to: 'onnx-adapter', out: `${out}/${name}.onnx_adapter` })
}
await session.dispose()
writeFileSync(`${out}/here.json`, JSON.stringify(here))
const plain = ({ data, dims }) => ({ data: Array.from(data, Number), dims })
writeFileSync(
  `${out}/feeds.json`,
  JSON.stringify(Object.fromEntries(Object.entries(used).map(([k, v]) => [k, plain(v)]))),
)
