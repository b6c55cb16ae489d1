// Runs the tests for a change: everything that differs from main, in commits and in the working tree.
//
//     node scripts/test-changed.mjs [BRANCH]
//
// Vitest knows which tests import a changed file. This script adds the tests that depend on it in another way: tests of
// commands start programs, and other tests read golden data or documents.

import { execFileSync, spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const git = (...args) => execFileSync('git', args, { cwd: root, encoding: 'utf8' }).trim()
const base = git('merge-base', 'HEAD', process.argv[2] ?? 'main')
const changed = [git('diff', '--name-only', base), git('ls-files', '--others', '--exclude-standard')]
  .flatMap((list) => list.split('\n'))
  .filter(Boolean)

const tests = readdirSync(join(root, 'tests'), { recursive: true })
  .map((name) => `tests/${name.replaceAll('\\', '/')}`)
  .filter((path) => path.endsWith('.test.ts') && !path.endsWith('.slow.test.ts'))

/** Finds tests that do not import a changed file, but depend on it. */
function others() {
  const has = (pattern) => changed.some((path) => pattern.test(path))
  const folders = ['tests/structure/']
  if (has(/^src\/(app\/cli|api\/node)/)) folders.push('tests/app/cli/')
  if (has(/\.md$/)) folders.push('tests/api/documents')
  const suites = new Set(changed.flatMap((path) => /^tests\/golden\/([\w-]+)/.exec(path)?.[1] ?? []))
  return tests.filter((path) => {
    if (folders.some((folder) => path.startsWith(folder))) return true
    if (suites.size === 0) return false
    const text = readFileSync(join(root, path), 'utf8')
    return [...suites].some((suite) => text.includes(`'${suite}'`) || text.includes(`golden/${suite}`))
  })
}

const vitest = join(root, 'node_modules/vitest/vitest.mjs')
const run = (...args) => spawnSync(process.execPath, [vitest, 'run', ...args], { cwd: root, stdio: 'inherit' }).status
const statuses = changed.length === 0 ? [0] : [run('--changed', base, '--passWithNoTests'), run(...others())]
if (changed.length === 0) console.log(`nothing differs from ${base.slice(0, 8)}`)
process.exit(statuses.every((status) => status === 0) ? 0 : 1)
