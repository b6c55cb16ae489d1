// The page of `lowrank inspect --html`: as a file, and in Chromium where there is one.

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { NodeDirectory } from '../../src/io/node/files.js'
import { LoraAdapter } from '../../src/lora/adapter.js'
import { saveAdapter } from '../../src/peft/adapter-folder.js'
import { stacksOf } from '../../web/report/stacks.js'
import { chromium } from '../chromium.js'
import { random } from '../lora/matrices.js'
import { type OpenPage, openPage } from '../page.js'
import { lowrank, root, scratchFolder } from './lowrank.js'

const scratch = scratchFolder()
const KINDS = join(root, 'tests', 'golden', 'kinds')
const BASE = join(KINDS, 'qwen2.safetensors')

/** Names that would run as markup or script if the page did not show them as text. */
const HOSTILE = [
  'model.layers.0.</script><img src=x onerror=document.title="HACKED">',
  'model.layers.1."><svg onload=alert(1)>',
  'model.layers.1.<!--<script>',
]

function adapterWith(names: readonly string[], rank: number): LoraAdapter {
  const adapter = new LoraAdapter({
    rank,
    alpha: rank,
    targetModules: names,
    baseModel: '</dd><script>alert(1)</script>',
  })
  names.forEach((name, i) => {
    adapter.addFactors(name, random(rank, 10, i), random(12, rank, i + 999))
  })
  return adapter
}

async function pageOf(name: string, adapter: LoraAdapter): Promise<string> {
  const folder = join(scratch, name)
  await saveAdapter(adapter, new NodeDirectory(folder))
  const file = join(scratch, `${name}.html`)
  const { code, stderr } = await lowrank('inspect', folder, '--html', file)
  expect(code, stderr).toBe(0)
  return file
}

describe('the file', () => {
  it('holds everything, and names stay text in it', async () => {
    const page = readFileSync(await pageOf('hostile', adapterWith(HOSTILE, 2)), 'utf8')
    expect(page).not.toMatch(/https?:\/\/(?!www\.w3\.org\/2000\/svg)/)
    expect(page.match(/<script/g)).toHaveLength(2)
    expect(page).not.toContain('<img')
    expect(page).not.toContain('<svg')
    expect(page.length).toBeLessThan(80_000)
    expect(page).toMatch(/Content-Security-Policy" content="default-src 'none'; script-src 'sha256-[^']+'/)
  })

  it('replaces only another page, and only when asked', async () => {
    const file = join(scratch, 'page.html')
    const dora = join(KINDS, 'dora')
    expect((await lowrank('inspect', dora, '--html', file)).code).toBe(0)
    const refused = await lowrank('inspect', dora, '--html', file)
    expect([refused.code, refused.stdout]).toEqual([1, ''])
    expect(refused.stderr).toMatch(/page\.html: exists already/)
    expect((await lowrank('inspect', dora, '--html', file, '--overwrite')).code).toBe(0)
    const other = join(scratch, 'other.html')
    writeFileSync(other, '<!doctype html>')
    expect((await lowrank('inspect', dora, '--html', other, '--overwrite')).stderr).toMatch(
      /lowrank inspect did not write it/,
    )
    expect(readFileSync(other, 'utf8')).toBe('<!doctype html>')
  })

  it('is for adapters', async () => {
    const file = join(scratch, 'model.html')
    const { code, stderr } = await lowrank('inspect', BASE, '--html', file)
    expect([code, existsSync(file)]).toEqual([2, false])
    expect(stderr).toMatch(/--html works for adapters only/)
  })
})

it('layers become rows and columns by the first number of their names', () => {
  const names = ['h.0.attn.q', 'h.0.mlp', 'h.10.attn.q', 'h.2.attn.q', 'lm_head', 'enc.block.1.x.0.y', 'conv.3']
  expect(stacksOf(names)).toEqual([
    {
      name: 'h',
      columns: [0, 2, 10],
      rows: ['attn.q', 'mlp'],
      cells: [
        [0, 3, 2],
        [1, null, null],
      ],
    },
    { name: 'enc.block', columns: [1], rows: ['x.0.y'], cells: [[5]] },
    { name: 'conv', columns: [3], rows: ['conv'], cells: [[6]] },
    { name: '', columns: [-1], rows: ['lm_head'], cells: [[4]] },
  ])
})

describe.skipIf(chromium === undefined)('in Chromium', () => {
  let page: OpenPage
  const opened: OpenPage[] = []
  afterAll(async () => {
    for (const one of opened) await one.close()
  })

  async function open(file: string): Promise<OpenPage> {
    page = await openPage(file)
    opened.push(page)
    return page
  }

  /** Texts of the elements. */
  const texts = (selector: string) =>
    page.evaluate(`[...document.querySelectorAll(${JSON.stringify(selector)})].map((element) => element.textContent)`)
  const click = (selector: string, index = 0) =>
    page.evaluate(
      `document.querySelectorAll(${JSON.stringify(selector)})[${index}].dispatchEvent(new MouseEvent('click', { bubbles: true }))`,
    )

  describe('an adapter with its base', () => {
    beforeAll(async () => {
      const file = join(scratch, 'all.html')
      const { code } = await lowrank('inspect', join(KINDS, 'dora'), '--base', BASE, '--html', file)
      expect(code).toBe(0)
      await open(file)
    })

    it('asks for nothing but itself, and has no errors', async () => {
      expect(page.requests).toEqual([expect.stringMatching(/^file:.*all\.html$/)])
      expect(page.errors).toEqual([])
    })

    it('shows each layer in the map and in the table', async () => {
      expect(await texts('.map .row')).toEqual(['mlp.down_proj', 'self_attn.k_proj', 'self_attn.q_proj'])
      expect(await texts('.map .faint')).toEqual(['0', '1'])
      expect(await texts('tbody td:first-child')).toHaveLength(6)
      expect((await texts('dd')).join(' ')).toContain('6 of 6 parts fit')
      const fits = (await texts('.table th')).indexOf('fits')
      expect(await texts(`.table tbody td:nth-child(${fits + 1})`)).toEqual(Array(6).fill('yes'))
      // The largest value gets the darkest color.
      const shares = await page.evaluate(
        `[...document.querySelectorAll('.cell')].map((cell) => cell.style.getPropertyValue('--share'))`,
      )
      expect(shares.filter((share: string) => share === '100.0%')).toHaveLength(1)
    })

    it('changes the measure, the choice of curves, and the order', async () => {
      const before = await texts('.cell')
      await click('.choices button', 2)
      expect(await texts('.cell')).not.toEqual(before)
      const chosen = () => texts('.u-legend .u-series:not(:first-child) .u-label')
      expect(await chosen()).toHaveLength(3)
      for (let left = 3; left > 0; left--) await click('.cell[aria-pressed=true]')
      expect(await texts('p.hint')).toEqual(['Choose layers in the map or in the table.'])
      await click('.cell', 1)
      expect(await chosen()).toEqual(['model.layers.1.mlp.down_proj'])
      await click('th button', 0)
      expect((await texts('.table tbody td:first-child'))[0]).toBe('model.layers.0.mlp.down_proj')
      await click('th button', 0)
      expect((await texts('.table tbody td:first-child'))[0]).toBe('model.layers.1.self_attn.q_proj')
      await page.evaluate(`{
        const search = document.querySelector('input')
        search.value = 'K_PROJ'
        search.dispatchEvent(new Event('input'))
      }`)
      expect(await texts('.table tbody td:first-child')).toHaveLength(2)
      expect(page.errors).toEqual([])
    })
  })

  it('shows hostile names as they are', async () => {
    await open(await pageOf('hostile again', adapterWith(HOSTILE, 2)))
    expect((await texts('tbody td:first-child')).sort()).toEqual([...HOSTILE].sort())
    expect(await texts('dd')).toContain('</dd><script>alert(1)</script>')
    expect(await page.evaluate('document.title')).toMatch(/lowrank inspect$/)
    expect(await page.evaluate(`document.querySelectorAll('img, [onload], [onerror]').length`)).toBe(0)
    expect(page.errors).toEqual([])
  })

  it('shows layers of which no number is finite', async () => {
    const folder = join(scratch, 'nan')
    await saveAdapter(adapterWith(['h.0.q', 'h.1.q'], 2), new NodeDirectory(folder))
    const weights = join(folder, 'adapter_model.safetensors')
    const bytes = readFileSync(weights)
    bytes.fill(0xff, 8 + Number(bytes.readBigUInt64LE()))
    writeFileSync(weights, bytes)
    const file = join(scratch, 'nan.html')
    await lowrank('inspect', folder, '--html', file)
    await open(file)
    expect(page.errors).toEqual([])
    expect(await texts('tbody td:first-child')).toEqual(['h.0.q', 'h.1.q'])
    expect((await texts('.problem li')).join()).toMatch(/h\.0\.q/)
  })

  it.each([
    ['2 layers', 1],
    ['300 layers', 150],
  ])('%s stay within the page', async (name, blocks) => {
    const names = Array.from({ length: blocks }, (_, i) => [
      `model.layers.${i}.q_proj`,
      `model.layers.${i}.v_proj`,
    ]).flat()
    await open(await pageOf(name, adapterWith(names, 4)))
    expect(await page.evaluate(`document.querySelectorAll('.cell').length`)).toBe(2 * blocks)
    const [width, shown] = await page.evaluate('[document.documentElement.scrollWidth, innerWidth]')
    expect(width).toBeLessThanOrEqual(shown)
    expect(page.errors).toEqual([])
  })
})
