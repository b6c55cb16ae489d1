// Three steps of GRPO in Chromium, in Web Workers on onnxruntime-web, give what they give in Node. The runtime for
// browsers is large, so it is not a dependency: npm install --no-save -D onnxruntime-web@1.30.0

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { loadModel } from '../../../src/api/node.js'
import { browser, buildPage, webRuntimeFolder } from '../../browser.js'
import { inThread } from '../../run/models.js'
import type { RewardedPage } from './page.js'
import { learnToBeBrief, type RewardedResult } from './rewarded-job.js'

const MODEL = fileURLToPath(new URL('../../../models/union-3m', import.meta.url))
const SCRIPT = 'ort.wasm.bundle.min.mjs'
const runtime = webRuntimeFolder()

describe.skipIf(browser === undefined || runtime === undefined)('rewards in Chromium', () => {
  const files = new Map<string, Uint8Array>()
  const page = buildPage<RewardedResult>(fileURLToPath(new URL('page.ts', import.meta.url)), files)

  it('three steps give the rewards and the factors that Node gives', async () => {
    const job: RewardedPage = {
      ...{ prompts: ['And the', 'The sea'], steps: 3, runtime: `/ort/${SCRIPT}`, wasm: '/assets/ort.wasm' },
      model: ['config.json', 'generation_config.json', 'tokenizer.json', 'onnx/model.onnx'],
    }
    files.set('/job.json', Buffer.from(JSON.stringify(job)))
    for (const file of job.model) files.set(`/model/${file}`, readFileSync(path.join(MODEL, file)))
    files.set(job.runtime, readFileSync(path.join(runtime!, SCRIPT)))
    files.set(job.wasm, readFileSync(path.join(runtime!, 'ort-wasm-simd-threaded.wasm')))
    const model = await loadModel(MODEL, { runtime: inThread })
    const expected = await learnToBeBrief(model, job)
    await model.close()
    const result = await page.open({})
    expect(result).not.toHaveProperty('failed')
    expect(result.runtime).toMatch(/^onnxruntime-web \d/)
    expect(result.rewards).toEqual(expected.rewards)
    expect(new Set(result.rewards).size).toBeGreaterThan(1)
    result.losses.forEach((loss, i) => void expect(loss).toBeCloseTo(expected.losses[i], 4))
    const differences = result.factors.map((value, i) => value - expected.factors[i])
    expect(Math.hypot(...differences) / Math.hypot(...expected.factors)).toBeLessThan(1e-3)
  })
})
