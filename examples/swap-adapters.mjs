// One model in memory, an adapter for each request: choosing one is a name, and adding or removing one is cheap.

import { fileURLToPath } from 'node:url'
import { loadModel, openSession, train } from 'lowrank'

process.chdir(fileURLToPath(new URL('..', import.meta.url)))

const model = await loadModel('models/union-3m')
const settings = { model, maxSteps: 20, batchSize: 4, learningRate: 1e-2 }
const scripture = await train({ ...settings, data: 'models/data/scripture.jsonl' })
const whaling = await train({ ...settings, data: 'models/data/whaling.jsonl' })

const session = await openSession(model, {
  adapters: { scripture: scripture.adapter, whaling: whaling.adapter },
})
const requests = ['scripture', undefined, 'whaling', 'scripture']
const texts = []
for (const adapter of requests) {
  const { text, seconds } = await session.generate('It is the duty', { adapter, maxNewTokens: 15, temperature: 0 })
  console.log(`${(adapter ?? 'base').padEnd(10)}${text}  (${(seconds * 1000).toFixed(0)} ms)`)
  texts.push(text)
}
await session.remove('scripture')
console.log('left:', session.adapters.join(', '))
await session.dispose()
await model.close()
if (texts[0] !== texts[3] || new Set(texts).size !== 3)
  throw new Error('adapters should differ, and each repeat itself')
