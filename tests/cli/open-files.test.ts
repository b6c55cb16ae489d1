// Limits of open files that are too low for the modules of lowrank, or for the files of a command: a message, and no
// stack.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, it } from 'vitest'

const root = fileURLToPath(new URL('../../', import.meta.url))
const MERGE = join(root, 'tests/golden/merge/llama')

let scratch: string
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), 'open-files-'))
})
afterAll(() => rmSync(scratch, { recursive: true }))

it.skipIf(process.platform !== 'linux').each([22, 26, 28, 32, 36, 40, 43, 46, 60])('ulimit -n %i', (limit) => {
  const args = ['merge', '--base', `${MERGE}/base`, '--adapter', `${MERGE}/adapter`, '--out', join(scratch, `${limit}`)]
  const command = [process.execPath, join(root, 'dist/cli/main.js'), ...args].map((word) => `'${word}'`).join(' ')
  const { status, stderr } = spawnSync('sh', ['-c', `ulimit -n ${limit}; ${command}`], { encoding: 'utf8' })
  expect(stderr).not.toMatch(/^ {4}at |a bug in lowrank/m)
  if (status !== 0) expect([status, stderr]).toEqual([1, expect.stringMatching(/^error: .*ulimit -n/m)])
  if (limit === 60) expect(status).toBe(0)
  if (limit < 30) expect(status).toBe(1)
})
