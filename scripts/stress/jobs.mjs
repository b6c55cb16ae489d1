// Kills a server that trains, the process of its job, or both, at random moments of three jobs. Nothing may be lost,
// nothing done or told twice, and no process may remain.
//   node scripts/stress/jobs.mjs [--kills 30] [--steps 40] [--seed S]

import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { randomFrom } from '../fuzz/random.mjs'
import { JobServer } from './job-server.mjs'

const option = (value) => ({ type: 'string', default: String(value) })
const { values } = parseArgs({ options: { kills: option(30), steps: option(40), seed: option(Date.now() % 2 ** 31) } })
const [kills, steps] = [Number(values.kills), Number(values.steps)]
const JOBS = 3
/** A process that was killed without having taken a step is begun again three times. */
const MOST_TRAINER_KILLS = 2
const SLOWEST_END_MS = 60_000

const random = randomFrom(`jobs ${values.seed}`)
const folder = mkdtempSync(join(tmpdir(), 'lowrank-kills-'))
const server = new JobServer(folder)
const rows = Array.from({ length: 4 }, (_, i) => ({ text: `The boat number ${i} sails.` }))
const counts = { server: 0, trainer: 0, both: 0 }
/** Files of which the server has said that it has them. */
const acknowledged = []
let trainerKills = 0

function kill(pid) {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It has ended by itself.
  }
}

async function disturb() {
  await wait(100 + random.below(2900))
  const trainers = server.trainers()
  const isTrainer = trainers.length > 0 && trainerKills < MOST_TRAINER_KILLS
  const victim = isTrainer ? random.pick(['server', 'trainer', 'both']) : 'server'
  trainerKills = victim === 'trainer' ? trainerKills + 1 : 0
  counts[victim]++
  // A file on its way is there as a whole or not at all.
  const upload = server.upload(rows).then(
    (id) => acknowledged.push(id),
    () => {},
  )
  await wait(random.below(20))
  if (victim !== 'server') for (const pid of trainers) kill(pid)
  if (victim !== 'trainer') await server.end('SIGKILL')
  await upload
  if (victim !== 'trainer') await server.start()
}

async function check(id, reference) {
  const job = await server.call(`/fine_tuning/jobs/${id}`)
  assert.deepEqual([job.status, job.error], ['succeeded', null])
  const events = (await server.all(`/fine_tuning/jobs/${id}/events`)).reverse()
  const told = events.flatMap(({ data }) => data?.step ?? [])
  assert.deepEqual(
    told,
    Array.from({ length: steps }, (_, i) => i + 1),
    'each step is told once',
  )
  for (const once of [/^Created/, /^Validating/, /validated/, /job started/, /model created/, /completed/]) {
    assert.equal(events.filter(({ message }) => once.test(message)).length, 1, String(once))
  }
  const checkpoints = await server.all(`/fine_tuning/jobs/${id}/checkpoints`)
  const expected = Array.from({ length: steps / rows.length }, (_, i) => steps - rows.length * i)
  assert.deepEqual(
    checkpoints.map(({ step_number }) => step_number),
    expected,
  )
  assert.equal(events.filter(({ message }) => /^Checkpoint/.test(message)).length, expected.length - 1)
  const names = (await server.call('/models')).data.map(({ id: name }) => name)
  for (const { fine_tuned_model_checkpoint: model } of checkpoints) assert.ok(names.includes(model), model)
  await server.call('/completions', {
    model: checkpoints.at(-1).fine_tuned_model_checkpoint,
    prompt: 'A',
    max_tokens: 1,
  })
  await server.call('/completions', { model: job.fine_tuned_model, prompt: 'A', max_tokens: 1 })
  const results = (await server.all('/files')).filter(({ purpose }) => purpose === 'fine-tune-results')
  assert.equal(results.filter(({ id: file }) => job.result_files.includes(file)).length, 1)
  const bytes = (place) => readFileSync(join(place, 'adapter_model.safetensors'))
  assert.ok(bytes(server.runOf(id)).equals(bytes(reference)), 'the same bytes as without kills')
}

console.log(`jobs: seed ${values.seed}`)
try {
  await server.start()
  let done = 0
  while (done < kills) {
    const file = await server.upload(rows)
    acknowledged.push(file)
    const options = { hyperparameters: { n_epochs: steps / rows.length, batch_size: 1 }, lowrank: { rank: 2 }, seed: 1 }
    const ids = []
    for (let i = 0; i < JOBS; i++) ids.push(await server.create(file, options))
    const areRunning = async () => {
      return (await server.all('/fine_tuning/jobs')).some(({ finished_at }) => finished_at === null)
    }
    for (; done < kills && (await areRunning()); done++) await disturb()
    for (const id of ids) await server.ended(id)
    const reference = server.repeat(await server.call(`/fine_tuning/jobs/${ids[0]}`), join(folder, `reference-${done}`))
    for (const id of ids) await check(id, reference)
    const files = (await server.all('/files')).map(({ id }) => id)
    for (const id of acknowledged) assert.ok(files.includes(id), `${id} is lost`)
    console.log(`${done} kills: ${JSON.stringify(counts)}`)
  }
  await server.end()
  const end = performance.now() + SLOWEST_END_MS
  while (server.trainers().length > 0 && performance.now() < end) await wait(100)
  assert.deepEqual(server.trainers(), [], 'no process remains')
  const left = readdirSync(folder, { recursive: true }).filter((name) => /\.tmp(\/|$)/.test(name))
  assert.deepEqual(left, [], 'no unfinished file remains')
  rmSync(folder, { recursive: true, force: true })
} catch (error) {
  console.error(`failure: ${error.stack}\nThe files are in ${folder}`)
  process.exitCode = 1
  await server.end('SIGKILL')
}
