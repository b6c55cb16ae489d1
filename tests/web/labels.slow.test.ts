// In Chromium, the page learns labels for the texts of a table and for pictures in folders, and then gives these
// labels.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { canOpenSite, DESKTOP, openSite, PHONE, root, type Site } from './site.js'

const ENCODER = join(root, 'tests/golden/text-classification/encoder')
const VIT = join(root, 'tests/golden/image-classification/vit')
const moods = readFileSync(join(root, 'models/data/moods.jsonl'), 'utf8')
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line) as { text: string; label: string })

/** A picture of one color: https://en.wikipedia.org/wiki/BMP_file_format */
function bitmap([red, green, blue]: readonly number[]): Buffer {
  const size = 16
  const file = Buffer.alloc(54 + size * size * 3)
  file.write('BM')
  file.writeUInt32LE(file.length, 2)
  for (const [at, value] of Object.entries({ 10: 54, 14: 40, 18: size, 22: size }))
    file.writeUInt32LE(value, Number(at))
  file.writeUInt16LE(1, 26)
  file.writeUInt16LE(24, 28)
  for (let i = 54; i < file.length; i += 3) file.set([blue, green, red], i)
  return file
}

const COLORS = { warm: [250, 40, 20], cold: [20, 60, 250] }
/** Returns a color near the color of a label. Each `i` from 0 to 15 gives a different color. */
const near = (label: keyof typeof COLORS, i: number) => COLORS[label].map((value) => Math.abs(value - ((i * 7) % 20)))

describe.skipIf(!canOpenSite)('the page', { timeout: 300_000 }, () => {
  const scratch = mkdtempSync(join(tmpdir(), 'lowrank-labels-'))
  const folder = join(scratch, 'pictures')
  let site: Site
  beforeAll(async () => {
    for (const label of ['warm', 'cold'] as const) {
      mkdirSync(join(folder, label), { recursive: true })
      for (let i = 0; i < 16; i++) writeFileSync(join(folder, label, `${i}.bmp`), bitmap(near(label, i)))
    }
    site = await openSite()
    await site.page.show(DESKTOP)
    await site.ready()
  }, 300_000)
  afterAll(async () => {
    await site?.close()
    rmSync(scratch, { recursive: true, force: true, maxRetries: 20 })
  })

  const open = async (model: string, type: string) => {
    await site.page.drop([model])
    await site.until(`document.getElementById('model-state').textContent.includes('(${type}, ')`)
  }
  const error = "!document.getElementById('error').hidden"
  /** The first label of each card. */
  const firstLabels = (): Promise<string[]> =>
    site.page.evaluate(
      "[...document.querySelectorAll('#answers .answer')].map((one) => one.querySelector('.scores span')?.textContent ?? '')",
    )
  const type = (text: string) =>
    site.page.evaluate(`(() => {
      const area = document.getElementById('data')
      area.value = ${JSON.stringify(text)}
      area.dispatchEvent(new Event('input'))
    })()`)
  const give = async () => {
    await site.until("!document.getElementById('generate').disabled")
    await site.click('generate')
    await site.until("!document.getElementById('generate').disabled")
  }

  it.each([
    ['is written', "area.value = 'mine'; area.dispatchEvent(new Event('input', { bubbles: true }))"],
    ['is opened', "field.files = files.files; field.dispatchEvent(new Event('change'))"],
    ['is dropped', "area.dispatchEvent(new DragEvent('drop', { bubbles: true, dataTransfer: files }))"],
  ])('keeps what %s while the file of a recipe is on its way', async (_, choose) => {
    const written = await site.page.evaluate(`(async () => {
      document.querySelector('[data-recipe=mails]').click()
      const [area, field] = ['data', 'data-file'].map((id) => document.getElementById(id))
      const files = new DataTransfer()
      files.items.add(new File(['mine'], 'mine.txt'))
      ${choose}
      for (let i = 0; i < 3; i++) await (await fetch('samples/mails.csv', { cache: 'reload' })).text()
      return area.value
    })()`)
    expect(written).toBe('mine')
    await site.page.evaluate("document.querySelector('[data-recipe=mails]').click()")
    await site.until("document.getElementById('data').value.startsWith('text,label')")
  })

  it('learns labels from a table, on an encoder, which shows them beside the model alone', async () => {
    await open(ENCODER, 'bert')
    await type('A text without labels')
    expect(await site.text('lesson')).toMatch(
      /cannot learn from this. It learns from records with these fields: text and textPair; text and label; words and tags[.]/,
    )
    await type(`text,label\n${moods.map(({ text, label }) => `"${text}",${label}`).join('\n')}\n`)
    expect(await site.text('lesson')).toBe('The adapter will learn labels for texts.')
    await site.fill({ steps: 40, 'learning-rate': 0.02, 'batch-size': 6 })
    await site.click('start')
    await site.until("document.querySelectorAll('#answers .answer').length === 2")
    expect(await site.text('write-heading')).toBe('Compare its labels')
    const given: string[] = []
    for (const { text } of moods) {
      await site.fill({ prompt: text })
      await give()
      const [alone, label] = await firstLabels()
      expect(alone).toBe('')
      given.push(label)
    }
    expect(given).toEqual(moods.map(({ label }) => label))
    await site.picture('labels-texts')
  })

  it('searches by pairs, and finds names: with a folder, where MiniLM does not lie beside the page', async () => {
    await site.page.evaluate("document.querySelector('[data-recipe=search]').click()")
    await site.until(
      "/MiniLM does not lie beside this page/.test(document.getElementById('recorded-note').textContent)",
    )
    await site.click('start')
    await site.until(error)
    expect(await site.text('error')).toMatch(/load Xenova.all-MiniLM-L6-v2 from the Hub, or open a folder of it/)
    await open(VIT, 'vit')
    await open(ENCODER, 'bert')
    const lessons = {
      'pairs.jsonl': ['the sea was calm', /belong together/, 'Compare what it finds', 'a calm sea'],
      'names.jsonl': [
        'the king Ahab saw the Red Sea',
        /find names/,
        'Compare the names it finds',
        'Ahab PERRed Sea LOC',
      ],
    } as const
    let cards = 1
    for (const [file, [prompt, lesson, heading, found]] of Object.entries(lessons)) {
      await type(readFileSync(join(root, 'models/data', file), 'utf8'))
      expect(await site.text('lesson')).toMatch(lesson)
      await site.fill({ steps: 60, 'learning-rate': 0.02, 'batch-size': 6, prompt })
      await site.click('start')
      cards++
      await site.until(`document.querySelectorAll('#answers .answer').length === ${cards}`)
      await site.answered()
      expect(await site.text('write-heading')).toBe(heading)
      const shown = await site.page.evaluate(`(() => {
        const card = document.querySelector('#answers .answer:last-child')
        return [...card.querySelectorAll('mark, li:first-child span:first-child')].map((one) => one.textContent).join('')
      })()`)
      expect(shown).toBe(found)
      expect(await site.text('recorded')).toContain(`“${prompt}”`)
    }
    await site.picture('search-and-names')
  })

  it('says that a text model reads no pictures', async () => {
    await site.page.drop([folder])
    await site.until("!document.getElementById('pictures').hidden")
    expect(await site.text('gallery')).toMatch(/(warm|cold) 16.*(warm|cold) 16/)
    await site.click('start')
    await site.until(error)
    expect(await site.text('error')).toMatch(/encoder reads text\. To learn from pictures, open a model such as ViT/)
    // Pictures need a folder for each label.
    await site.page.drop([join(folder, 'warm')])
    await site.until("/folder of their own/.test(document.getElementById('error').textContent)")
  })

  it('learns labels for pictures in folders, and goes on after a reload', async () => {
    await open(VIT, 'vit')
    expect(await site.text('lesson')).toBe('The adapter will learn labels for pictures.')
    expect(await site.text('train-heading')).toBe('Teach it your pictures')
    // The display of the earlier model's run is cleared.
    expect(await site.text('number-step')).toBe('–')
    expect(await site.page.evaluate("document.getElementById('layers').hidden")).toBe(true)
    expect(await site.page.evaluate("document.getElementById('length').hidden")).toBe(true)
    await site.fill({ steps: 250, 'learning-rate': 0.01, 'batch-size': 8 })
    await site.picture('labels-pictures')
    // A step takes milliseconds, so the page itself presses Pause.
    await site.page.evaluate(`new MutationObserver(() => document.getElementById('pause').click())
      .observe(document.getElementById('number-step'), { childList: true })`)
    await site.click('start')
    await site.until("document.getElementById('train-state').textContent.startsWith('Paused')")
    await site.reload()
    await site.until("document.getElementById('start').textContent === 'Continue'")
    expect(await site.text('gallery')).toMatch(/(warm|cold) 16.*(warm|cold) 16/)
    await open(VIT, 'vit')
    await site.click('start')
    await site.until("document.querySelectorAll('#answers .answer').length === 2")
    expect(await site.text('number-unit')).toBe('Pictures/second')
    expect(Number((await site.text('number-speed')).replaceAll(',', ''))).toBeGreaterThan(0)

    await site.click('generate')
    await site.until(error)
    expect(await site.text('error')).toMatch(/Choose a picture first/)
    for (const label of ['warm', 'cold'] as const) {
      const bytes = JSON.stringify([...bitmap(near(label, 2.5))])
      await site.page.evaluate(`(() => {
        const files = new DataTransfer()
        files.items.add(new File([Uint8Array.from(${bytes})], 'new.bmp', { type: 'image/bmp' }))
        const field = document.getElementById('picture')
        field.files = files.files
        field.dispatchEvent(new Event('change'))
      })()`)
      await give()
      expect((await firstLabels())[1]).toBe(label)
    }
    expect(await site.page.evaluate(`document.getElementById('error').hidden`)).toBe(true)
    await site.picture('labels-desktop')
    await site.page.show({ ...DESKTOP, scheme: 'dark' })
    await site.picture('labels-dark')
    await site.page.show(PHONE)
    expect(await site.page.evaluate('document.documentElement.scrollWidth')).toBeLessThanOrEqual(PHONE.width)
    await site.picture('labels-phone')
    await site.page.show({ ...PHONE, scheme: 'dark' })
    await site.picture('labels-phone-dark')
    await site.page.show(DESKTOP)
  })

  it('learns labels on the model that writes, and shows no text beside labels', async () => {
    await site.page.evaluate("document.querySelector('#models button').click()")
    await site.until("document.getElementById('model-state').textContent.startsWith('Open: union-3m')")
    await site.click('no-pictures')
    await type(moods.map((row) => JSON.stringify(row)).join('\n'))
    expect(await site.text('lesson')).toBe('The adapter will learn labels for texts.')
    await site.fill({ steps: 2, 'batch-size': 2, tokens: 4 })
    await site.click('start')
    await site.until("document.querySelectorAll('#answers .answer').length === 2")
    await give()
    const [alone, label] = await firstLabels()
    expect(alone).toBe('')
    expect(['up', 'down']).toContain(label)
    expect(await site.page.evaluate("document.querySelector('#answers .text').textContent")).toBe(
      'The model alone gives no labels.',
    )
    // Without the adapter, the model writes again.
    const remove =
      "[...document.querySelectorAll('#answers button')].find((one) => one.textContent === 'Close').click()"
    await site.page.evaluate(remove)
    await site.until("document.querySelectorAll('#answers .answer').length === 1")
    await give()
    expect(await site.page.evaluate("document.querySelector('#answers .answer').hidden")).toBe(false)
    expect(await site.page.evaluate("document.querySelector('#answers .written').textContent.length")).toBeGreaterThan(
      5,
    )
  })

  it('uses a large file as it is, and tells a picture that is called a text', async () => {
    const choose = (parts: string, name: string) =>
      site.page.evaluate(`(() => {
      const files = new DataTransfer()
      files.items.add(new File(${parts}, '${name}'))
      document.getElementById('data-file').files = files.files
      document.getElementById('data-file').dispatchEvent(new Event('change'))
    })()`)
    await choose("['The captain saw the whale. '.repeat(900000)]", 'large.txt')
    await site.until("document.getElementById('data-state').textContent === 'large.txt, 24300 kB'")
    expect(await site.page.evaluate("document.getElementById('data').value")).toBe('')
    expect(await site.text('lesson')).toMatch(/write like this text/)
    await choose('[Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10)]', 'notes.txt')
    await site.until("!document.getElementById('error').hidden")
    expect(await site.text('error')).toMatch(/notes.txt is a picture.*Open pictures/)
    // The message stands in the section where the error happened.
    expect(await site.page.evaluate("document.getElementById('error').closest('.card').id")).toBe('train')
  })

  it('asks for a token where the Hub asks for access', async () => {
    await site.page.evaluate(
      `globalThis.fetch = async () => new Response('', { status: 401, headers: { 'x-error-code': 'GatedRepo' } })`,
    )
    await site.fill({ 'hub-id': 'org/gated' })
    await site.page.evaluate("document.querySelector('#hub button').click()")
    await site.until("/gated model/.test(document.getElementById('error').textContent)")
    expect(await site.text('error')).toMatch(/paste it into "Access token of the Hub"/)
    expect(await site.text('model-state')).toMatch(/^Open: union-3m/)
  })

  it('has no errors on the console', () => {
    expect(site.page.errors.filter((line) => !/No available adapters/.test(line))).toEqual([])
  })
})
