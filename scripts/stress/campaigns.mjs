// The campaigns: each runs once in an empty folder with random choices of its own, and throws when a promise is broken.

import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import {
  contents,
  expectRefusal,
  expectSame,
  expectSteps,
  expectSuccess,
  hangTo,
  mergeTo,
  run,
  start,
  trainTo,
} from './commands.mjs'
import { makeHangingModel } from './hanging-model.mjs'

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

/** What undisturbed commands make, and how long they take: run once. */
const undisturbed = new Map()
async function expectedOf(name, command, folder, options) {
  if (!undisturbed.has(name)) {
    const out = join(folder, 'undisturbed')
    const before = performance.now()
    expectSuccess(await run(command(out), options))
    undisturbed.set(name, { files: contents(out), ms: performance.now() - before })
  }
  return undisturbed.get(name)
}

/** Only the result may be there. */
function expectOnly(folder, name) {
  const found = readdirSync(folder).filter((entry) => entry !== 'undisturbed')
  if (found.join() !== name) throw new Error(`left behind: ${found.join(', ')}; expected ${name}`)
}

/** Continues what is there, or begins anew. */
async function completed(command, out) {
  const resumed = await run(command(out, '--resume'))
  return resumed.stderr.includes('no run to resume') ? run(command(out, '--overwrite')) : resumed
}

/** How a command refuses to replace what is whole. */
const IS_WHOLE = /exists already|is finished/

/** SIGKILL at random moments, up to three times; then the same command, to the end. */
async function killed({ folder, random }, name, command, again = []) {
  const { files, ms } = await expectedOf(name, command, folder, { slowly: true })
  const out = join(folder, 'out')
  let isDone = false
  let more = again
  for (let kills = 1 + random.below(3); kills > 0 && !isDone; kills--) {
    const { child, ended } = start(command(out, ...more), { slowly: true })
    await Promise.race([sleep(ms * (0.2 + random.next() * 0.8)), ended])
    child.kill('SIGKILL')
    const { code, signal, stderr } = await ended
    // Killed after the result got its name: it is whole, and the same command refuses to replace it.
    isDone = code === 0 || (signal === null && IS_WHOLE.test(stderr))
    // A training that was killed before its first save begins anew.
    more = stderr.includes('no run to resume') ? ['--overwrite'] : again
    if (!isDone && signal !== 'SIGKILL' && more === again) throw new Error(`ended with ${signal ?? code}: ${stderr}`)
  }
  const last = isDone ? undefined : await (again.length > 0 ? completed(command, out) : run(command(out)))
  if (last !== undefined && last.code !== 0) {
    expectRefusal(last)
    if (!IS_WHOLE.test(last.stderr)) throw new Error(last.stderr)
  }
  expectSame(out, files)
  expectOnly(folder, 'out')
  if (name === 'train') expectSteps(out)
}

const CODES = ['ENOSPC', 'EMFILE', 'EIO']

/** A call of the file system fails; then the command runs again. */
async function faulty({ folder, random }, name, command, calls) {
  const { files } = await expectedOf(name, command, folder)
  const out = join(folder, 'out')
  const fault = `${random.pick(CODES)} ${1 + random.below(calls)} ${folder}`
  const first = await run(command(out), { fault })
  try {
    if (first.code !== 0) expectRefusal(first)
    if (first.code !== 0 && name === 'merge' && existsSync(out)) expectSame(out, files)
    const second = existsSync(out) && name === 'merge' ? undefined : await completed(command, out)
    if (first.code !== 0 && second !== undefined) expectSuccess(second)
    expectSame(out, files)
    expectOnly(folder, 'out')
  } catch (error) {
    throw new Error(`${fault}: ${error.message}; the first run: ${first.stderr}`)
  }
}

/** Two processes, one output: one of them makes it, the other is refused. */
async function rivals({ folder, random }, name, command) {
  const { files, ms } = await expectedOf(name, command, folder)
  const out = join(folder, 'out')
  const options = { slowly: random.below(2) === 0 }
  const first = run(command(out), options)
  await sleep(random.next() * ms)
  const results = await Promise.all([first, run(command(out), options)])
  for (const result of results) if (result.code !== 0) expectRefusal(result)
  if (results.every(({ code }) => code === 0)) throw new Error('both ended with 0')
  // Both may have lost: then the next one finds what it needs.
  if (results.every(({ code }) => code !== 0)) expectSuccess(await run(command(out)))
  expectSame(out, files)
  expectOnly(folder, 'out')
  if (name === 'train') expectSteps(out)
}

/** A run in ONNX Runtime that never ends: the first signal ends the command, with a message. */
async function hung({ folder, random }) {
  const model = await makeHangingModel(join(folder, 'model'))
  const out = join(folder, 'out')
  const signal = random.pick(['SIGINT', 'SIGTERM'])
  const { child, ended } = start(hangTo(model, out))
  await Promise.race([sleep(3000 + random.next() * 3000), ended])
  child.kill(signal)
  const result = await ended
  // The signal came before the run did.
  if (result.code === 130 && result.stderr.includes('Stopped after 0 steps')) return
  if (result.signal !== signal) throw new Error(`ended with ${result.signal ?? result.code}: ${result.stderr}`)
  if (!result.stderr.includes('a run did not end')) throw new Error(`no word of the run: ${result.stderr}`)
}

export const campaigns = [
  ['merge killed, then --resume', (context) => killed(context, 'merge', mergeTo, ['--resume'])],
  ['merge killed, then again', (context) => killed(context, 'merge', mergeTo)],
  ['train killed, then --resume', (context) => killed(context, 'train', trainTo, ['--resume'])],
  ['two merges at once', (context) => rivals(context, 'merge', mergeTo)],
  ['two trainings at once', (context) => rivals(context, 'train', trainTo)],
  ['merge with a failing call', (context) => faulty(context, 'merge', mergeTo, 120)],
  ['train whose run never ends', hung],
  ['train with a failing call', (context) => faulty(context, 'train', trainTo, 80)],
]

/** Campaigns with a failure that is known and open, and the reason. docs/reliability.md names them too. */
export const EXCLUDED = new Map([])
