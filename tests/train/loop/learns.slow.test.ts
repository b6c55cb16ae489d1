// The bundled model learns a form from a reward alone, and otherwise stays the model that it was.

import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'

it('learns to name a number, on prompts that it has not seen', async () => {
  const { stdout } = await promisify(execFile)(process.execPath, ['bench/grpo.mjs', '--learn', '--seeds', '1'])
  const { before, after, distinct, perplexity } = JSON.parse(stdout.split('\n')[0])
  expect(before).toBeLessThan(0.1)
  expect(after).toBeGreaterThan(0.8)
  expect(distinct).toBeGreaterThanOrEqual(0.8)
  expect(perplexity).toBeLessThanOrEqual(1.3)
})
