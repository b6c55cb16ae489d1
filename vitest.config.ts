import { defineConfig } from 'vitest/config'

export const settings = {
  reporters: ['default', './scripts/closing-line.mjs'],
  testTimeout: 120_000,
  hookTimeout: 120_000,
}

const SLOW = 'tests/**/*.slow.test.ts'
// These start programs: what one may use of memory and of open files comes from the process that starts it.
const COMMANDS = 'tests/cli/**/*.test.ts'

export default defineConfig({
  test: {
    ...settings,
    // The default leaves one core idle.
    maxWorkers: '100%',
    // Threads start in half the time of processes.
    projects: [
      {
        extends: true,
        test: { name: 'threads', pool: 'threads', include: ['tests/**/*.test.ts'], exclude: [SLOW, COMMANDS] },
      },
      { extends: true, test: { name: 'processes', pool: 'forks', include: [COMMANDS], exclude: [SLOW] } },
    ],
    coverage: {
      provider: 'v8',
      include: ['src/**/*.ts'],
      exclude: ['src/**/gen/**'],
      reporter: ['text-summary', 'html', 'json-summary'],
      reportsDirectory: 'out/coverage',
    },
  },
})
