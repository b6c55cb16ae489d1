// Tests that take long, or need a browser: `npm run test:slow`.

import { readdirSync, readFileSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { defineConfig } from 'vitest/config'
import { fromSrc, ONE_THREAD, settings } from './vitest.config.js'

/** They wait for programs and browsers, which take several times as long on a busy machine. */
const LIMIT_MS = 300_000

/** Tests that try a part of their inputs in `npm test`, and all here: those that import tests/thorough.ts. */
const THOROUGH = readdirSync('tests', { recursive: true, encoding: 'utf8' })
  .filter((path) => path.endsWith('.test.ts') && readFileSync(join('tests', path), 'utf8').includes("/thorough.js'"))
  .map((path) => `tests/${path.replaceAll('\\', '/')}`)

const SLOW = 'tests/**/*.slow.test.ts'

/** The package as npm installs it: the first test that needs it packs and installs it, the others copy it. */
const INSTALLED = join(tmpdir(), `lowrank-installed-${process.pid}`)
process.once('exit', () => rmSync(INSTALLED, { recursive: true, force: true }))

export default defineConfig({
  ...fromSrc,
  test: {
    ...settings,
    testTimeout: LIMIT_MS,
    hookTimeout: LIMIT_MS,
    // Browsers and signals meet the machine's other work. The closing lines name each test that needed its second try.
    retry: process.env.CI === undefined ? 0 : 1,
    env: { THOROUGH: '1', INSTALLED, NODE_OPTIONS: ONE_THREAD },
    // Tests wait for the programs that they start.
    maxWorkers: availableParallelism(),
    projects: [
      { extends: true, test: { name: 'slow', include: [SLOW] } },
      // They share a worker in `npm test` too.
      {
        extends: true,
        test: { name: 'thorough', pool: 'threads', isolate: false, include: THOROUGH, exclude: [SLOW] },
      },
    ],
  },
})
