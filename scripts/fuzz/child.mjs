// Runs one input after another for the runner, in a separate process: if an input hangs or takes all memory, only this
// process ends.

import { LowrankError } from '../../dist/core/base/errors.js'
import { randomFrom } from './random.mjs'
import { targets } from './targets.mjs'

const seedsOf = new Map()
async function seedOf({ target, seed }) {
  const { seeds } = targets.get(target)
  if (!seedsOf.has(target)) seedsOf.set(target, await seeds())
  const random = randomFrom(`${target} ${seed}`)
  return { random, source: random.pick(seedsOf.get(target)) }
}

process.on('message', async ({ target, seed, bytes }) => {
  const { mutate, make, check } = targets.get(target)
  const { random, source } = await seedOf({ target, seed })
  const input = bytes === undefined ? mutate(random, await make(source)) : Buffer.from(bytes)
  process.send({ started: true, input: bytes === undefined ? input : undefined, source })
  let failure
  let isRefused = false
  try {
    await check(input, source)
  } catch (error) {
    isRefused = error instanceof LowrankError
    if (!isRefused) failure = error instanceof Error ? `${error.name}: ${error.message}` : `not an Error: ${error}`
    if (!isRefused) failure += `\n${error?.stack?.split('\n').slice(1, 6).join('\n') ?? ''}`
  }
  process.send({ failure, isRefused, peakMemoryBytes: process.resourceUsage().maxRSS * 1024 })
})
