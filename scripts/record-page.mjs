// Records the answers that the page shows before anything is loaded: web/src/recorded.json. It trains each recipe of
// the bundled model as the page does, with threads for two processors.
//   npm run build && node scripts/record-page.mjs
import { readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadModel, openSession, train } from '../dist/node.js'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const recipes = JSON.parse(readFileSync(join(root, 'web', 'src', 'recipes.json'), 'utf8'))
const model = await loadModel(join(root, 'models', 'union-3m'))
const recorded = {}
for (const { id, file, prompts, settings } of recipes.filter((recipe) => recipe.model === 'bundled')) {
  const { adapter, report } = await train({
    model,
    data: join(root, 'models', 'data', file),
    task: file.endsWith('.csv') ? 'text-classification' : 'causal-lm',
    maxSteps: settings.steps,
    learningRate: settings['learning-rate'],
    batchSize: settings['batch-size'],
    maxLength: 96,
    config: { rank: 8, alpha: 16 },
    threads: 2,
  })
  const session = await openSession(model, { adapters: { taught: adapter }, threads: 2 })
  const write = async (prompt, name) => {
    const { text } = await session.generate(prompt, { adapter: name, temperature: 0.7, seed: 1, maxNewTokens: 40 })
    return text
  }
  const answers = []
  for (const prompt of prompts) {
    if (file.endsWith('.csv')) {
      const { labels } = await session.classify(prompt, { adapter: 'taught', topK: 3 })
      answers.push({ prompt, labels })
    } else answers.push({ prompt, alone: await write(prompt, null), taught: await write(prompt, 'taught') })
  }
  await session.dispose()
  recorded[id] = { seconds: Math.round(report.seconds), losses: report.trainLoss, answers }
  console.log(id, report.seconds, answers)
}
const compact = JSON.stringify(recorded, (_, value) =>
  typeof value === 'number' ? Number(value.toPrecision(3)) : value,
)
writeFileSync(join(root, 'web', 'src', 'recorded.json'), `${compact}\n`)
