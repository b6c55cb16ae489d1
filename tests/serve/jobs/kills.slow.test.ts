// Kills of a server that trains and of its processes: scripts/stress/jobs.mjs, with four kills.

import { execFileSync } from 'node:child_process'
import { expect, it } from 'vitest'

it('loses nothing, does nothing twice and leaves no process if server, trainer or both are killed', () => {
  const args = ['scripts/stress/jobs.mjs', '--kills', '4', '--steps', '24', '--seed', '1']
  expect(execFileSync(process.execPath, args, { encoding: 'utf8' })).toContain('4 kills')
}, 600_000)
