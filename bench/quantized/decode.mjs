// How much an adapter costs while a text is written: the base, the base with an adapter in a session, and the same adapter merged as branches.
//
//     node bench/quantized/decode.mjs MODEL DTYPE ADAPTER MERGED [TOKENS] [ROUNDS]
//
// MERGED: what `lowrank merge` made of the three. Entries take turns in one process, so that drift of the machine hits all alike; the medians of
// milliseconds per token are compared, and the first round is left out.

import { loadAdapter, loadModel, openSession } from 'lowrank'

const [folder, dtype, path, merged, tokens = '24', rounds = '7'] = process.argv.slice(2)
if (merged === undefined)
  throw new Error('usage: node bench/quantized/decode.mjs MODEL DTYPE ADAPTER MERGED [TOKENS] [ROUNDS]')

const adapter = await loadAdapter(path)
const models = [await loadModel(folder, { dtype }), await loadModel(merged, { dtype })]
const sessions = [
  await openSession(models[0]),
  await openSession(models[0], { adapters: { adapter } }),
  await openSession(models[1]),
]
const entries = [
  ['base', sessions[0], null],
  ['session, no adapter', sessions[1], null],
  ['session, adapter', sessions[1], 'adapter'],
  ['merged as branches', sessions[2], null],
]
const times = entries.map(() => [])
for (let round = 0; round <= Number(rounds); round++) {
  for (const [i, [, session, name]] of entries.entries()) {
    const result = await session.generate('The ship was', {
      adapter: name,
      maxNewTokens: Number(tokens),
      temperature: 0,
    })
    if (round > 0) times[i].push((1000 * result.seconds) / (result.tokens + 1))
  }
}
const medians = times.map((values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)])
for (const [i, [name]] of entries.entries()) {
  console.log(
    `${name.padEnd(22)} ${medians[i].toFixed(1).padStart(7)} ms/token  ${(medians[i] / medians[0]).toFixed(2)} × base`,
  )
}
let bytes = 0
for (const { weightA, weightB } of adapter.parts('linear')) bytes += 4 * (weightA.data.length + weightB.data.length)
console.log(`factors: ${(bytes / 1e6).toFixed(1)} MB in float32`)
for (const session of sessions) await session.dispose()
for (const model of models) await model.close()
