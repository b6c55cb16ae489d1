// The page of `lowrank diff --html` in a browser: it draws its parts, asks for nothing, and reports no error.

import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { chromium } from '../chromium.js'
import { openPage } from '../page.js'
import { lowrank, MODEL, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const golden = (name: string) => join(root, 'tests', 'golden', 'combine', name)

describe.skipIf(chromium === undefined)('a comparison’s page', () => {
  it.each([
    ['adapters', golden('first'), golden('second'), true],
    ['checkpoints', MODEL, MODEL, false],
  ])('draws %s', async (name, a, b, hasCurves) => {
    const file = join(scratch, `${name}.html`)
    const { code, stderr } = await lowrank('diff', '--a', a, '--b', b, '--html', file)
    expect(code, stderr).toBe(0)
    const page = await openPage(file)
    try {
      const counts = await page.evaluate(
        '({ rows: document.querySelectorAll(".table tbody tr").length, cells: document.querySelectorAll(".map .cell").length, headings: [...document.querySelectorAll("h2")].map((one) => one.textContent) })',
      )
      expect(counts.rows).toBeGreaterThan(5)
      expect(counts.cells).toBe(counts.rows)
      expect(counts.headings.some((text: string) => text.startsWith('Singular values of ΔB − ΔA'))).toBe(hasCurves)
      expect(page.errors).toEqual([])
      expect(page.requests.filter((address) => !address.startsWith('file:'))).toEqual([])
    } finally {
      await page.close()
    }
  })
})
