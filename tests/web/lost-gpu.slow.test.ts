// In Chromium, the GPU is lost while the page trains, and while it generates text. A click continues with WebAssembly:
// training from the last saved step, and answers with the same adapters.

import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { WEBGPU } from '../chromium.js'
import { canOpenSite, openSite, root, type Site } from './site.js'

/**
 * Runs before ONNX Runtime's script, and lets the test destroy the device. `lost` resolves as for a GPU that failed.
 */
const LOSABLE = `
const request = GPUAdapter.prototype.requestDevice
GPUAdapter.prototype.requestDevice = async function (...options) {
  const device = await request.apply(this, options)
  new BroadcastChannel('lose the gpu').onmessage = () => device.destroy()
  return device
}
`

describe.skipIf(!canOpenSite)('a page whose GPU is lost', { timeout: 300_000 }, () => {
  let site: Site
  beforeAll(async () => {
    site = await openSite(WEBGPU, (name, script) => (/^ort\.webgpu/.test(name) ? LOSABLE + script : undefined))
    await site.ready()
    await site.until("!document.querySelector('#device [value=webgpu]').disabled")
  }, 300_000)
  afterAll(() => site?.close())

  const lose = () => site.page.evaluate("new BroadcastChannel('lose the gpu').postMessage('now')")
  const onGpu = async () => {
    await site.choose('device', 'webgpu')
    await site.until("/on WebGPU/.test(document.getElementById('model-state').textContent)")
  }
  const step = "document.getElementById('number-step')"
  const press = (label: string) =>
    site.page.evaluate(
      `[...document.querySelectorAll('button')].find((one) => one.textContent === ${JSON.stringify(label)}).click()`,
    )

  it('goes on from the last saved step', async () => {
    // A small model, because SwiftShader takes a second for a step of the page's own model.
    await site.page.drop([join(root, 'tests/golden/models/llama-optimum')])
    await site.until("/llama-optimum/.test(document.getElementById('model-state').textContent)")
    await onGpu()
    await site.fill({ data: 'The captain of the ship saw the whale. '.repeat(20) })
    await site.fill({ steps: 40, 'batch-size': 1, 'max-length': 16 })
    await site.click('start')
    await site.until(`/^[12][1-9]\\//.test(${step}.textContent)`)
    await lose()
    await site.until("!document.getElementById('error').hidden")
    expect(await site.text('error')).toMatch(/Training stopped.*the GPU was lost/)
    expect(await site.text('start')).toBe('Continue')
    await site.picture('lost-gpu')
    await site.watchSteps()
    await press('Go on with WebAssembly')
    await site.answered()
    // Every fifth step is saved, and the run continues from the last of them.
    const steps = await site.page.evaluate('[...globalThis.steps]')
    expect(steps[0]).toMatch(/^[1-3][16]\/40$/)
    expect(steps.at(-1)).toBe('40/40')
    expect(await site.text('model-state')).not.toMatch(/on WebGPU/)
    expect(await site.page.evaluate("document.getElementById('error').hidden")).toBe(true)
  })

  it('keeps the adapters, and writes again', async () => {
    await onGpu()
    expect(await site.page.evaluate("document.querySelectorAll('#answers .answer').length")).toBe(2)
    await site.fill({ tokens: 400, temperature: 0 })
    await site.click('generate')
    await site.until("document.querySelector('#answers .text').textContent.length > 30")
    await lose()
    await site.until("!document.getElementById('error').hidden")
    expect(await site.text('error')).toMatch(/The model cannot write.*the GPU was lost/)
    await press('Go on with WebAssembly')
    await site.until("/^Open: [^W]*$/.test(document.getElementById('model-state').textContent)")
    await site.fill({ tokens: 8 })
    await site.click('generate')
    await site.until("!document.getElementById('generate').disabled")
    await setTimeout(100)
    const texts = await site.page.evaluate(
      "[...document.querySelectorAll('#answers .text')].map((one) => one.textContent)",
    )
    expect(texts).toHaveLength(2)
    expect(texts[0]).not.toBe(texts[1])
    expect(texts[1].length).toBeGreaterThan('The captain of the ship'.length + 5)
  })
})
