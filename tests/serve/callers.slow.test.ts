// Many callers at once, over HTTP: the load test of scripts/stress/callers.mjs, with 240 requests.

import { execFileSync } from 'node:child_process'
import { expect, it } from 'vitest'

it('give each caller its own text while adapters and callers come and go', () => {
  const args = ['--expose-gc', 'scripts/stress/callers.mjs', '--requests', '240', '--adapters', '12']
  expect(execFileSync(process.execPath, args, { encoding: 'utf8' })).toContain('0 problems')
}, 900_000)
