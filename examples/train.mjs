// Training with the API: prompts with completions from memory, of which only the completions count, and an adapter that
// stays in memory until it is saved.

import { fileURLToPath } from 'node:url'
import { loadModel, openSession, saveAdapter, train } from 'lowrank'

process.chdir(fileURLToPath(new URL('..', import.meta.url)))

const data = ['Ahab', 'the captain', 'the harpooner', 'the whale', 'the mate', 'the ship', 'the sea', 'the crew'].map(
  (who) => ({ prompt: `Who is it? It is ${who}.`, completion: ' Aye, aye, sir.' }),
)

const model = await loadModel('models/union-3m')
const { adapter, report } = await train({
  model,
  data,
  config: { rank: 4, alpha: 8, targetModules: ['q_proj', 'v_proj', 'o_proj'] },
  maxSteps: 25,
  batchSize: 4,
  learningRate: 2e-2,
  on: { step: ({ step, loss }) => step % 5 === 0 && console.log(`step ${step}: loss ${loss.toFixed(3)}`) },
})
await saveAdapter(adapter, 'out/examples/sailor', { overwrite: true })
console.log(`${report.trainableParams} parameters in out/examples/sailor`)

const session = await openSession(model, { adapters: { sailor: adapter } })
const { text } = await session.generate('Who is it? It is the boatswain.', {
  adapter: 'sailor',
  maxNewTokens: 8,
  temperature: 0,
})
console.log('answer:', text)
await session.dispose()
await model.close()
if (!(report.trainLoss.at(-1) < report.trainLoss[0] / 2)) throw new Error('it did not learn')
