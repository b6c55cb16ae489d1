// In Chromium, a run in a Web Worker never ends. The worker is terminated, and the page continues to work.
// The runtime for browsers is large, so it is not a dependency: npm install --no-save -D onnxruntime-web@1.30.0

import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { root } from '../app/cli/lowrank.js'
import { browser, buildPage, webRuntimeFolder } from '../browser.js'
import type { HungPageResult } from './hung-page.js'

const runtime = webRuntimeFolder()
const HUNG = expect.stringMatching(/^RuntimeError: ONNX Runtime: a run did not end within 5 seconds/)

describe.skipIf(browser === undefined || runtime === undefined)('a run that does not end in a page', () => {
  const files = new Map<string, Uint8Array>()
  const page = buildPage<HungPageResult>(fileURLToPath(new URL('hung-page.ts', import.meta.url)), files)
  const model = mkdtempSync(path.join(tmpdir(), 'lowrank-hung-page-'))
  afterAll(() => rmSync(model, { recursive: true, force: true }))

  beforeAll(() => {
    execFileSync(process.execPath, [path.join(root, 'scripts/stress/hanging-model.mjs'), model])
    for (const file of ['config.json', 'generation_config.json', 'tokenizer.json', 'onnx/model.onnx']) {
      files.set(`/model/${file}`, readFileSync(path.join(model, file)))
    }
    files.set('/ort/script.mjs', readFileSync(path.join(runtime!, 'ort.wasm.bundle.min.mjs')))
    files.set('/ort/ort.wasm', readFileSync(path.join(runtime!, 'ort-wasm-simd-threaded.wasm')))
  })

  it('fails by name, its worker is ended, and the model can be used again', async () => {
    const result = await page.open({})
    expect(result).toEqual({
      hung: HUNG,
      disposed: HUNG,
      later: expect.stringMatching(/^StateError: .*closed/),
      terminated: 1,
      logits: expect.any(Number),
    })
    expect(result.logits).toBeGreaterThan(0)
  })
})
