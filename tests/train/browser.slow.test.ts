// Training and generating in Chromium, in Web Workers with onnxruntime-web, give the same losses and texts as in Node.
// The runtime for browsers is large, so it is not a dependency: npm install --no-save -D onnxruntime-web@1.30.0

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, it } from 'vitest'
import { loadModel } from '../../src/api/node.js'
import { browser, buildPage, ISOLATED, WEBGPU, webRuntimeFolder } from '../browser.js'
import { inThread } from '../run/models.js'
import { type JobResult, runJob } from './job.js'
import type { GpuBytes, PageJob, PageResult } from './page.js'

const root = fileURLToPath(new URL('../../', import.meta.url))
const MODEL = path.join(root, 'models/union-3m')

const runtime = webRuntimeFolder()
const SMALL_MODEL = path.join(root, 'tests/golden/models/llama-optimum')
const SHORT = { maxSteps: 3, batchSize: 1, gradientAccumulation: 2, maxLength: 12, learningRate: 1e-3 }
const SCRIPT = 'ort.wasm.bundle.min.mjs'

/**
 * Runs before ONNX Runtime's script, and counts the bytes that go to the GPU and back. Sizes and shapes for kernels are
 * counted separately.
 */
const COUNTING = `
const bytes = { up: 0, down: 0, uniform: 0 }
const channel = new BroadcastChannel('gpu bytes')
const before = (owner, method, count) => {
  const original = owner[method]
  owner[method] = function (...given) {
    count(this, ...given)
    channel.postMessage(bytes)
    return original.apply(this, given)
  }
}
before(GPUDevice.prototype, 'createBuffer', (_, { size, mappedAtCreation }) => (bytes.up += mappedAtCreation ? size : 0))
before(GPUBuffer.prototype, 'mapAsync', ({ size }, mode) => (bytes.down += mode & GPUMapMode.READ ? size : 0))
before(GPUQueue.prototype, 'writeBuffer', (_, { usage }, at, data, from, size) => {
  bytes[usage & GPUBufferUsage.UNIFORM ? 'uniform' : 'up'] += size ?? data.byteLength
})
`

const crossed = (before: GpuBytes, after: GpuBytes) => ({ up: after.up - before.up, down: after.down - before.down })
/** Bytes of the logits of one token. */
const LOGITS = 4 * 2048

describe.skipIf(browser === undefined || runtime === undefined)('training in Chromium', () => {
  const files = new Map<string, Uint8Array>()
  const page = buildPage<PageResult>(fileURLToPath(new URL('page.ts', import.meta.url)), files)
  const lines = readFileSync(path.join(root, 'models/data/scripture.jsonl'), 'utf8').split('\n').slice(0, 12)
  const job: PageJob = {
    runtime: `/ort/${SCRIPT}`,
    // Bundlers give it another name.
    wasm: '/assets/ort-1a2b3c.wasm',
    model: ['config.json', 'generation_config.json', 'tokenizer.json', 'onnx/model.onnx'],
    data: lines.map((line) => JSON.parse(line)),
    prompt: 'And the people',
    settings: { maxSteps: 4, batchSize: 2, gradientAccumulation: 2, maxLength: 24, learningRate: 5e-3, saveEvery: 2 },
  }
  let expected: JobResult

  beforeAll(async () => {
    files.set('/job.json', Buffer.from(JSON.stringify(job)))
    for (const file of job.model) files.set(`/model/${file}`, readFileSync(path.join(MODEL, file)))
    files.set(job.runtime, readFileSync(path.join(runtime!, SCRIPT)))
    files.set(job.wasm, readFileSync(path.join(runtime!, 'ort-wasm-simd-threaded.wasm')))
    const model = await loadModel(MODEL, { runtime: inThread })
    expected = await runJob(model, job)
    await model.close()
  })

  it.each([
    ['on an ordinary page', {}],
    ['on a page that is isolated across origins, with threads', ISOLATED],
  ])('%s: gives the losses and texts that Node gives', async (_, headers) => {
    const result = await page.open(headers)
    expect(result).not.toHaveProperty('failed')
    expect(result.runtime).toMatch(/^onnxruntime-web \d/)
    expect(result.trainLoss).toHaveLength(4)
    result.trainLoss.forEach((loss, i) => void expect(loss).toBeCloseTo(expected.trainLoss[i], 4))
    expect(result.evalLoss!.before).toBeCloseTo(expected.evalLoss!.before, 4)
    expect(result.evalLoss!.after).toBeCloseTo(expected.evalLoss!.after, 4)
    expect(result.evalLoss!.after).toBeLessThan(result.evalLoss!.before)
    expect(result.texts).toEqual(expected.texts)
    expect(result.ticks).toBeGreaterThan(20)
    expect(result.files).toEqual([
      'README.md',
      'adapter_config.json',
      'adapter_model.safetensors',
      'evaluations.jsonl',
      'lowrank.json',
      'metrics.jsonl',
    ])
  })

  /** A shorter job on a smaller model, because the software GPU is slow and compiles each kernel. */
  const short: PageJob = { ...job, isBrief: true, data: job.data.slice(0, 4), settings: { ...job.settings, ...SHORT } }

  /** Runs the short job on WebGPU, with the build of ONNX Runtime for it. */
  function openOnGpu(flags: readonly string[]): Promise<PageResult> {
    const [script, wasm] = ['ort.webgpu.bundle.min.mjs', 'ort-wasm-simd-threaded.asyncify.wasm']
    for (const file of job.model) files.set(`/model/${file}`, readFileSync(path.join(SMALL_MODEL, file)))
    const settings = { ...short.settings, device: 'webgpu' }
    const onDevice = { ...short, runtime: `/ort/${script}`, wasm: `/ort/${wasm}`, settings }
    files.set(`/ort/${script}`, Buffer.from(COUNTING + readFileSync(path.join(runtime!, script), 'utf8')))
    files.set(`/ort/${wasm}`, readFileSync(path.join(runtime!, wasm)))
    files.set('/job.json', Buffer.from(JSON.stringify(onDevice)))
    return page.open({}, flags)
  }

  it('on WebGPU: gives what Node gives, and keeps weights and caches there', {
    timeout: 240_000,
  }, async () => {
    const model = await loadModel(SMALL_MODEL, { runtime: inThread })
    const onProcessor = await runJob(model, short)
    await model.close()
    const result = await openOnGpu(WEBGPU)
    expect(result).not.toHaveProperty('failed')
    expect(result.trainLoss).toHaveLength(3)
    result.trainLoss.forEach((loss, i) => void expect(Math.abs(loss / onProcessor.trainLoss[i] - 1)).toBeLessThan(1e-4))
    const { factors } = onProcessor
    const differences = result.factors.map((value, i) => value - factors[i])
    expect(Math.hypot(...differences) / Math.hypot(...factors)).toBeLessThan(1e-3)
    // Each of a step's two runs sends the trained values and reads their gradients, 4 bytes each. All else is small.
    const { steps, texts } = result.gpu
    const step = crossed(steps[0], steps[1])
    expect(step.up + step.down).toBeLessThan(2 * 2 * 4 * factors.length * 1.1)
    // The logits of each of the sixteen more tokens are read from the GPU. So is the cache, with LOGITS / 16 bytes for
    // each token, but only once.
    const [four, twenty] = [crossed(texts[0], texts[1]), crossed(texts[1], texts[2])]
    expect((twenty.up - four.up) / 16).toBeLessThan(LOGITS / 16)
    expect((twenty.down - four.down) / 16).toBeLessThan(LOGITS + LOGITS / 8)
  })

  it('says that a page has no WebGPU', async () => {
    const result = await openOnGpu(['--disable-gpu', '--disable-features=WebGPU'])
    expect(result).toMatchObject({ failed: expect.stringMatching(/WebGPU.*Choose device: wasm|no available/s) })
  })
})
