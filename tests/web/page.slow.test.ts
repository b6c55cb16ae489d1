// The page of web/ as a user sees it, in Chromium: open the small model, train, pause, reload, continue, compare, look
// at the layers. onnxruntime-web is large, so it is not a dependency: npm install --no-save -D onnxruntime-web@1.30.0

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { unzipSync, zipSync } from 'fflate'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { LoraAdapter, saveAdapter } from '../../src/api/node.js'
import type { OpenPage } from '../page.js'
import { canOpenSite, DESKTOP, openSite, PHONE, root, type Site } from './site.js'

describe.skipIf(!canOpenSite)('the page', () => {
  let site: Site
  let page: OpenPage
  let address: string
  beforeAll(async () => {
    site = await openSite()
    page = site.page
    address = site.address
  }, 300_000)
  afterAll(() => site?.close())

  const text = (id: string) => site.text(id)
  const click = (id: string) => site.click(id)
  const fill = (fields: Record<string, string | number>) => site.fill(fields)
  const until = (expression: string) => site.until(expression)
  const ready = () => site.ready()
  const watchSteps = () => site.watchSteps()
  const picture = (name: string) => site.picture(name)
  const recipe = (id: string) => page.evaluate(`document.querySelector('[data-recipe=${id}]').click()`)

  it('shows what was recorded and loads no weights before a click', async () => {
    await page.show(DESKTOP)
    await until("document.body.dataset.ready === '' && crossOriginIsolated")
    await until("document.getElementById('data').value.startsWith('text,label')")
    expect(await page.evaluate("document.querySelectorAll('.recorded').length")).toBe(3)
    expect(await text('recorded-note')).toMatch(/^Recorded in Node: 30 steps in [0-9]+ s/)
    expect(await page.evaluate("document.getElementById('run').hidden")).toBe(true)
    // Each recipe has recorded answers.
    for (const [id, answer] of [
      ['search', /The nightly copy of all databases/],
      ['names', /Samuel Green person/],
      ['comet', /Mara Lindqvist/],
    ] as const) {
      await recipe(id)
      expect(await text('recorded')).toMatch(answer)
      expect(await text('recorded-note')).toMatch(/^Recorded/)
    }
    await recipe('mails')
    await until("/maxSteps: 30/.test(document.getElementById('lines').textContent)")
    expect(await text('lines')).toMatch(/maxSteps: 30.*--max-steps 30.*PeftModel/s)
    expect(page.requests.filter((url) => /[/]model|[.]wasm$/.test(url))).toEqual([])
    await picture('first')
  })

  it('labels a mail of the visitor with the recorded adapter, before anything is taught', async () => {
    const cards = (): Promise<string[]> =>
      page.evaluate("[...document.querySelectorAll('.recorded')].map((card) => card.innerText)")
    const recorded = await cards()
    const label = async (sentence: string) => {
      await fill({ sentence })
      await until(`document.querySelector('.recorded h3').textContent === '“${sentence}”'`)
    }
    await page.evaluate("document.getElementById('sentence').focus()")
    await until("document.getElementById('own-state').textContent === 'Ready.'")
    await label('Your electricity bill for May is 64 euros.')
    expect(await cards()).toEqual([
      expect.stringMatching(/is 64 euros.*After the lesson\s+bill\s+[0-9]+ %.*The model alone: no label/s),
      ...recorded.slice(0, 2),
    ])
    expect(await text('own-state')).toMatch(/^Labelled here, in this page/)
    await picture('own')
    // The page gives the labels that were recorded in Node.
    await label('My brother asks how your holiday by the sea was.')
    expect((await cards())[0]).toBe(recorded[2])
    await fill({ sentence: '' })
    await until("document.querySelector('.recorded h3').textContent.startsWith('“You have not paid')")
    expect(await cards()).toEqual(recorded)
    // A recipe without an adapter beside the page offers no field.
    await recipe('comet')
    expect(await page.evaluate("document.getElementById('own').hidden")).toBe(true)
    await recipe('mails')
    expect(await page.evaluate("document.getElementById('own').hidden")).toBe(false)
    await until("document.getElementById('data').value.startsWith('text,label')")
  })

  it('opens the small model, with threads on a host that sends no headers for them', async () => {
    await ready()
    expect(await text('model-state')).toBe('Open: union-3m (llama, 6 blocks)')
    await until("/^[0-9]+ threads?/.test(document.getElementById('machine').textContent)")
    // Without a GPU, WebGPU is shown but cannot be chosen.
    expect(await text('machine')).toMatch(/No WebGPU here/)
    expect(await page.evaluate("document.querySelector('#device [value=webgpu]').disabled")).toBe(true)
    expect(await page.evaluate("document.getElementById('as-chat').disabled")).toBe(true)
    // The task's suggestions do not replace the recipe's settings.
    expect(await page.evaluate("document.getElementById('learning-rate').value")).toBe('0.005')
  })

  it('says that data are broken in words of data, and clears the last run', async () => {
    await fill({ data: '{"text": "a"}\n{"text": ' })
    await click('start')
    await until("/^The data cannot be read/.test(document.getElementById('error').textContent)")
    expect(await page.evaluate("document.getElementById('run').hidden")).toBe(true)
    // The line is selected, and nothing can be taught until the data change.
    expect(await text('error')).toMatch(/Line 2 of the text you pasted: not valid JSON/)
    expect(
      await page.evaluate(
        '((area) => area.value.slice(area.selectionStart, area.selectionEnd))(document.activeElement)',
      ),
    ).toBe('{"text": ')
    expect(await text('lesson')).toBe('')
    expect(await page.evaluate("document.getElementById('start').disabled")).toBe(true)
    await recipe('mails')
    await until("document.getElementById('data').value.startsWith('text,label')")
    expect(await page.evaluate("document.getElementById('start').disabled")).toBe(false)
  })

  it('says what is missing, and closes the message', async () => {
    await fill({ data: ' ' })
    await click('start')
    await until("!document.getElementById('error').hidden")
    expect(await text('error')).toMatch(/There is no text to learn from/)
    await picture('error')
    await page.evaluate("document.querySelector('#error button').click()")
    expect(await page.evaluate("document.getElementById('error').hidden")).toBe(true)
  })

  it('trains, pauses, and continues after a reload', async () => {
    await fill({ data: readFileSync(join(root, 'models/data/whaling.jsonl'), 'utf8'), name: 'whales' })
    await fill({ prompt: 'The captain of the ship' })
    await fill({ steps: 14, 'batch-size': 2, 'max-length': 32 })
    await click('start')
    // The visitor's own question, without an answer yet, takes the place of the recorded lesson, below the curve.
    await until("document.querySelector('.recorded h3')?.textContent === '“The captain of the ship”'")
    expect(await page.evaluate("document.querySelectorAll('.recorded').length")).toBe(1)
    await until("/^[3-9]\\//.test(document.getElementById('number-step').textContent)")
    await picture('training')
    // The page asks before the visitor leaves.
    const leave = "!dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    expect(await page.evaluate(leave)).toBe(true)
    await click('pause')
    await until("document.getElementById('train-state').textContent.startsWith('Paused')")
    expect(await page.evaluate(leave)).toBe(false)
    const paused = await text('number-step')
    await page.navigate(address)
    await until("document.getElementById('start').textContent === 'Continue'")
    // The curve and the numbers are shown before the model is open.
    expect(await text('number-step')).toBe(paused)
    expect(await page.evaluate("document.getElementById('curve').getAttribute('aria-label')")).toMatch(/of 14\.$/)
    await ready()
    await click('start')
    await until("document.querySelectorAll('#answers .answer').length === 2")
    expect(await text('number-step')).toBe('14/14')
    // The number is the end of the thick line.
    expect(await page.evaluate("document.getElementById('curve').getAttribute('aria-label')")).toContain(
      `to about ${await text('number-loss')} at step 14`,
    )
    // The answers come by themselves; then the bar says that it is done, and offers no pause.
    await until("document.getElementById('train-state').textContent.startsWith('Trained 172,032 parameters')")
    expect(await page.evaluate("['start', 'pause', 'stop'].map((id) => document.getElementById(id).hidden)")).toEqual([
      false,
      true,
      true,
    ])
    await site.answered()
    const lesson = await page.evaluate(
      "[...document.querySelectorAll('.recorded')].map((card) => [...card.querySelectorAll('h4, div')].map((part) => part.textContent))",
    )
    expect(lesson).toHaveLength(1)
    for (const [first, alone, second, taught] of lesson) {
      expect([first, second]).toEqual(['After the lesson', 'The model alone'])
      expect(taught).not.toBe(alone)
    }
    expect(await text('lesson-title')).toMatch(/^It has learned, in [0-9]+ s on this machine$/)
    await click('next')
    expect(await page.evaluate('document.activeElement.id')).toBe('prompt')
    // The field is empty, and gets its example back if the visitor leaves it so.
    const prompt = "document.getElementById('prompt')"
    expect(await page.evaluate(`[${prompt}.value, ${prompt}.placeholder]`)).toEqual(['', 'The captain of the ship'])
    await page.evaluate(`${prompt}.blur()`)
    expect(await page.evaluate(`${prompt}.value`)).toBe('The captain of the ship')
    await until("document.querySelectorAll('#layers-table tbody tr').length === 42")
    // With rank 8, each layer has eight singular values, which are drawn and which a screen reader can read.
    const spectra: string[] = await page.evaluate(
      "[...document.querySelectorAll('#layers-table svg')].map((one) => one.getAttribute('aria-label'))",
    )
    expect(spectra).toHaveLength(42)
    for (const spectrum of spectra) {
      const values = spectrum.split(', ').map(Number)
      expect(values).toHaveLength(8)
      expect(values).toEqual([...values].sort((a, b) => b - a))
      expect(values[7]).toBeGreaterThanOrEqual(0)
    }
    expect(await text('number-unit')).toBe('Tokens/second')
    expect(await page.evaluate("document.getElementById('curve').getAttribute('aria-label')")).toMatch(/of 14\.$/)
  })

  it('names a number that is out of its range by the label of its field', async () => {
    await fill({ temperature: 5 })
    await click('generate')
    await until("/Temperature: Value must be/.test(document.getElementById('error').textContent)")
  })

  it('writes with the model alone and with the adapter, side by side', async () => {
    await fill({ tokens: 16 })
    await fill({ temperature: 0 })
    await click('generate')
    await until("document.getElementById('generate').disabled === false")
    const texts = await page.evaluate("[...document.querySelectorAll('#answers .text')].map((one) => one.textContent)")
    expect(texts).toHaveLength(2)
    for (const one of texts) expect(one.length).toBeGreaterThan('The captain of the ship'.length + 10)
    expect(texts[0]).not.toBe(texts[1])
    expect(await page.evaluate("document.querySelectorAll('#answers mark').length")).toBeGreaterThan(0)
    await picture('desktop-light')
    // With strength 0, the adapter gives the text of the model alone.
    await page.evaluate("document.querySelector('.strength input').value = 0")
    await click('generate')
    await until("document.getElementById('generate').disabled === false")
    const [alone, none] = await page.evaluate(
      "[...document.querySelectorAll('#answers .text')].map((one) => one.textContent)",
    )
    expect(none).toBe(alone)
    expect(await text('layers-state')).toMatch(
      /^whales: 172,032 trained parameters in 42 layers. Half of the change is in/,
    )
  })

  it('keeps adapters, which can be renamed, used, mixed and deleted after a reload', async () => {
    await site.reload()
    const kept = (name: string) => `document.querySelector('#adapters [data-kept=${name}]')`
    const press = (name: string, label: string) =>
      page.evaluate(`[...${kept(name)}.querySelectorAll('button')].find((b) => b.textContent === '${label}').click()`)
    await until(`${kept('whales')} !== null`)
    await page.evaluate(`(() => {
      const field = ${kept('whales')}.querySelector('input')
      field.value = 'books'
      field.dispatchEvent(new Event('change'))
    })()`)
    await until(`${kept('books')} !== null && ${kept('whales')} === null`)
    await press('books', 'Use')
    await until("document.querySelector('#answers [data-adapter=books]') !== null")
    await page.drop([join(root, 'tests/golden/peft/rslora')])
    await until("document.querySelectorAll('#answers .answer').length === 4")
    await fill({ tokens: 4, temperature: 0 })
    await click('generate')
    await until("document.getElementById('generate').disabled === false")
    expect(await page.evaluate("document.querySelector('#answers .answer:last-child .written').textContent")).not.toBe(
      '',
    )
    // Opened adapters are kept too. What "Export all" saves is imported whole, under the same names.
    await until(`${kept('rslora')} !== null`)
    const downloads = mkdtempSync(join(tmpdir(), 'lowrank-downloads-'))
    let archive: string
    try {
      await page.download(downloads)
      await click('export')
      const saved = () => readdirSync(downloads).includes('adapters.zip')
      for (let i = 0; i < 100 && !saved(); i++) await setTimeout(100)
      archive = readFileSync(join(downloads, 'adapters.zip')).toString('base64')
    } finally {
      rmSync(downloads, { recursive: true, force: true })
    }
    for (const name of ['books', 'rslora']) {
      await press(name, 'Delete')
      await until(`${kept(name)} === null`)
    }
    await site.reload()
    await page.evaluate(`(() => {
      const field = document.getElementById('adapter-zip')
      const chosen = new DataTransfer()
      chosen.items.add(new File([Uint8Array.from(atob('${archive}'), (c) => c.charCodeAt(0))], 'adapters.zip'))
      field.files = chosen.files
      field.dispatchEvent(new Event('change'))
    })()`)
    await until(`${kept('books')} !== null && ${kept('rslora')} !== null`)
    expect(
      await page.evaluate(
        "[...document.querySelectorAll('#answers [data-adapter]')].map((one) => one.dataset.adapter)",
      ),
    ).toEqual(['', 'books', 'rslora', 'All of them mixed'])
    for (const name of ['books', 'rslora']) {
      await press(name, 'Delete')
      await until(`${kept(name)} === null`)
    }
    expect(await page.evaluate("document.getElementById('mine').hidden")).toBe(true)
    await site.reload()
    expect(await page.evaluate("document.querySelectorAll('#adapters li').length")).toBe(0)
  })

  it('asks before it fetches an adapter by link from a host without CORS for missing files, writes with it, keeps it', async () => {
    const host = createServer((request, response) => {
      const file = join(root, 'tests/golden/peft/rslora', basename(request.url!))
      if (!existsSync(file)) response.writeHead(404).end()
      else response.writeHead(200, { 'access-control-allow-origin': '*' }).end(readFileSync(file))
    })
    await new Promise<void>((resolve) => host.listen(0, '127.0.0.1', resolve))
    const link = `http://127.0.0.1:${(host.address() as AddressInfo).port}/linked/`
    try {
      const from = page.requests.length
      await page.navigate(`${address}?link#adapter=${link}`)
      await until("!document.getElementById('link').hidden")
      expect(await text('link')).toMatch(/linked.*from 127.0.0.1.*union-3m, from this site, 12 MB/)
      expect(page.requests.slice(from).filter((url) => /linked[/]|[/]model[/]/.test(url.split('#')[0]))).toEqual([])
      await fill({ tokens: 4 })
      await page.evaluate("document.querySelector('#link button').click()")
      await until("document.querySelector('#answers [data-adapter=linked] .written')?.textContent.length > 0")
    } finally {
      host.close()
    }
    await page.navigate(address)
    await ready()
    expect(await page.evaluate("document.querySelector('#adapters li').dataset.kept")).toBe('linked')
  })

  it('shares an adapter: by its address, or whole in a link if it is small', async () => {
    const kept = (name: string) => `document.querySelector('#adapters [data-kept=${name}]')`
    const share = async (name: string) => {
      await until(`${kept(name)} !== null`)
      await page.evaluate(
        `[...${kept(name)}.querySelectorAll('button')].find((b) => b.textContent === 'Share').click()`,
      )
      await until(`document.querySelector('#share h3')?.textContent === '${name}'`)
      return (await page.evaluate("document.querySelector('#share > input').value")) as string
    }
    const partsOf = (link: string) => Object.fromEntries(new URLSearchParams(new URL(link).hash.slice(1)))
    await ready()
    await page.drop([join(root, 'tests/golden/peft/rslora')])
    expect(await share('rslora')).toBe('')
    expect(await text('share')).toMatch(
      /This adapter \([0-9]+ kB\) is larger than a link can hold \(32 kB\).*npx lowrank push rslora you[/]rslora/,
    )
    // With the address of the adapter, there is a link.
    const field = (at: string) => `document.querySelector('#share ${at}')`
    expect(await page.evaluate(`${field('.row button')}.disabled`)).toBe(true)
    await page.evaluate(
      `${field('li input')}.value = 'me/rslora'; ${field('li input')}.dispatchEvent(new Event('input'))`,
    )
    expect(await page.evaluate(`${field('.row button')}.disabled`)).toBe(false)
    const large = partsOf(await page.evaluate(`${field('> input')}.value`))
    expect(large).toMatchObject({ adapter: 'me/rslora', model: 'union-3m' })
    expect(large.zip).toBeUndefined()
    // The button shows that the card is open, and closes it.
    const opener = "document.querySelector('#adapters [aria-expanded=true]')"
    await until(`${opener} !== null`)
    await page.evaluate(`${opener}.click()`)
    await until(`document.getElementById('share').hidden && ${opener} === null`)

    const folder = mkdtempSync(join(tmpdir(), 'lowrank-small-'))
    const lora = new LoraAdapter({ rank: 1, targetModules: ['o_proj'] })
    const wave = Array.from({ length: 192 }, (_, i) => Math.sin(i) / 4)
    lora.addFactors(
      'model.layers.0.self_attn.o_proj',
      [wave],
      wave.map((value) => [value]),
    )
    try {
      await saveAdapter(lora, join(folder, 'tiny'))
      await page.drop([join(folder, 'tiny')])
      await fill({ prompt: 'The whale', tokens: 4 })
      const link = await share('tiny')
      expect(partsOf(link)).toMatchObject({ adapter: 'tiny', model: 'union-3m', ask: 'The whale' })
      expect(await text('share')).toMatch(/The whole adapter is in the link: [0-9] kB/)

      await page.navigate(`${link.replace('#', '?whole#')}&data=mine.txt&gain=the+loss+went+from+3+to+1`)
      await until("!document.getElementById('link').hidden")
      expect(await text('link')).toMatch(
        /adapter tiny, in the link.*as the link says: from mine.txt: the loss went from 3/,
      )
      expect(await text('model-state')).not.toMatch(/^Open/)
      await page.evaluate("document.querySelector('#link button').click()")
      await until("document.querySelector('#answers [data-adapter^=tiny] .written')?.textContent.length > 0")
      expect(await page.evaluate("document.getElementById('prompt').value")).toBe('The whale')
      expect(await text('opened')).toMatch(/^The adapter tiny\S* is open/)

      // A link that would unpack to much more than an adapter needs is refused before that.
      const bomb = zipSync({ 'adapter_config.json': new Uint8Array(8 << 20) })
      const zip = Buffer.from(bomb).toString('base64url')
      await page.navigate(`${address}?bomb#adapter=x&zip=${zip}`)
      await until("!document.getElementById('link').hidden")
      await page.evaluate("document.querySelector('#link button').click()")
      await until("!document.getElementById('error').hidden")
      expect(await text('error')).toMatch(/it would unpack to 8388608 bytes, more than 1048576/)
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
    await page.navigate(address)
    await ready()
  })

  it('opens a folder that is dropped: an adapter, or says what it is not', async () => {
    await page.drop([join(root, 'tests/golden/peft')])
    await until("!document.getElementById('error').hidden")
    expect(await text('error')).toMatch(/peft: neither a model nor an adapter/)
    const noModel = mkdtempSync(join(tmpdir(), 'lowrank-no-model-'))
    try {
      writeFileSync(join(noModel, 'config.json'), '{"model_type": "llama"}')
      await page.drop([noModel])
      await until("/^The model cannot be opened.*onnx/.test(document.getElementById('error').textContent)")
      expect(await text('model-state')).toMatch(/^Open: union-3m/)
    } finally {
      rmSync(noModel, { recursive: true, force: true })
    }
    await page.drop([join(root, 'tests/golden/tied-models/distilbert-biases/adapter')])
    await until("/distilbert/.test(document.getElementById('error').textContent)")
    expect(await page.evaluate("document.querySelectorAll('#answers .answer').length")).toBe(1)
    // The open model still writes.
    await fill({ tokens: 2 })
    await click('generate')
    await until("document.getElementById('generate').disabled === false")
    expect(await page.evaluate("document.getElementById('error').hidden")).toBe(true)
  })

  it('lets another tab continue after the first was killed in the middle of a step, and not before', async () => {
    await fill({ data: 'The captain of the ship saw the whale. '.repeat(20) })
    await fill({ steps: 50, 'batch-size': 1, 'max-length': 64 })
    await click('start')
    await until("/^[1-9]\\//.test(document.getElementById('number-step').textContent)")
    const tab = await page.openTab(address)
    const untilTab = async (expression: string) => {
      for (let i = 0; i < 1000 && !(await tab(expression).catch(() => false)); i++) await setTimeout(50)
      expect(await tab(expression)).toBe(true)
    }
    await untilTab("document.getElementById('start').textContent === 'Continue'")
    for (const id of ['start', 'stop']) {
      await tab(`document.getElementById('${id}').click()`)
      await untilTab("!document.getElementById('error').hidden")
      expect(await tab("document.getElementById('error').textContent")).toMatch(/Another tab of this page has a run/)
    }
    await until("/^[1-4][1-9]\\//.test(document.getElementById('number-step').textContent)")
    await page.crash()
    await tab(`globalThis.steps = new Set(); new MutationObserver(() =>
      globalThis.steps.add(document.getElementById('number-step').textContent)
    ).observe(document.getElementById('number-step'), { childList: true })`)
    await tab("document.getElementById('start').click()")
    await untilTab("document.querySelectorAll('#answers .answer').length === 2")
    const steps: string[] = await tab('[...globalThis.steps]')
    // Each fifth step is saved.
    expect(steps[0]).toMatch(/^[1-4][16]\/50$/)
    const first = Number.parseInt(steps[0], 10)
    expect(steps).toEqual(Array.from({ length: 51 - first }, (_, i) => `${first + i}/50`))
  })

  it('trains in memory where the browser grants no space', async () => {
    await page.navigate(address)
    await ready()
    await fill({ data: 'The captain of the ship saw the whale. '.repeat(20) })
    await fill({ steps: 3, 'batch-size': 1, 'max-length': 16 })
    await page.setQuota(1000)
    await click('start')
    await until("/grants this page no more space.*in memory/.test(document.getElementById('disk').textContent)")
    await until("document.getElementById('train-state').textContent.startsWith('Trained 172,032 parameters')")
    await until("document.querySelectorAll('#answers .answer').length === 2")
    await page.setQuota()
  })

  it('goes on in memory from what was saved where the space ends in the middle of a run', async () => {
    await site.reload()
    await fill({ data: 'The captain of the ship saw the whale. '.repeat(20) })
    await fill({ steps: 40, 'batch-size': 1, 'max-length': 16 })
    await click('start')
    await until("/^[12][1-9]\\//.test(document.getElementById('number-step').textContent)")
    await page.setQuota(1000)
    await watchSteps()
    await until("!document.getElementById('disk').hidden")
    await until("document.querySelectorAll('#answers .answer').length === 2")
    await page.setQuota()
    const steps = await page.evaluate('[...globalThis.steps]')
    expect(steps.at(-1)).toBe('40/40')
    expect(await text('disk')).toMatch(/download the adapter|in memory/)
  })

  it('closes an adapter', async () => {
    await page.evaluate(
      "[...document.querySelectorAll('#answers button')].find((b) => b.textContent === 'Close').click()",
    )
    await until("document.querySelectorAll('#answers .answer').length === 1")
  })

  it('does all of it with the keyboard alone', async () => {
    await page.navigate(address)
    await ready()
    const downloads = mkdtempSync(join(tmpdir(), 'lowrank-downloads-'))
    await page.download(downloads)
    /** The id of the element with the focus, if the bar of the run is over it. */
    const coveredId = `(() => {
      const [focus, bar] = [document.activeElement, document.getElementById('bar')]
      if (focus === document.body || bar.contains(focus)) return null
      const [a, b] = [focus.getBoundingClientRect(), bar.getBoundingClientRect()]
      return a.bottom > b.top + 1 && b.bottom - 1 > a.top ? focus.id || focus.outerHTML : null
    })()`
    /** Presses Tab until an element has the focus, which must be visible. */
    const tabTo = async (selector: string) => {
      for (let i = 0; i < 100; i++) {
        await page.press('Tab')
        expect(await page.evaluate(coveredId)).toBe(null)
        if (!(await page.evaluate(`document.activeElement.matches(${JSON.stringify(selector)})`))) continue
        const outline =
          "getComputedStyle(document.activeElement.closest('.button') ?? document.activeElement).outlineStyle"
        expect(await page.evaluate(outline)).toBe('solid')
        return
      }
      throw new Error(`Tab never comes to ${selector}`)
    }
    const typeInto = async (selector: string, value: string) => {
      await tabTo(selector)
      await page.press('Control+a')
      await page.type(value)
    }
    try {
      await tabTo('a.skip')
      await tabTo('#model > summary')
      await page.press('Enter')
      await tabTo('#models button')
      await page.press('Enter')
      await until("document.getElementById('model-state').textContent === 'Opening…'")
      await until("document.getElementById('model-state').textContent.startsWith('Open:')")
      await typeInto('#data', 'The captain of the ship saw the whale. '.repeat(20))
      await tabTo('#train details details summary')
      await page.press('Space')
      await typeInto('#steps', '3')
      await typeInto('#batch-size', '1')
      await typeInto('#max-length', '16')
      await tabTo('#start')
      await page.press('Space')
      await site.answered()
      await typeInto('#prompt', 'The whale')
      await page.press('Enter')
      await until("!document.getElementById('generate').disabled")
      await until("[...document.querySelectorAll('#answers .text')].every((one) => one.textContent.length > 20)")
      await tabTo('[data-adapter^=mails] button')
      await page.press('Enter')
      const archive = () => readdirSync(downloads).find((name) => name.endsWith('.zip'))
      for (let i = 0; i < 100 && archive() === undefined; i++) await setTimeout(100)
      const names = Object.keys(unzipSync(readFileSync(join(downloads, archive()!))))
      expect(names).toEqual(
        expect.arrayContaining([
          expect.stringMatching(/^mails.*[/]adapter_config.json$/),
          expect.stringMatching(/^mails.*[/]adapter_model.safetensors$/),
        ]),
      )
    } finally {
      rmSync(downloads, { recursive: true, force: true })
    }
  })

  it('fits a phone and the dark, also with several adapters', async () => {
    await ready()
    await page.show({ ...DESKTOP, scheme: 'dark' })
    await picture('desktop-dark')
    await page.show(PHONE)
    const cards = "document.querySelectorAll('#answers .answer').length"
    const before = await page.evaluate(cards)
    for (let i = 0; i < 4; i++) {
      await page.drop([join(root, 'tests/golden/peft/rslora')])
      await until(`${cards} > ${before + i}`)
    }
    await fill({ tokens: 40 })
    await click('generate')
    await until("document.getElementById('generate').disabled === false")
    const size = "['scrollWidth', 'scrollHeight'].map((name) => document.documentElement[name])"
    const [width, height] = await page.evaluate(size)
    expect(width).toBeLessThanOrEqual(PHONE.width)
    expect(height).toBeLessThan(4000)
    await picture('phone')
    // Folded parts can be opened, and all are open on a wider screen.
    await page.evaluate("document.querySelector('#mine > summary').click()")
    expect(await page.evaluate("document.getElementById('mine').open")).toBe(true)
    await page.show(DESKTOP)
    await until("[...document.querySelectorAll('details.fold')].every(({ open }) => open)")
  })

  it('has no errors on the console', () => {
    expect(
      page.errors.filter((line) => !/404|CORS policy|ERR_FAILED|No available adapters|beforeunload/.test(line)),
    ).toEqual([])
  })

  it('keeps its threads when the browser reloads it, and opens offline after a visit', async () => {
    await page.navigate(address)
    await ready()
    await page.reload()
    await until("document.body.dataset.ready === '' && crossOriginIsolated")
    await until("caches.match(new URL('model/onnx/model.onnx', location)).then((kept) => kept?.status === 200)")
    await site.goOffline()
    await page.reload()
    await ready()
    expect(await text('model-state')).toMatch(/^Open: union-3m/)
    expect(await page.evaluate('crossOriginIsolated')).toBe(true)
    await recipe('mails')
    await fill({ sentence: 'Hello' })
    await until("/“Hello”.*[0-9] %/s.test(document.querySelector('.recorded').innerText)")
  })
})
