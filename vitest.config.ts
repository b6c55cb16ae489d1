import { availableParallelism } from 'node:os'
import { setFlagsFromString } from 'node:v8'
import { defineConfig } from 'vitest/config'
import { alias, plugin } from './tests/from-src.js'

/** NODE_OPTIONS of the tests: every process and thread of them loads it. */
export const ONE_THREAD = [
  process.env.NODE_OPTIONS,
  `--import=${new URL('./tests/one-thread.mjs', import.meta.url).href}`,
]
  .filter(Boolean)
  .join(' ')

// Tests make much that is soon garbage. With more room for it, a twentieth of their time is saved. For threads that start
// later, flags count as those of the command line do.
setFlagsFromString('--max-semi-space-size=64')

/** Tests run src/, not the build. */
export const fromSrc = { resolve: { alias }, plugins: [plugin] }

export const settings = {
  reporters: ['default', './scripts/closing-line.mjs'],
  testTimeout: 120_000,
  hookTimeout: 120_000,
  globalSetup: ['./scripts/golden/packed.mjs', './scripts/generate/families.mjs', './tests/from-src.ts'],
  setupFiles: ['./tests/fixed-seed.ts', './tests/equal-bytes.ts'],
}

const SLOW = 'tests/**/*.slow.test.ts'
// These start programs: what one may use of memory and of open files comes from the process that starts it.
const COMMANDS = 'tests/app/cli/**/*.test.ts'
// These replace modules, which other files may not see.
const MOCKS = ['tests/lora/gradients.test.ts', 'tests/merge/node/durability.test.ts']

export default defineConfig({
  ...fromSrc,
  test: {
    ...settings,
    env: { NODE_OPTIONS: ONE_THREAD },
    // Modules are transformed once, not for each project and run. A module that changes is transformed again.
    experimental: { fsModuleCache: true, fsModuleCachePath: 'out/test-modules' },
    // Tests wait for files and programs: one more than there are cores.
    maxWorkers: availableParallelism() + 1,
    // Threads start in half the time of processes. Files that share a worker share the modules of src/, which are loaded once.
    projects: [
      {
        extends: true,
        test: {
          name: 'threads',
          pool: 'threads',
          isolate: false,
          include: ['tests/**/*.test.ts'],
          exclude: [SLOW, COMMANDS, ...MOCKS],
        },
      },
      { extends: true, test: { name: 'mocks', pool: 'threads', include: MOCKS } },
      {
        extends: true,
        test: { name: 'processes', pool: 'forks', isolate: false, include: [COMMANDS], exclude: [SLOW] },
      },
    ],
    coverage: {
      provider: 'v8',
      include: ['src/**/*.ts'],
      exclude: ['src/**/gen/**'],
      reporter: ['text-summary', 'html', 'json-summary'],
      reportsDirectory: 'out/coverage',
      reportOnFailure: true,
    },
  },
})
