// A limit on open files that is too low for lowrank's modules or for the files of a command gives a message without a
// stack trace.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { binary, root } from './lowrank.js'

const MERGE = join(root, 'tests/golden/merge/llama')

let scratch: string
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), 'open-files-'))
})
afterAll(() => rmSync(scratch, { recursive: true }))

const limits = [22, 26, 28, 32, 36, 40, 43, 46, 60]

// Modules and files are opened in threads, so how far a command gets with few files differs from run to run. It must
// either finish or say what is short.
it.skipIf(process.platform !== 'linux').each(limits)('ulimit -n %i', (limit) => {
  const options = { base: `${MERGE}/base`, adapter: `${MERGE}/adapter`, out: join(scratch, `${limit}`), threads: '2' }
  const args = ['merge', ...Object.entries(options).flatMap(([name, value]) => [`--${name}`, value])]
  const command = [process.execPath, binary, ...args].map((word) => `'${word}'`).join(' ')
  // NODE_OPTIONS would load the tests' preloaded module, which opens files too.
  const env = { ...process.env, NODE_OPTIONS: '' }
  const { status, stderr } = spawnSync('sh', ['-c', `ulimit -n ${limit}; ${command}`], { encoding: 'utf8', env })
  expect(stderr).not.toMatch(/^ {4}at |a bug in lowrank/m)
  if (status !== 0) expect([status, stderr]).toEqual([1, expect.stringMatching(/^error: .*ulimit -n/m)])
  if (limit === 22) expect(status).toBe(1)
  if (limit === 60) expect(status).toBe(0)
})
