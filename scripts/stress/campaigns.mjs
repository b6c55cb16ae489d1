// The campaigns. Each runs in an empty folder with its random choices, and throws if lowrank breaks a promise.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
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

/** The results and times of undisturbed commands. Each command runs only once. */
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

/** Throws unless the folder contains the result, and nothing else but `undisturbed`. */
function expectOnly(folder, name) {
  const found = readdirSync(folder).filter((entry) => entry !== 'undisturbed')
  if (found.join() !== name) throw new Error(`left behind: ${found.join(', ')}; expected ${name}`)
}

/** Returns whether a training in the folder can be continued. */
const isContinuable = (out) => existsSync(join(out, 'training-state.safetensors'))

/** Returns whether the result is complete. The same command then refuses to replace it. */
function isWhole(name, out) {
  if (name === 'merge') return existsSync(join(out, 'lowrank-merge.json'))
  const marker = join(out, 'lowrank.json')
  return existsSync(marker) && JSON.parse(readFileSync(marker, 'utf8')).status === 'finished' && !isContinuable(out)
}

/** Returns the flags with which a command continues. A training that was stopped before its first save begins again. */
const onwards = (name, out) => {
  if (name === 'merge') return []
  return [isContinuable(out) ? '--resume' : '--overwrite']
}

/** Kills a command at random moments, up to three times, and then runs it to the end. */
async function killed({ folder, random }, name, command) {
  const { files, ms } = await expectedOf(name, command, folder, { slowly: true })
  const out = join(folder, 'out')
  const next = () => command(out, ...onwards(name, out))
  let isFirst = true
  for (let kills = 1 + random.below(3); kills > 0 && !isWhole(name, out); kills--) {
    const { child, ended } = start(isFirst ? command(out) : next(), { slowly: true })
    isFirst = false
    await Promise.race([sleep(ms * (0.2 + random.next() * 0.8)), ended])
    child.kill('SIGKILL')
    const result = await ended
    if (result.signal !== 'SIGKILL') expectSuccess(result)
  }
  // It may have been killed after the result got its name. Then the result is complete, or the next run completes it.
  const wasWhole = isWhole(name, out)
  const last = await run(next())
  if (!(wasWhole && last.code !== 0)) expectSuccess(last)
  else expectRefusal(last)
  expectSame(out, files)
  expectOnly(folder, 'out')
  if (name === 'train') expectSteps(out)
}

const CODES = ['ENOSPC', 'EMFILE', 'EIO']

/** Lets a call of the file system fail, and then runs the command again. */
async function faulty({ folder, random }, name, command, calls) {
  const { files } = await expectedOf(name, command, folder)
  const out = join(folder, 'out')
  const fault = `${random.pick(CODES)} ${1 + random.below(calls)} ${folder}`
  const first = await run(command(out), { fault })
  try {
    if (first.code !== 0) expectRefusal(first)
    if (first.code !== 0 && name === 'merge' && existsSync(out)) expectSame(out, files)
    if (!isWhole(name, out))
      expectSuccess(await run(existsSync(out) ? command(out, ...onwards(name, out)) : command(out)))
    expectSame(out, files)
    expectOnly(folder, 'out')
  } catch (error) {
    throw new Error(`${fault}: ${error.message}; the first run: ${first.stderr}`)
  }
}

/**
 * Starts two processes with the same output. At most one of them makes it, and the other says that it did not. Two
 * trainings may refuse each other; then a third must succeed.
 */
async function rivals({ folder, random }, name, command) {
  const { files, ms } = await expectedOf(name, command, folder)
  const out = join(folder, 'out')
  const options = { slowly: random.below(2) === 0 }
  const first = run(command(out), options)
  await sleep(random.next() * ms)
  const results = await Promise.all([first, run(command(out), options)])
  for (const result of results) if (result.code !== 0) expectRefusal(result)
  if (results.every(({ code }) => code === 0)) throw new Error('both ended with 0')
  // Two trainings may refuse each other: then the next one finds what it needs.
  if (results.every(({ code }) => code !== 0)) {
    if (name === 'merge') throw new Error('neither gave its result')
    expectSuccess(await run(command(out)))
  }
  expectSame(out, files)
  expectOnly(folder, 'out')
  if (name === 'train') expectSteps(out)
}

/** Sends signals during a step that never ends: the first waits for the step, the second ends the command at once. */
async function hung({ folder, random }) {
  const model = await makeHangingModel(join(folder, 'model'))
  const out = join(folder, 'out')
  const signal = random.pick(['SIGINT', 'SIGTERM'])
  const { child, ended } = start(hangTo(model, out))
  // Before that the command does not listen to signals yet.
  await Promise.race([new Promise((resolve) => child.stderr.once('data', resolve)), ended])
  await Promise.race([sleep(3000 + random.next() * 3000), ended])
  child.kill(signal)
  await Promise.race([sleep(1000), ended])
  child.kill(signal)
  const result = await ended
  // The signal came before the step did.
  if (result.code === 130 && !result.stderr.includes('error: ')) return
  if (result.signal !== signal) throw new Error(`ended with ${result.signal ?? result.code}: ${result.stderr}`)
  if (!result.stderr.includes('Finishing the step')) throw new Error(`no word of the step: ${result.stderr}`)
}

export const campaigns = [
  ['merge killed', (context) => killed(context, 'merge', mergeTo)],
  ['train killed, then --resume', (context) => killed(context, 'train', trainTo)],
  ['two merges at once', (context) => rivals(context, 'merge', mergeTo)],
  ['two trainings at once', (context) => rivals(context, 'train', trainTo)],
  ['merge with a failing call', (context) => faulty(context, 'merge', mergeTo, 120)],
  ['train whose run never ends', hung],
  ['train with a failing call', (context) => faulty(context, 'train', trainTo, 80)],
]
