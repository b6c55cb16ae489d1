// The kernels in Chromium: with and without SharedArrayBuffer, and with a policy that forbids WebAssembly.

import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { browser, buildPage, ISOLATED, STRICT } from '../../browser.js'
import type { PageResult } from './page.js'

describe.skipIf(browser === undefined)('kernels in Chromium', () => {
  const page = buildPage<PageResult>(fileURLToPath(new URL('page.ts', import.meta.url)))
  const correct = { error: expect.closeTo(0, 5), isUnmergeExact: true, workers: 0 }
  const simd = {
    ...correct,
    kernels: 'wasm',
    merge: 'equal',
    memories: { shared: 0, unshared: 2 },
  }

  test('on an ordinary page: SIMD, on one thread and unshared memory', async () => {
    expect(await page.open({})).toEqual({ ...simd, isIsolated: false })
  })

  test('on a page that is isolated across origins', async () => {
    expect(await page.open(ISOLATED)).toEqual({ ...simd, isIsolated: true })
  })

  test('a content security policy without WebAssembly: products in plain loops, and no merge', async () => {
    const result = await page.open(STRICT)
    const memories = { shared: 0, unshared: 0 }
    expect(result).toEqual({
      ...correct,
      kernels: 'reference',
      merge: expect.stringMatching(/wasm-unsafe-eval/),
      memories,
      isIsolated: false,
    })
  })
})
