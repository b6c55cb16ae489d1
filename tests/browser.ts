// Pages in Chromium, if it is installed. They are built from a TypeScript entry and served by this process, and they
// report their result with a POST request.

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { build } from 'vite'
import { afterAll, beforeAll, onTestFinished } from 'vitest'
import { startChromium, WITHOUT_GPU } from './chromium.js'

export { chromium as browser, WEBGPU } from './chromium.js'

export const ISOLATED = {
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-embedder-policy': 'require-corp',
  'cross-origin-resource-policy': 'same-origin',
}
/** Forbids WebAssembly too: that would need wasm-unsafe-eval. */
export const STRICT = { 'content-security-policy': "default-src 'self'" }

/** The folder of onnxruntime-web's files, or undefined if it is not installed. */
export function webRuntimeFolder(): string | undefined {
  try {
    return dirname(createRequire(import.meta.url).resolve('onnxruntime-web/wasm'))
  } catch {
    return undefined
  }
}

export interface Page<T> {
  /** Opens the page with these headers, and returns its report. */
  open(headers: Record<string, string>, flags?: readonly string[]): Promise<T>
}

/**
 * Builds a page. Call it inside `describe`.
 *
 * @param entry a module that posts JSON to /result
 * @param files what the page can fetch, by path
 */
export function buildPage<T>(entry: string, files: ReadonlyMap<string, Uint8Array> = new Map()): Page<T> {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-page-'))
  afterAll(() => rmSync(folder, { recursive: true, force: true, maxRetries: 20 }))
  beforeAll(async () => {
    const lib = { entry, formats: ['es' as const], fileName: 'page' }
    const options = { lib, outDir: folder, emptyOutDir: false, target: 'es2022' }
    await build({ configFile: false, logLevel: 'silent', build: options })
  })
  return { open: (headers, flags) => openPage(folder, files, headers, flags) as Promise<T> }
}

const TYPES: Readonly<Record<string, string>> = {
  '.js': 'text/javascript',
  '.mjs': 'text/javascript',
  '.html': 'text/html',
  '.wasm': 'application/wasm',
}

/** Serves and opens a folder whose page.js posts JSON to /result, and returns the JSON. */
export async function openPage(
  folder: string,
  files: ReadonlyMap<string, Uint8Array> = new Map(),
  headers: Record<string, string> = {},
  more: readonly string[] = WITHOUT_GPU,
): Promise<unknown> {
  const server = createServer()
  const result = new Promise<string>((resolve) => {
    server.on('request', (request, response) => {
      const path = (request.url ?? '/').replace(/[?].*/, '')
      if (request.method === 'POST') {
        let body = ''
        request.on('data', (part) => {
          body += part
        })
        request.on('end', () => resolve(body))
        response.end()
      } else if (files.has(path)) {
        const type = TYPES[/\.\w+$/.exec(path)?.[0] ?? ''] ?? 'application/octet-stream'
        response.writeHead(200, { 'content-type': type, ...headers })
        response.end(files.get(path))
      } else if (path.endsWith('.js') && !existsSync(join(folder, path))) {
        response.writeHead(404, headers).end()
      } else if (path.endsWith('.js')) {
        response.writeHead(200, { 'content-type': 'text/javascript', ...headers })
        response.end(readFileSync(join(folder, path)))
      } else {
        response.writeHead(200, { 'content-type': 'text/html', ...headers })
        response.end('<!doctype html><script type="module" src="/page.js"></script>')
      }
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
  const { close } = startChromium([...more, url])
  const end = async () => {
    await close()
    server.closeAllConnections()
    server.close()
  }
  // If a test takes too long, its last lines never run.
  onTestFinished(end)
  try {
    return JSON.parse(await result)
  } finally {
    await end()
  }
}
