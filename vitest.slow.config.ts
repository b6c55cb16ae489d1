// Tests that take long, or need a browser: `npm run test:slow`.
import { defineConfig } from 'vitest/config'
import { settings } from './vitest.config.js'

/** They wait for programs and browsers, which take several times as long on a busy machine. */
const LIMIT_MS = 300_000

/** These try a part of their inputs in `npm test`, and all here. */
const THOROUGH = [
  ...[
    'base/dtype',
    'data/read-rows',
    'formats/json',
    'formats/onnx',
    'formats/safetensors-attacks',
    'formats/torch',
    'formats/torch-attacks',
  ],
  ...['linalg/linalg', 'lora/patterns/expression', 'peft/keys', 'peft/refused', 'text/expression-cost'],
]

export default defineConfig({
  test: {
    ...settings,
    testTimeout: LIMIT_MS,
    hookTimeout: LIMIT_MS,
    // Browsers and signals meet the machine's other work. The closing lines name each test that needed its second try.
    retry: process.env.CI === undefined ? 0 : 1,
    env: { THOROUGH: '1' },
    include: ['tests/**/*.slow.test.ts', ...THOROUGH.map((name) => `tests/${name}.test.ts`)],
  },
})
