// Records the answers that the page shows before it has loaded a model, in web/src/recorded.json. It trains each recipe
// for the models that come with the page just as the page would, with two threads. Adapters of the bundled model are
// saved in web/public/recorded: there they label the visitor's own sentence.
//   npm run build && node scripts/record-page.mjs [ID …] [--chat FOLDER]
// The recipes of MiniLM need its folder: web/README.md. --chat: SmolLM2-135M-Instruct in 4 bits, such as smollm2-q4-32
// of scripts/golden/graph_table.py.
import { readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { loadAdapter, loadModel, openSession, saveAdapter, train } from '../dist/api/node.js'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const { values, positionals: asked } = parseArgs({ allowPositionals: true, options: { chat: { type: 'string' } } })
const models = {
  'union-3m': 'models/union-3m',
  MiniLM: join(root, 'out', 'graphs', 'minilm-int8'),
  'SmolLM2 135M': values.chat && resolve(values.chat),
}
// The saved adapter names its model by a path from here.
process.chdir(root)
const file = join(root, 'web', 'src', 'recorded.json')
const recipes = JSON.parse(readFileSync(join(root, 'web', 'src', 'recipes.json'), 'utf8'))
const recorded = JSON.parse(readFileSync(file, 'utf8'))
const SHOWN = 1

/** Finds the best of the texts for a question. */
async function find(session, prompt, texts, adapter) {
  const [asked, ...vectors] = await session.embed([prompt, ...texts], { adapter })
  const scores = vectors.map((vector) => vector.reduce((sum, value, i) => sum + value * asked[i], 0))
  return texts.map((text, i) => ({ text, score: scores[i] })).sort((a, b) => b.score - a.score)
}

async function answer(session, task, prompt, texts) {
  const adapter = 'taught'
  const write = async (input, name) =>
    (await session.generate(input, { temperature: 0, maxNewTokens: 24, adapter: name })).text
  if (task === 'text-classification') {
    const { labels } = await session.classify(prompt, { adapter, topK: 3 })
    return { writesOn: await write(prompt, null), labels }
  }
  if (task === 'token-classification') return { names: (await session.tag(prompt, { adapter })).entities }
  if (task === 'embedding') {
    const [alone, taught] = [await find(session, prompt, texts, null), await find(session, prompt, texts, adapter)]
    const before = taught.map(({ text }) => alone.findIndex((candidate) => candidate.text === text) + 1)
    return {
      found: [alone, taught.map((item, i) => ({ ...item, before: before[i] }))].map((all) => all.slice(0, SHOWN)),
    }
  }
  const messages = [{ role: 'user', content: prompt }]
  return { texts: [await write(messages, null), await write(messages, adapter)] }
}

for (const { id, file: data, model: name, task, prompts, settings } of recipes) {
  if (models[name] === undefined || (asked.length > 0 && !asked.includes(id))) continue
  const model = await loadModel(models[name])
  const path = join(root, 'models', 'data', data)
  const { adapter, report } = await train({
    model,
    data: path,
    task,
    maxSteps: settings.steps,
    learningRate: settings['learning-rate'],
    batchSize: settings['batch-size'],
    maxLength: 96,
    config: { rank: 8, alpha: 16 },
    threads: 2,
  })
  const place = name === 'union-3m' ? `recorded/${id}/` : undefined
  const folder = join(root, 'web', 'public', place ?? '')
  if (place !== undefined) await saveAdapter(adapter, folder, { dtype: 'fp16' })
  const taught = place === undefined ? adapter : await loadAdapter(folder)
  const session = await openSession(model, { adapters: { taught }, threads: 2 })
  const partners = readFileSync(path, 'utf8').matchAll(/"textPair": "([^"]*)"/g)
  const texts = [...new Set([...partners].map(([, text]) => text))]
  const answers = []
  for (const prompt of prompts) answers.push({ prompt, ...(await answer(session, task, prompt, texts)) })
  await session.dispose()
  recorded[id] = { seconds: Math.round(report.seconds), losses: report.trainLoss, adapter: place, answers }
  console.log(id, report.seconds, JSON.stringify(answers, null, 1))
}
const compact = JSON.stringify(recorded, (_, value) =>
  typeof value === 'number' ? Number(value.toPrecision(3)) : value,
)
writeFileSync(file, `${compact}\n`)
