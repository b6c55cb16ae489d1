// What a job costs the callers of its server: `bench/serve.mjs --training`. The job is paused and goes on in turns,
// under the same requests: first some callers who ask again as soon as they are answered (tokens a second), then
// requests that come at half of that rate (time to the first token). And the memory (Pss) of the server alone, the
// training alone, and both, against the size of the weights.

import { spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { randomFrom } from '../scripts/fuzz/random.mjs'
import { JobServer } from '../scripts/stress/job-server.mjs'
import { PROMPTS } from './callers.mjs'

const CALLERS = 2
const TOKENS = 16
const MAIN = fileURLToPath(new URL('../dist/app/cli/main.js', import.meta.url))
const ROWS = Array.from({ length: 64 }, (_, i) => ({
  prompt: `Which boat has the number ${i}? ${'It lies in the harbour. '.repeat(4)}`,
  completion: `The boat with the number ${i} sails to the island of ${i * 7}.`,
}))

const percentile = (values, share) => [...values].sort((a, b) => a - b)[Math.floor(share * (values.length - 1))]

/** @param seconds that each part takes, of which there are four in a round */
export async function measureTraining(model, { rounds, seconds }) {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-serve-training-'))
  const server = new JobServer(folder, { model })
  try {
    await server.start()
    const hyperparameters = { n_epochs: 1000, batch_size: 4 }
    const job = await server.create(await server.upload(ROWS), { hyperparameters })
    await waitForStep(server, job)
    const measured = { alone: { firsts: [], rates: [] }, beside: { firsts: [], rates: [] } }
    const pss = { server: [], both: [], training: [] }
    let everySeconds
    for (let round = 0; round < rounds; round++) {
      for (const kind of round % 2 === 0 ? ['alone', 'beside'] : ['beside', 'alone']) {
        await turn(server, job, kind)
        const { rates, firsts } = measured[kind]
        const { rate, perSecond } = await askAgain(server, seconds)
        rates.push(rate)
        everySeconds ??= 2 / perSecond
        firsts.push(...(await askNow(server, { seconds, everySeconds, seed: round })))
        const [own, trainers] = [pssOf(server.pid), server.trainers().reduce((sum, pid) => sum + pssOf(pid), 0)]
        if (kind === 'alone') pss.server.push(own)
        else pss.both.push(own + trainers)
      }
    }
    await server.end()
    pss.training.push(await pssOfTraining(join(folder, 'jobs', job, 'settings.json'), folder))
    tell(measured, pss, weightsOf(model))
  } finally {
    await server.end('SIGKILL')
    rmSync(folder, { recursive: true, force: true, maxRetries: 50, retryDelay: 200 })
  }
}

function tell({ alone, beside }, pss, weights) {
  const rate = ({ rates }) => percentile(rates, 0.5)
  const ratio = (share) => (percentile(beside.firsts, share) / percentile(alone.firsts, share)).toFixed(2)
  const first = ({ firsts }) => [0.5, 0.95].map((share) => `${percentile(firsts, share).toFixed(0)} ms`).join(', ')
  const mb = (bytes) => `${(bytes / 1e6).toFixed(0)} MB`
  const [server, training, both] = [pss.server, pss.training, pss.both].map((values) => Math.max(...values))
  const most = server + training - 0.9 * weights
  console.log(
    `  first token, p50 and p95: alone ${first(alone)}; with a job ${first(beside)} (${beside.firsts.length} requests)`,
  )
  console.log(`    p50 ${ratio(0.5)} x (goal: at most 1.5), p95 ${ratio(0.95)} x (goal: at most 2)`)
  const change = (rate(beside) / rate(alone)).toFixed(2)
  console.log(`  ${CALLERS} callers: alone ${rate(alone).toFixed(1)} tokens/s, with a job ${rate(beside).toFixed(1)}`)
  console.log(`    ${change} x (goal: at least 0.7)`)
  console.log(`  Pss: server ${mb(server)}, training ${mb(training)}, both ${mb(both)}; weights ${mb(weights)}`)
  console.log(`    both against server + training − 0.9 × weights: ${(both / most).toFixed(2)} (goal: at most 1)`)
}

async function turn(server, job, kind) {
  if (kind === 'beside') {
    await server.call(`/fine_tuning/jobs/${job}/resume`, {})
    return waitForStep(server, job)
  }
  await server.call(`/fine_tuning/jobs/${job}/pause`, {})
  while (server.trainers().length > 0) await wait(100)
}

/** Waits until the job has taken two more steps. */
async function waitForStep(server, job) {
  const last = async () => (await server.call(`/fine_tuning/jobs/${job}/events?limit=100`)).data
  const newest = (events) => Math.max(0, ...events.flatMap(({ data }) => data?.step ?? []))
  const before = newest(await last())
  for (;;) {
    const events = await last()
    const failed = events.find(({ level }) => level === 'error')
    if (failed !== undefined) throw new Error(failed.message)
    if (newest(events) >= before + 2) return
    await wait(200)
  }
}

/** Asks for a text. Returns its tokens, and the milliseconds to the first one. */
async function ask(server, i) {
  const body = { prompt: PROMPTS[i % PROMPTS.length], max_tokens: TOKENS, ignore_eos: true, stream: true }
  const startedAt = performance.now()
  const answer = await server.request('/completions', body)
  let first
  let text = ''
  for await (const piece of answer.body) {
    first ??= performance.now() - startedAt
    text += Buffer.from(piece).toString()
  }
  if (!text.includes('[DONE]')) throw new Error(text.slice(-300))
  return first
}

async function askAgain(server, seconds) {
  const startedAt = performance.now()
  let count = 0
  await Promise.all(
    Array.from({ length: CALLERS }, async (_, i) => {
      while (performance.now() - startedAt < 1000 * seconds) {
        await ask(server, i)
        count++
      }
    }),
  )
  const perSecond = (1000 * count) / (performance.now() - startedAt)
  return { rate: perSecond * TOKENS, perSecond }
}

/** Requests at random moments, which do not wait for one another. */
async function askNow(server, { seconds, everySeconds, seed }) {
  const random = randomFrom(`arrivals ${seed}`)
  const asked = []
  for (let at = 0; at < seconds; ) {
    const pause = -Math.log(1 - random.next()) * everySeconds
    await wait(1000 * pause)
    at += pause
    asked.push(ask(server, asked.length))
  }
  return Promise.all(asked)
}

/** The job's own command, without a server, after some steps. */
async function pssOfTraining(settings, folder) {
  const out = join(folder, 'alone')
  const args = [MAIN, 'train', '--config', settings, '--out', out]
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'pipe'] })
  let told = ''
  child.stderr.on('data', (text) => {
    told += text
  })
  const ended = new Promise((resolve) => child.on('exit', resolve))
  const hasSteps = () => {
    try {
      return readFileSync(join(out, 'metrics.jsonl'), 'utf8').split('\n').length > 3
    } catch {
      return false
    }
  }
  while (child.exitCode === null && !hasSteps()) await wait(200)
  if (child.exitCode !== null) throw new Error(told)
  const pss = pssOf(child.pid)
  child.kill('SIGKILL')
  await ended
  return pss
}

/** Memory of a process: pages that several processes map count in shares. */
function pssOf(pid) {
  return 1024 * Number(/^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))[1])
}

function weightsOf(model) {
  const place = join(model, 'onnx')
  return readdirSync(place).reduce((sum, name) => sum + statSync(join(place, name)).size, 0)
}
