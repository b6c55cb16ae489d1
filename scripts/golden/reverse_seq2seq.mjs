// Trains encoder-decoders with lowrank for check_seq2seq.py: OUT/{t5,bart}/{adapter,logits.json}. Needs a build.
//
//     node scripts/golden/reverse_seq2seq.mjs OUT

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadModel, nodeRuntime, openSession, train } from 'lowrank'
import unpackAll from './packed.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url))
const golden = join(root, 'tests/golden')
const out = process.argv[2]
if (out === undefined) throw new Error('usage: node scripts/golden/reverse_seq2seq.mjs OUT')

const int64 = (rows) => ({
  type: 'int64',
  data: BigInt64Array.from(rows.flat(), BigInt),
  dims: [rows.length, rows[0].length],
})

unpackAll()

for (const name of ['t5', 'bart']) {
  const model = await loadModel(join(golden, 'graphs', name), { runtime: nodeRuntime() })
  const { rows, inputIds, labels } = JSON.parse(readFileSync(join(golden, 'seq2seq', name, 'golden.json'), 'utf8'))
  const config = { rank: 3, alpha: 5, dropout: 0.1, useDora: name === 'bart' }
  const folder = join(out, name)
  const { adapter } = await train({
    model,
    data: rows,
    maxSteps: 40,
    learningRate: 2e-2,
    config,
    out: join(folder, 'adapter'),
  })
  const session = await openSession(model, { adapters: { trained: adapter } })
  const logits = []
  for (const [i, target] of labels.entries()) {
    const ids = inputIds[i]
    const mask = int64([ids.map(() => 1)])
    const given = { input_ids: int64([ids]), attention_mask: mask }
    const states = await session.run(given, { graph: 'encoder', adapter: 'trained' })
    const read = { encoder_hidden_states: states.last_hidden_state, encoder_attention_mask: mask }
    const written = { ...read, input_ids: int64([[2, ...target.slice(0, -1)]]) }
    logits.push([...(await session.run(written, { adapter: 'trained' })).logits.data])
  }
  const [{ text }] = rows
  const asked = { adapter: 'trained', temperature: 0, maxNewTokens: 12 }
  const { text: answer } = await session.generate(text, asked)
  writeFileSync(join(folder, 'logits.json'), JSON.stringify({ inputIds, labels, logits, text, answer }))
  await session.dispose()
  await model.close()
  console.log(`${name}: trained, saved and run with ${adapter.size} parts`)
}
