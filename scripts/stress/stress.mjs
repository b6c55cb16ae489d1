// Disturbs merges, trainings and sessions: with kills, rivals, failing calls of the file system, and changing adapters.
//   npm run stress [-- --seconds N] [--only TEXT] [--seed S]
// Campaigns take turns until the time is over. The files of a failure are kept in out/stress/.

import { execFileSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { randomFrom } from '../fuzz/random.mjs'
import { campaigns } from './campaigns.mjs'
import { root } from './commands.mjs'

const { values } = parseArgs({
  options: { seconds: { type: 'string', default: '90' }, only: { type: 'string' }, seed: { type: 'string' } },
})
const seconds = Number(values.seconds)
const firstSeed = Number(values.seed ?? Date.now() % 2 ** 31)
const isChosen = (name) => name.includes(values.only ?? '')
const chosen = campaigns.filter(([name]) => isChosen(name))
if (!(seconds > 0)) throw new Error('--seconds is a number')

const began = performance.now()
const elapsed = () => (performance.now() - began) / 1000
const counts = new Map(chosen.map(([name]) => [name, 0]))
/** A campaign that has failed this often is not run again. */
const MAX_FAILURES = 5
const failed = new Map(chosen.map(([name]) => [name, 0]))
let failures = 0
let turns = 0
console.log(`stress: seed ${firstSeed}`)

// A tenth of the time, and 10,000 runs at most.
const sessions = fileURLToPath(new URL('sessions.mjs', import.meta.url))
if (isChosen('sessions')) {
  try {
    const told = execFileSync(process.execPath, ['--expose-gc', sessions, String(Math.max(5, seconds / 10)), '10000'], {
      encoding: 'utf8',
    })
    console.log(`  sessions: ${told.trim()}`)
  } catch (error) {
    failures++
    console.log(`failure: sessions: ${error.message}`)
  }
}

for (let seed = firstSeed; elapsed() < seconds && [...failed.values()].some((count) => count < MAX_FAILURES); seed++) {
  for (const [name, campaign] of chosen) {
    if (elapsed() >= seconds) break
    if (failed.get(name) >= MAX_FAILURES) continue
    const folder = mkdtempSync(join(tmpdir(), 'lowrank-stress-'))
    try {
      await campaign({ folder, random: randomFrom(`${name} ${seed}`) })
    } catch (error) {
      failures++
      failed.set(name, failed.get(name) + 1)
      const kept = join(root, 'out', 'stress', `${name.replaceAll(/\W+/g, '-')}-${seed}`)
      mkdirSync(kept, { recursive: true })
      cpSync(folder, kept, { recursive: true })
      console.log(`failure: --only '${name}' --seed ${seed}\n  ${error.message}\n  kept: ${kept}`)
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
    counts.set(name, counts.get(name) + 1)
    turns++
  }
}
for (const [name, count] of counts) console.log(`  ${name}: ${count} times`)
console.log(`stress: ${turns} disturbed runs, ${elapsed().toFixed(0)} seconds, ${failures} failures`)
process.exitCode = failures === 0 ? 0 : 1
