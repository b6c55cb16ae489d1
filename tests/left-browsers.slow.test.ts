// No Chromium outlives the test that opened it, even if the test takes too long or Vitest is stopped.

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, it } from 'vitest'
import { chromium } from './chromium.js'

const root = fileURLToPath(new URL('../', import.meta.url))
const scratch = mkdtempSync(join(tmpdir(), 'lowrank-left-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true, maxRetries: 20 }))

/**
 * Writes a suite and runs it in Vitest. The page of its first test never posts a result. Its second test waits until
 * Vitest is stopped.
 */
const suite = (name: string, limitMs: number) => {
  const folder = mkdtempSync(join(scratch, `${name}-`))
  for (const one of ['tmp', 'site']) mkdirSync(join(folder, one), { recursive: true })
  writeFileSync(join(folder, 'site', 'page.js'), '')
  const test = `
    import { writeFileSync } from 'node:fs'
    import { setTimeout } from 'node:timers/promises'
    import { it } from 'vitest'
    import { openPage } from ${JSON.stringify(join(root, 'tests/browser.ts'))}
    writeFileSync(${JSON.stringify(join(folder, 'pid'))}, String(process.pid))
    it('never ends', { timeout: ${limitMs} }, () => openPage(${JSON.stringify(join(folder, 'site'))}))
    it('comes after it', { timeout: 600_000 }, () => setTimeout(600_000))
  `
  writeFileSync(join(folder, 'hanging.test.ts'), test)
  const config = `export default { root: ${JSON.stringify(root)}, test: { dir: ${JSON.stringify(folder)}, include: ['**/hanging.test.ts'] } }`
  writeFileSync(join(folder, 'vitest.config.mjs'), config)
  const program = join(root, 'node_modules/vitest/vitest.mjs')
  const child = spawn(process.execPath, [program, 'run', '--config', join(folder, 'vitest.config.mjs')], {
    // Profiles are in this folder for temporary files, which identifies these browsers.
    env: { ...process.env, TMPDIR: join(folder, 'tmp') },
    stdio: 'ignore',
  })
  return { child, folder }
}

/** Finds processes of browsers by the profile in their arguments. */
const browsersOf = (folder: string) =>
  spawnSync('ps', ['-eo', 'args'], { encoding: 'utf8' })
    .stdout.split('\n')
    .filter((line) => line.includes(`--user-data-dir=${join(folder, 'tmp')}`))

const profilesIn = (folder: string) =>
  readdirSync(join(folder, 'tmp')).filter((name) => name.startsWith('lowrank-chromium-'))

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

async function until(isSo: () => boolean): Promise<void> {
  for (let i = 0; i < 1000 && !isSo(); i++) await setTimeout(100)
  expect(isSo()).toBe(true)
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  const ended = new Promise((resolve) => child.once('exit', resolve))
  child.kill(signal)
  await ended
}

describe.skipIf(chromium === undefined || process.platform === 'win32')(
  'no Chromium is left',
  { concurrent: true },
  () => {
    it('by a test that takes too long, while later tests run', async () => {
      const { child, folder } = suite('late', 8000)
      try {
        await until(() => browsersOf(folder).length > 0)
        await until(() => browsersOf(folder).length === 0)
        expect(child.exitCode).toBe(null)
        await until(() => profilesIn(folder).length === 0)
      } finally {
        await end(child, 'SIGINT')
      }
    })

    it.each(['SIGINT', 'SIGKILL'] as const)('by a run that %s ends', async (signal) => {
      const { child, folder } = suite(signal, 600_000)
      await until(() => browsersOf(folder).length > 0)
      await end(child, signal)
      await until(() => browsersOf(folder).length === 0 && profilesIn(folder).length === 0)
      const worker = Number(readFileSync(join(folder, 'pid'), 'utf8'))
      await until(() => !isAlive(worker))
    })
  },
)
