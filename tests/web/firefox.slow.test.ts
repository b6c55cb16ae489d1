// The page of web/ in Firefox: open it, teach, type your own, take the adapter home, pause, reload and go on. Needs
// Firefox, and npm install --no-save puppeteer-core onnxruntime-web@1.30.0.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { unzipSync, zipSync } from 'fflate'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { LoraAdapter, MemoryDirectory, saveAdapter } from '../../src/api/node.js'
import { canOpenSite, serveSite } from './site.js'

const firefox = ['firefox-esr', 'firefox'].find((name) => spawnSync(name, ['--version']).status === 0)

// biome-ignore lint/suspicious/noExplicitAny: the package's types are not installed here
type Loose = any

function puppeteer(): Loose {
  try {
    return createRequire(import.meta.url)('puppeteer-core')
  } catch {
    return undefined
  }
}
const driver = puppeteer()
if (firefox === undefined || driver === undefined) console.log('skipped: no Firefox or no puppeteer-core here')

describe.skipIf(firefox === undefined || driver === undefined || !canOpenSite)('the page in Firefox', () => {
  const downloads = mkdtempSync(join(tmpdir(), 'lowrank-firefox-'))
  const errors: string[] = []
  let [site, browser, page]: Loose[] = []
  beforeAll(async () => {
    site = await serveSite()
    browser = await driver.launch({
      browser: 'firefox',
      executablePath: spawnSync('which', [firefox!], { encoding: 'utf8' }).stdout.trim(),
      extraPrefsFirefox: { 'browser.download.folderList': 2, 'browser.download.dir': downloads },
      protocolTimeout: 240_000,
    })
    page = await browser.newPage()
    page.on('pageerror', (error: Error) => errors.push(String(error)))
    page.on('console', (message: Loose) => message.type() === 'error' && errors.push(message.text()))
    await page.goto(site.address)
  }, 300_000)
  afterAll(async () => {
    await browser?.close()
    await site?.stop()
    site?.remove()
    rmSync(downloads, { recursive: true, force: true, maxRetries: 20 })
  })

  const until = async (expression: string) => {
    for (let i = 0; i < 2000; i++) {
      if (await page.evaluate(expression).catch(() => false)) return
      await setTimeout(50)
    }
    throw new Error(`${expression} never came: ${await page.evaluate('document.body.innerText')}`)
  }
  const text = (id: string): Promise<string> => page.evaluate(`document.getElementById('${id}').textContent`)
  const click = (selector: string) => page.evaluate(`document.querySelector(${JSON.stringify(selector)}).click()`)
  const fill = (fields: Record<string, string | number>) =>
    page.evaluate(`for (const [id, value] of Object.entries(${JSON.stringify(fields)})) {
      document.getElementById(id).value = value
      document.getElementById(id).dispatchEvent(new Event('input'))
    }`)
  const isReady = "document.body.dataset.ready === '' && crossOriginIsolated"

  it('shows the recorded lesson, with threads', async () => {
    await until(isReady)
    expect(await page.evaluate("document.querySelectorAll('.recorded').length")).toBe(3)
    await until("/^[0-9]+ threads?/.test(document.getElementById('machine').textContent)")
  })

  it('labels a mail of the visitor with the recorded adapter', async () => {
    await fill({ sentence: 'Your electricity bill for May is 64 euros.' })
    await until("/is 64 euros.*bill/s.test(document.querySelector('.recorded').textContent)")
  })

  it('pauses, and goes on after a reload', async () => {
    await fill({ steps: 12 })
    await click('#start')
    await until("/^[2-9]\\//.test(document.getElementById('number-step').textContent)")
    await click('#pause')
    await until("document.getElementById('train-state').textContent.startsWith('Paused')")
    const paused = await text('number-step')
    await page.reload()
    await until(`${isReady} && document.getElementById('start').textContent === 'Continue'`)
    expect(await text('number-step')).toBe(paused)
    await click('#start')
    await until("document.getElementById('train-state').textContent.startsWith('Trained ')")
    expect(await text('number-step')).toBe('12/12')
    expect(await text('recorded')).toMatch(/After the lesson/)
  })

  it('labels a text of the visitor', async () => {
    await click('#next')
    expect(await page.evaluate('document.activeElement.id')).toBe('prompt')
    await fill({ prompt: 'Please pay the bill by Friday.' })
    await click('#generate')
    await until("document.querySelectorAll('#answers .answer:last-child .scores li').length === 3")
  })

  it('keeps the adapter, exports it, and opens it after a reload', async () => {
    await page.reload()
    await until(`${isReady} && document.querySelector('#adapters [data-kept=mails]') !== null`)
    await click('#export')
    const archive = () => readdirSync(downloads).find((name) => name.endsWith('.zip'))
    for (let i = 0; i < 200 && archive() === undefined; i++) await setTimeout(100)
    expect(Object.keys(unzipSync(readFileSync(join(downloads, archive()!))))).toEqual(
      expect.arrayContaining(['mails/adapter_config.json', 'mails/adapter_model.safetensors']),
    )
    await click('#adapters [data-kept=mails] button')
    await until("document.querySelector('#answers [data-adapter=mails]') !== null")
  })

  it('asks before it opens an adapter that is in a link', async () => {
    const lora = new LoraAdapter({ rank: 1, targetModules: ['o_proj'] })
    const wave = Array.from({ length: 192 }, (_, i) => Math.sin(i) / 4)
    const factors = wave.map((value) => [value])
    lora.addFactors('model.layers.0.self_attn.o_proj', [wave], factors)
    const folder = new MemoryDirectory()
    await saveAdapter(lora, folder)
    const zip = Buffer.from(zipSync(Object.fromEntries(folder.files))).toString('base64url')
    await page.goto(`${site.address}?link#adapter=tiny&zip=${zip}`)
    await until("!document.getElementById('link').hidden")
    await fill({ tokens: 4 })
    await click('#link button')
    await until("document.querySelector('#answers [data-adapter=tiny] .written')?.textContent.length > 0")
  })

  it('keeps the adapter of a paused run', async () => {
    await page.goto(`${site.address}?keep`)
    await until(isReady)
    await fill({ steps: 200 })
    await click('#start')
    await until("/^[6-9]\\//.test(document.getElementById('number-step').textContent)")
    await click('#pause')
    await until("document.getElementById('train-state').textContent.startsWith('Paused')")
    const [steps] = (await text('number-step')).split('/')
    await click('#stop')
    await until("document.getElementById('train-state').textContent.startsWith('Kept')")
    expect(await text('lesson-title')).toMatch(new RegExp(`^It has learned: [0-3] of 3 right, after ${steps} steps$`))
    expect(await page.evaluate("['start', 'stop', 'remove'].map((id) => document.getElementById(id).hidden)")).toEqual([
      false,
      true,
      true,
    ])
    await page.reload()
    await until(`${isReady} && document.querySelector('#adapters [data-kept=mails-2]') !== null`)
    expect(await text('start')).toBe('Teach it')
  })

  it('teaches where the browser keeps no files, as Safari before 26', async () => {
    await page.evaluateOnNewDocument('delete globalThis.FileSystemFileHandle?.prototype.createWritable')
    await page.goto(`${site.address}?safari`)
    await until(isReady)
    await fill({ steps: 2 })
    await click('#start')
    await until("document.getElementById('train-state').textContent.startsWith('Trained ')")
    expect(await page.evaluate("document.querySelectorAll('#answers .answer').length")).toBe(2)
  })

  it('has no errors on the console', () => {
    expect(errors.filter((line) => !/404/.test(line))).toEqual([])
  })
})
