import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['tests/**/*.test.ts'],
    reporters: ['default', './scripts/closing-line.mjs'],
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
})
