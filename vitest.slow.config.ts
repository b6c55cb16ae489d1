// Tests that take long, or need a browser: `npm run test:slow`.
import { defineConfig } from 'vitest/config'
import { settings } from './vitest.config.js'

export default defineConfig({ test: { ...settings, include: ['tests/**/*.slow.test.ts'] } })
