// In Chromium, a page loses its GPU in the middle of a run: an error says so, the saved steps are there, and the run
// can continue. The runtime for browsers is large, so it is not a dependency: npm install --no-save -D
// onnxruntime-web@1.30.0

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, it } from 'vitest'
import { root } from '../app/cli/lowrank.js'
import { browser, buildPage, WEBGPU, webRuntimeFolder } from '../browser.js'
import type { LostGpuResult } from './lost-gpu-page.js'

const runtime = webRuntimeFolder()

/**
 * Runs before ONNX Runtime's script, and lets the page destroy the device. `lost` resolves as for a GPU that failed.
 */
const LOSABLE = `
const request = GPUAdapter.prototype.requestDevice
GPUAdapter.prototype.requestDevice = async function (...options) {
  const device = await request.apply(this, options)
  new BroadcastChannel('lose the gpu').onmessage = () => device.destroy()
  return device
}
`

describe.skipIf(browser === undefined || runtime === undefined)('a page whose GPU is lost', () => {
  const files = new Map<string, Uint8Array>()
  const page = buildPage<LostGpuResult>(fileURLToPath(new URL('lost-gpu-page.ts', import.meta.url)), files)

  beforeAll(() => {
    for (const file of ['config.json', 'generation_config.json', 'tokenizer.json', 'onnx/model.onnx']) {
      files.set(`/model/${file}`, readFileSync(path.join(root, 'tests/golden/models/llama-optimum', file)))
    }
    const script = readFileSync(path.join(runtime!, 'ort.webgpu.bundle.min.mjs'), 'utf8')
    files.set('/ort/script.mjs', Buffer.from(LOSABLE + script))
    files.set('/ort/ort.wasm', readFileSync(path.join(runtime!, 'ort-wasm-simd-threaded.asyncify.wasm')))
  })

  it('says so, and goes on from the last saved step', { timeout: 400_000 }, async () => {
    const result = await page.open({}, WEBGPU)
    expect(result).not.toHaveProperty('failed')
    const { trained, written, later, before, losses, files, again, expected } = result
    expect(trained).toMatch(/^RuntimeError: WebGPU: the GPU was lost.*resume: true/s)
    expect(written).toMatch(/^RuntimeError: WebGPU: the GPU was lost.*Open the session again/s)
    expect(later).toBe(written)
    // The run continues from step 2, which was saved last.
    expect(files).toEqual(expect.arrayContaining(['adapter_config.json', 'adapter_model.safetensors', 'lowrank.json']))
    expect(losses).toHaveLength(6)
    expect(losses.slice(0, 2)).toEqual(before.slice(0, 2))
    expect(Math.abs(losses[2] / before[2] - 1)).toBeLessThan(1e-4)
    // A new session opens a new GPU device.
    expect(again).toBe(expected)
  })
})
