// Adds and removes adapters of a session while it runs. Memory must stay bounded, and each run must give the result of
// the first run.
//   node --expose-gc sessions.mjs SECONDS RUNS

import { join } from 'node:path'
import { loadAdapter, openSession } from '../../dist/api/node.js'
import { root } from './commands.mjs'

/** Pools of the runtime and the engine take up to 70 MiB, regardless of the number of runs. */
const LIMIT_BYTES = 200 * 2 ** 20
const WARM_RUNS = 200

/** Returns the memory in use after garbage collection. */
function heldBytes() {
  globalThis.gc()
  return process.memoryUsage().rss
}

const [seconds, runs] = process.argv.slice(2).map(Number)
const model = join(root, 'tests/golden/models/llama-optimum')
const adapter = await loadAdapter(join(model, 'golden/adapter-init'))
const session = await openSession(model, { adapters: { kept: adapter } })
const input = { type: 'int64', data: BigInt64Array.of(5n, 6n, 7n), dims: [1, 3] }
const first = (await session.run({ input_ids: input }, { adapter: 'kept' })).logits.data.join()
const end = performance.now() + seconds * 1000
let warmBytes
let run = 0
for (; run < runs && performance.now() < end; run++) {
  const name = `adapter-${run}`
  await session.add(name, adapter)
  const { logits } = await session.run({ input_ids: input }, { adapter: run % 2 === 0 ? name : 'kept' })
  if (logits.data.join() !== first) throw new Error(`run ${run} gives other logits`)
  await session.remove(name)
  if (run === WARM_RUNS) warmBytes = heldBytes()
}
const grownBytes = warmBytes === undefined ? 0 : heldBytes() - warmBytes
if (session.adapters.join() !== 'kept') throw new Error(`adapters are left: ${session.adapters}`)
await session.dispose()
if (grownBytes > LIMIT_BYTES) throw new Error(`memory grew by ${(grownBytes / 2 ** 20).toFixed(0)} MiB in ${run} runs`)
console.log(`${run} runs, memory grew by ${(grownBytes / 2 ** 20).toFixed(1)} MiB`)
