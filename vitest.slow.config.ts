// Tests that take long, or need a browser: `npm run test:slow`.
import { defineConfig } from 'vitest/config'
import { settings } from './vitest.config.js'

/** They wait for programs and browsers, which take several times as long on a busy machine. */
const LIMIT_MS = 300_000

export default defineConfig({
  test: {
    ...settings,
    testTimeout: LIMIT_MS,
    hookTimeout: LIMIT_MS,
    // Browsers and signals meet the machine's other work. The closing lines name each test that needed its second try.
    retry: process.env.CI === undefined ? 0 : 1,
    include: ['tests/**/*.slow.test.ts'],
  },
})
