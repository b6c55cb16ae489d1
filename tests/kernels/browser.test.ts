// The kernels in Chromium, where there is one: with and without SharedArrayBuffer, and where a policy forbids WebAssembly.

import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { browser, buildPage, ISOLATED, STRICT } from '../browser.js'
import type { PageResult } from './page.js'

describe.skipIf(browser === undefined)('kernels in Chromium', () => {
  const page = buildPage<PageResult>(fileURLToPath(new URL('page.ts', import.meta.url)))
  const correct = { error: expect.closeTo(0, 5), isSameMerge: true, isUnmergeExact: true }

  test('on an ordinary page: SIMD, on unshared memory', async () => {
    const kernels = expect.stringMatching(/^wasm (relaxed|plain)$/)
    expect(await page.open({})).toEqual({ ...correct, kernels, merge: 'wasm plain', isIsolated: false })
  })

  test('on a page that is isolated across origins', async () => {
    const kernels = expect.stringMatching(/^wasm (relaxed|plain)$/)
    expect(await page.open(ISOLATED)).toEqual({ ...correct, kernels, merge: 'wasm plain', isIsolated: true })
  })

  test('where the content security policy forbids WebAssembly: the reference loops', async () => {
    const result = await page.open(STRICT)
    expect(result).toEqual({ ...correct, kernels: 'reference', merge: 'reference', isIsolated: false })
  })
})
