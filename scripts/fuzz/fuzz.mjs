// Feeds changed valid files to everything that reads files. Only errors of lowrank may come back, in bounded time and
// memory.
//   npm run fuzz [-- --seconds N] [--target NAME] [--seed S]
// A failing input is made smaller and kept in out/fuzz/. The same target and seed make the same input again.

import { fork } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { root } from './inputs.mjs'
import { targets } from './targets.mjs'

const LIMIT_MS = 20_000
const LIMIT_BYTES = 2 ** 31
const MINIMIZE_MS = 8_000

const { values } = parseArgs({
  options: { seconds: { type: 'string' }, target: { type: 'string' }, seed: { type: 'string' } },
})
const seconds = Number(values.seconds ?? 60)
/** If only a target and a seed are given, a single input is made again. */
const isOneInput = values.seconds === undefined && values.target !== undefined && values.seed !== undefined
const names = values.target === undefined ? [...targets.keys()] : [values.target]
if (!(seconds > 0) || names.some((name) => !targets.has(name))) {
  console.error(`--seconds is a number, --target one of ${[...targets.keys()].join(', ')}`)
  process.exit(2)
}

let child
function start() {
  child = fork(fileURLToPath(new URL('child.mjs', import.meta.url)), {
    serialization: 'advanced',
    execArgv: ['--max-old-space-size=1024'],
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  })
  child.stderr.resume()
}

/** Runs an input, which is made from the seed or given as bytes. */
function run(target, seed, bytes) {
  if (child === undefined) start()
  const running = child
  return new Promise((resolve) => {
    let made = { input: bytes }
    let timer
    const end = (result) => {
      clearTimeout(timer)
      running.off('message', onMessage).off('exit', onExit)
      if (result.isOver && child === running) {
        child = undefined
        running.kill('SIGKILL')
      }
      resolve({ ...made, ...result })
    }
    const onMessage = (message) => {
      if (message.started) {
        made = { input: message.input ?? bytes, source: message.source }
        timer = setTimeout(() => end({ failure: `runs for more than ${LIMIT_MS / 1000} s`, isOver: true }), LIMIT_MS)
      } else if (message.peakMemoryBytes > LIMIT_BYTES) {
        end({ failure: `needs more than ${LIMIT_BYTES / 2 ** 30} GiB of memory`, isOver: true })
      } else end(message)
    }
    const onExit = (code, signal) => end({ failure: `the process ended: ${signal ?? `code ${code}`}`, isOver: true })
    running.on('message', onMessage).on('exit', onExit)
    running.send({ target, seed, bytes })
  })
}

/** The part of a failure that stays the same while its input shrinks: the message without names and numbers. */
const kindOf = (failure) =>
  failure
    ?.split('\n')[0]
    .replaceAll(/"[^"]*"|\d+/g, '_')
    .slice(0, 60)

/** Removes ranges of bytes, long ones first, as long as the failure stays. */
async function minimized(target, seed, input, failure) {
  const end = Date.now() + MINIMIZE_MS
  let smallest = Buffer.from(input)
  for (let length = smallest.length >> 1; length >= 1 && Date.now() < end; length >>= 1) {
    for (let at = 0; at + length <= smallest.length && Date.now() < end; ) {
      const shorter = Buffer.concat([smallest.subarray(0, at), smallest.subarray(at + length)])
      const result = await run(target, seed, shorter)
      if (kindOf(result.failure) === kindOf(failure)) smallest = shorter
      else at += length
    }
  }
  return smallest
}

async function keep(target, seed, { input, source, failure }) {
  const folder = join(root, 'out', 'fuzz')
  mkdirSync(folder, { recursive: true })
  const file = join(folder, `${target}-${seed}`)
  const small = failure.startsWith('runs for') ? input : await minimized(target, seed, input, failure)
  writeFileSync(`${file}.input`, small)
  writeFileSync(`${file}.json`, JSON.stringify({ target, seed, source, failure }, null, 2))
  console.log(
    `failure: --target ${target} --seed ${seed} (${source})\n  ${failure}\n  kept: ${file}.input, ${small.length} bytes`,
  )
}

const began = performance.now()
const elapsed = () => (performance.now() - began) / 1000
const firstSeed = Number(values.seed ?? Date.now() % 2 ** 31)
console.log(`fuzz: seed ${firstSeed}, targets: ${names.join(', ')}`)
const counts = new Map(names.map((name) => [name, { inputs: 0, refused: 0, ms: 0, kinds: new Set() }]))
let failures = 0
let seed = firstSeed
for (; elapsed() < seconds; seed++) {
  for (const name of names) {
    if (elapsed() >= seconds) break
    const count = counts.get(name)
    // Each target gets about the same time.
    const least = Math.min(...[...counts.values()].map(({ ms }) => ms))
    if (count.ms > least + 500) continue
    const before = performance.now()
    let result = await run(name, seed)
    // Memory adds up over inputs, and the machine may be busy. It is only a failure if a new process fails too.
    if (result.isOver) result = await run(name, seed)
    count.ms += performance.now() - before
    count.inputs++
    if (result.isRefused) count.refused++
    const kind = kindOf(result.failure)
    if (kind === undefined || count.kinds.has(kind)) continue
    count.kinds.add(kind)
    failures++
    await keep(name, seed, result)
  }
  if (isOneInput) break
}
child?.kill('SIGKILL')
const inputs = [...counts.values()].reduce((sum, count) => sum + count.inputs, 0)
for (const [name, { inputs, refused }] of counts) console.log(`  ${name}: ${inputs} inputs, ${refused} refused`)
console.log(
  `fuzz: ${inputs} inputs, ${elapsed().toFixed(0)} seconds, seeds ${firstSeed} to ${seed}, ${failures} failures`,
)
process.exitCode = failures === 0 ? 0 : 1
