// The kernels in Chromium, where there is one: with and without SharedArrayBuffer, and where a policy forbids WebAssembly.

import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'vite'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { PageResult } from './page.js'

const names = [process.env.CHROMIUM, 'chromium', 'chromium-browser', 'google-chrome']
const browser = names.find((name) => name && spawnSync(name, ['--version']).status === 0)
const folder = mkdtempSync(join(tmpdir(), 'lowrank-page-'))
afterAll(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }))

describe.skipIf(browser === undefined)('kernels in Chromium', () => {
  beforeAll(async () => {
    const entry = join(dirname(fileURLToPath(import.meta.url)), 'page.ts')
    const lib = { entry, formats: ['es' as const], fileName: 'page' }
    const options = { lib, outDir: folder, emptyOutDir: false, target: 'es2022' }
    await build({ configFile: false, logLevel: 'silent', build: options })
  })

  /** Opens the page under these headers and waits for what it reports. */
  async function open(headers: Record<string, string>): Promise<PageResult> {
    const server = createServer()
    const result = new Promise<string>((resolve) => {
      server.on('request', (request, response) => {
        if (request.method === 'POST') {
          let body = ''
          request.on('data', (part) => {
            body += part
          })
          request.on('end', () => resolve(body))
          response.end()
        } else if (request.url === '/page.js') {
          response.writeHead(200, { 'content-type': 'text/javascript', ...headers })
          response.end(readFileSync(join(folder, 'page.js')))
        } else {
          response.writeHead(200, { 'content-type': 'text/html', ...headers })
          response.end('<!doctype html><script type="module" src="/page.js"></script>')
        }
      })
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const profile = mkdtempSync(join(folder, 'profile-'))
    const flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run', `--user-data-dir=${profile}`]
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
    const child = spawn(browser!, [...flags, url], { stdio: 'ignore' })
    const ended = new Promise((resolve) => child.once('exit', resolve))
    try {
      return JSON.parse(await result)
    } finally {
      child.kill()
      server.closeAllConnections()
      server.close()
      await ended
    }
  }

  const correct = { error: expect.closeTo(0, 5), isSameMerge: true, isUnmergeExact: true }

  test('on an ordinary page: SIMD, on unshared memory', async () => {
    const kernels = expect.stringMatching(/^wasm (relaxed|plain)$/)
    expect(await open({})).toEqual({ ...correct, kernels, merge: 'wasm plain', isIsolated: false })
  })

  test('on a page that is isolated across origins', async () => {
    const headers = {
      'cross-origin-opener-policy': 'same-origin',
      'cross-origin-embedder-policy': 'require-corp',
      'cross-origin-resource-policy': 'same-origin',
    }
    const kernels = expect.stringMatching(/^wasm (relaxed|plain)$/)
    expect(await open(headers)).toEqual({ ...correct, kernels, merge: 'wasm plain', isIsolated: true })
  })

  test('where the content security policy forbids WebAssembly: the reference loops', async () => {
    const result = await open({ 'content-security-policy': "default-src 'self'" })
    expect(result).toEqual({ ...correct, kernels: 'reference', merge: 'reference', isIsolated: false })
  })
})
