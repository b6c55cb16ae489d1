// The tables of options are made from the types, and are up to date.

import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { root } from './project.js'

it('has tables of options that are what the types say', { timeout: 120_000 }, () => {
  const script = join(root, 'scripts/generate/options.mjs')
  expect(execFileSync(process.execPath, [script, '--check'], { encoding: 'utf8' })).toContain('up to date')
})
