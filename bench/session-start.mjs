// Measures how long it takes to open a model, to open a session, and to begin a training. Each run is a separate
// process, so only the files are in the system's cache.
//
//     npm run build && node bench/session-start.mjs MODEL [--rounds 5] [--threads 2]
//
// MODEL: a folder of a causal language model, such as smollm2-fp32 of scripts/golden/graph_table.py.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { cpus, loadavg } from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '5' },
    threads: { type: 'string', default: String(Math.min(2, cpus().length)) },
    once: { type: 'boolean', default: false },
  },
})
const [folder] = positionals
if (folder === undefined) throw new Error('usage: node bench/session-start.mjs MODEL [--rounds 5] [--threads 2]')
if (options.once) await once()
else rounds()

/** Prints the times of this process. */
async function once() {
  const { loadModel, openSession, train } = await import('lowrank')
  const threads = Number(options.threads)
  const times = {}
  const timed = async (name, call) => {
    const startedAt = performance.now()
    const result = await call()
    times[name] = performance.now() - startedAt
    return result
  }
  const model = await timed('open the model', () => loadModel(folder))
  const session = await timed('open a session', () => openSession(model, { threads }))
  await session.dispose()
  const text = readFileSync(fileURLToPath(new URL('../README.md', import.meta.url)), 'utf8')
  const steps = []
  const startedAt = performance.now()
  await train({
    model,
    data: [1, 2, 3].map((i) => ({ text: text.slice(i * 200, i * 200 + 200) })),
    batchSize: 1,
    maxLength: 16,
    threads,
    on: {
      stage: (stage) => (times[`training until "${stage}"`] = performance.now() - startedAt),
      step: () => steps.push(performance.now()),
    },
  })
  times['training until the first step'] = steps[0] - startedAt - (steps[2] - steps[1])
  await model.close()
  console.log(JSON.stringify(times))
}

function rounds() {
  const all = {}
  for (let round = 0; round < Number(options.rounds); round++) {
    const args = [fileURLToPath(import.meta.url), folder, '--once', '--threads', options.threads]
    const { stdout, stderr, status } = spawnSync(process.execPath, args, { encoding: 'utf8' })
    if (status !== 0) throw new Error(stderr)
    for (const [name, millis] of Object.entries(JSON.parse(stdout))) {
      all[name] ??= []
      all[name].push(millis)
    }
  }
  console.log(
    `${cpus()[0].model}, ${cpus().length} cores, load ${loadavg()[0].toFixed(1)}, ${options.threads} threads: median (least to most)`,
  )
  for (const [name, millis] of Object.entries(all)) {
    const sorted = millis.toSorted((a, b) => a - b)
    const [least, middle, most] = [sorted[0], sorted[sorted.length >> 1], sorted.at(-1)].map((value) =>
      (value / 1000).toFixed(2),
    )
    console.log(`  ${name.padEnd(32)} ${middle} s (${least} to ${most})`)
  }
}
