// The page of web/ in Chromium against Node on the same machine: a training step, the first paint, and the time until the bundled model
// is ready. Contestants take turns; the page is a new browser each round, so that nothing is cached.
//
//   npm run build && npm install --no-save -D onnxruntime-web@1.30.0 && node bench/page.mjs [--rounds 5] [--steps 12]
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { cpus, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { build, preview, runnerImport } from 'vite'
import { loadModel, train } from '../dist/node.js'

const { values } = parseArgs({
  options: { rounds: { type: 'string', default: '5' }, steps: { type: 'string', default: '12' } },
})
const root = fileURLToPath(new URL('../', import.meta.url))
const { openPage } = (await runnerImport(join(root, 'tests/page.ts'))).module
const steps = Number(values.steps)
const DATA = join(root, 'models/data/whaling.jsonl')
/** As the fields of the page say. */
const SETTINGS = { maxSteps: steps, learningRate: 0.005, batchSize: 4, maxLength: 96 }
const CONFIG = { rank: 8, alpha: 16 }

const folder = mkdtempSync(join(tmpdir(), 'lowrank-bench-page-'))
const settings = { configFile: join(root, 'web/vite.config.ts'), logLevel: 'silent' }
await build({ ...settings, build: { outDir: folder, emptyOutDir: true } })
const server = await preview({ ...settings, build: { outDir: folder }, preview: { port: 0, host: '127.0.0.1' } })
const address = `http://127.0.0.1:${server.httpServer.address().port}/`

/** Tokens per second of the whole run, as both report them. */
async function inNode() {
  const model = await loadModel(join(root, 'models/union-3m'))
  let rate = 0
  await train({
    model,
    data: DATA,
    ...SETTINGS,
    config: CONFIG,
    on: {
      step: ({ tokensPerSecond }) => {
        rate = tokensPerSecond
      },
    },
  })
  await model.close()
  return { rate }
}

async function inPage() {
  const page = await openPage(address)
  try {
    const until = async (expression) => {
      while (!(await page.evaluate(expression).catch(() => false))) await setTimeout(50)
    }
    // The first visit loads the page twice: a service worker isolates it.
    await until('crossOriginIsolated')
    await until("!document.getElementById('start').disabled")
    const paint = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    const ready = await page.evaluate('performance.now()')
    await page.evaluate(`document.getElementById('data').value = ${JSON.stringify(readFileSync(DATA, 'utf8'))}`)
    for (const [id, value] of Object.entries({ steps, 'batch-size': 4, 'max-length': 96, rank: 8 }))
      await page.evaluate(`document.getElementById('${id}').value = '${value}'`)
    await page.evaluate("document.getElementById('start').click()")
    await until("/^Trained/.test(document.getElementById('train-state').textContent)")
    const shown = await page.evaluate("document.getElementById('number-speed').textContent")
    return { paint, ready, rate: Number(shown.replaceAll(/\D/g, '')) }
  } finally {
    await page.close()
  }
}

const rounds = []
for (let i = 0; i < Number(values.rounds); i++) rounds.push({ node: await inNode(), page: await inPage() })
await server.close()
rmSync(folder, { recursive: true, force: true })

const summary = (numbers, digits = 0) => {
  const sorted = numbers.toSorted((a, b) => a - b)
  return `${sorted[sorted.length >> 1].toFixed(digits)} (${sorted[0].toFixed(digits)} to ${sorted.at(-1).toFixed(digits)})`
}
const row = (name, unit, pick, digits) => console.log(`${name.padEnd(46)} ${summary(rounds.map(pick), digits)} ${unit}`)
console.log(`${cpus()[0].model}, ${cpus().length} threads, Node ${process.version}; medians of ${values.rounds}`)
row('first paint', 'ms', ({ page }) => page.paint)
row('bundled model ready', 'ms', ({ page }) => page.ready)
row('training in Node', 'tokens/s', ({ node }) => node.rate)
row('training in the page', 'tokens/s', ({ page }) => page.rate)
row('time of a step, page / Node', '', ({ node, page }) => node.rate / page.rate, 2)
process.exit(0)
