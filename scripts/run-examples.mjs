// Runs every example, as a reader would, and stops at the first that fails.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Arguments of examples that would take minutes. */
const SHORT = { 'agent.mjs': ['2'] }

/** Packages of examples that lowrank itself does not need. */
const NEEDS = { 'support-bot.mjs': 'hono' }

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
for (const name of readdirSync(join(root, 'examples')).filter((file) => file.endsWith('.mjs'))) {
  console.log(`\n-- examples/${name}`)
  const needed = NEEDS[name]
  if (needed !== undefined && !isHere(needed)) {
    console.log(`skipped: examples/${name}: ${needed} is not installed`)
    continue
  }
  const started = performance.now()
  const { status } = spawnSync(process.execPath, [join('examples', name), ...(SHORT[name] ?? [])], {
    cwd: root,
    stdio: 'inherit',
  })
  if (status !== 0) {
    console.error(`examples/${name} failed (exit code ${status})`)
    process.exit(1)
  }
  console.log(`-- ${((performance.now() - started) / 1000).toFixed(1)} s`)
}

function isHere(name) {
  try {
    return createRequire(join(root, 'examples', 'any.mjs')).resolve(name) !== ''
  } catch {
    return false
  }
}
