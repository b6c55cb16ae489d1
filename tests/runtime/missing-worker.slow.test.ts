// A page of plain modules whose server lacks a worker's script, in Chromium: the error names the address, which then is the real one.

import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { browser, openPage } from '../browser.js'
import { root } from '../cli/lowrank.js'

const PAGE = `
import { webRuntime } from './index/web-runtime.js'
import { connect } from './runtime/rpc.js'

const { remote } = connect(webRuntime('/ort.mjs').spawn('train'))
const failed = await remote.loadRuntime('/ort.mjs').then(() => 'no error', (error) => error.name + ': ' + error.message)
await fetch('/result', { method: 'POST', body: JSON.stringify({ failed, origin: location.origin }) })
`

describe.skipIf(browser === undefined)('a page of plain modules without a worker script', () => {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-missing-'))
  afterAll(() => rmSync(folder, { recursive: true, force: true, maxRetries: 20 }))

  it('is told which address is missing, and what to do', { timeout: 60_000 }, async () => {
    const files = new Map<string, Uint8Array>([['/page.js', Buffer.from(PAGE)]])
    for (const part of ['base', 'runtime', 'index']) {
      for (const name of readdirSync(join(root, 'dist', part)).filter((file) => file.endsWith('.js')))
        files.set(`/${part}/${name}`, readFileSync(join(root, 'dist', part, name)))
    }
    const { failed, origin } = (await openPage(folder, files)) as { failed: string; origin: string }
    expect(failed).toContain(`RuntimeError: ${origin}/train/worker.js: the script of the worker does not load`)
    expect(failed).toMatch(/Pages without a bundler import dist\/browser\.js/)
  })
})
