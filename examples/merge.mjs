// Folds an adapter that PEFT wrote into the ONNX model, and shows that nothing but the place of the numbers changed.

import { fileURLToPath } from 'node:url'
import { loadAdapter, loadModel, merge, openSession } from 'lowrank'

process.chdir(fileURLToPath(new URL('..', import.meta.url)))

const adapter = await loadAdapter('tests/golden/peft/rslora')
console.log(`rank ${adapter.config.rank}, ${adapter.size} parts, ${adapter.totalTrainableParams()} parameters`)

const out = 'out/examples/merged'
const report = await merge({ base: 'models/union-3m/onnx/model.onnx', adapters: adapter, out, overwrite: true })
const [strongest] = report.layers.toSorted((a, b) => b.relativeChange - a.relativeChange)
console.log(
  `${report.changed} weights changed, most of all ${strongest.name} (by ${(strongest.relativeChange * 100).toFixed(0)} %)`,
)

const texts = []
for (const [folder, adapters] of [
  ['models/union-3m', { peft: adapter }],
  [out, {}],
]) {
  const model = await loadModel(folder)
  const session = await openSession(model, { adapters })
  const { text } = await session.generate('The Congress', {
    adapter: session.adapters[0],
    maxNewTokens: 12,
    temperature: 0,
  })
  console.log(`${folder}:${text}`)
  texts.push(text)
  await session.dispose()
  await model.close()
}
if (texts[0] !== texts[1]) throw new Error('the merged model should write the same text')
