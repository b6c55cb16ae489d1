// The page of `lowrank serve`: its files and headers, and its use in Chromium.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createHandler, type Handler, type HandlerOptions, type Listening, listen, trainingIn } from 'lowrank/server'
import { afterAll, describe, expect, it } from 'vitest'
import { chromium } from '../chromium.js'
import { goldenPath } from '../golden.js'
import { type OpenPage, openPage } from '../page.js'

/** A name that would run as a script if the page treated it as HTML. */
const HOSTILE = '<img src=x onerror="document.title=1">'
const MODEL = 'models/union-3m'
const handlers: Handler[] = []
const listening: Listening[] = []

async function serve(options: Partial<HandlerOptions> = {}): Promise<string> {
  const adapters = { sea: goldenPath('peft', 'f32'), [HOSTILE]: goldenPath('peft', 'rslora') }
  const handler = await createHandler({ model: MODEL, adapters, page: true, ...options })
  handlers.push(handler)
  const server = await listen(handler, { port: 0 })
  listening.push(server)
  return server.url
}
afterAll(async () => {
  for (const server of listening) await server.close()
  for (const handler of handlers) await handler.close()
})

describe('the files', () => {
  it('load nothing from elsewhere, and stand in no frame', async () => {
    const url = await serve({ apiKeys: ['a key'] })
    for (const [path, type] of [
      ['/', 'text/html'],
      ['/chat.js', 'text/javascript'],
      ['/chat.css', 'text/css'],
      ['/chat.svg', 'image/svg+xml'],
    ]) {
      const response = await fetch(url + path, { headers: { accept: 'text/html,*/*' } })
      expect([response.status, response.headers.get('content-type')]).toEqual([200, expect.stringContaining(type)])
      const policy = response.headers.get('content-security-policy')
      expect(policy).toMatch(/^default-src 'self'; frame-ancestors 'none'/)
      expect((await response.text()).replaceAll('http://www.w3.org/2000/svg', '')).not.toMatch(/https?:|innerHTML/)
    }
    expect((await fetch(`${url}/v1/models`)).status).toBe(401)
  })

  it('are not there unless they are asked for', async () => {
    const url = await serve({ page: undefined })
    const headers = { accept: 'text/html' }
    for (const path of ['/', '/chat.js']) expect((await fetch(url + path, { headers })).status).toBe(404)
  })
})

describe.skipIf(chromium === undefined)('in Chromium', () => {
  let page: OpenPage
  const pages: OpenPage[] = []
  afterAll(async () => {
    for (const opened of pages) await opened.close()
  })
  async function open(url: string): Promise<void> {
    page = await openPage(url)
    pages.push(page)
  }
  /** Waits until an expression is true. */
  async function until(expression: string): Promise<void> {
    while (!(await page.evaluate(expression))) await new Promise((resolve) => setTimeout(resolve, 20))
  }
  const ready = () => until("document.querySelector('#left').options.length > 0")
  const idle = () =>
    until("document.querySelector('#stop').hidden && document.querySelector('.answer small')?.textContent")
  const texts = (selector: string) =>
    page.evaluate(`[...document.querySelectorAll(${JSON.stringify(selector)})].map((found) => found.textContent)`)
  const set = (id: string, value: string) =>
    page.evaluate(`document.getElementById('${id}').value = ${JSON.stringify(value)}`)

  it('asks two models by keyboard, and shows what the server gives each', async () => {
    const url = await serve({ servedModelName: 'whale' })
    await open(url)
    await ready()
    expect(await texts('#left option')).toEqual(['whale (the base)', 'sea', HOSTILE])
    expect(await texts('#cards h2')).toEqual([expect.stringContaining('sea'), expect.stringContaining(HOSTILE)])
    await set('right', 'whale')
    await page.evaluate("document.querySelector('details').open = true")
    await set('max_tokens', '12')
    await set('temperature', '0')
    await page.evaluate("document.getElementById('text').focus()")
    await page.type('And the people')
    await page.press('Enter')
    await idle()
    const wanted = await Promise.all(
      ['sea', 'whale'].map(async (model) => {
        const body = JSON.stringify({ model, prompt: 'And the people', max_tokens: 12, temperature: 0 })
        const headers = { 'content-type': 'application/json' }
        const answer = await (await fetch(`${url}/v1/completions`, { method: 'POST', headers, body })).json()
        return answer.choices[0].text
      }),
    )
    expect(wanted[0]).not.toBe(wanted[1])
    expect(await texts('.answer p')).toEqual(wanted.map((text) => `And the people${text}`))
    expect(await texts('.answer small')).toEqual(Array(2).fill(expect.stringMatching(/^12 tokens, [\d.]+\/s/)))
    expect(await page.evaluate('document.activeElement.id')).toBe('text')
    expect(page.requests.filter((address) => !address.startsWith(url))).toEqual([])
    expect(page.errors.filter((text) => !/400/.test(text))).toEqual([])
    expect(await page.evaluate('document.title')).toBe('lowrank: talk to the model')
  })

  it('stops an answer, and shows errors as text', async () => {
    await set('right', '')
    await set('max_tokens', '200')
    await set('text', 'And the')
    await page.evaluate("document.getElementById('send').click()")
    await until("document.querySelector('#turns > :last-child .answer p').textContent !== ''")
    await page.evaluate("document.getElementById('stop').click()")
    await until("document.querySelector('#stop').hidden")
    expect((await texts('.answer small')).at(-1)).toMatch(/stopped$/)
    await set('text', 'And the '.repeat(500))
    await page.evaluate("document.getElementById('send').click()")
    await until("document.querySelector('[role=alert]') !== null")
    expect((await texts('[role=alert]'))[0]).toMatch(/maximum context length is 256 tokens/)
  })

  it.each([390, 1024])('has no sideways scrolling at %i pixels, light and dark', async (width) => {
    for (const scheme of ['light', 'dark'] as const) {
      await page.show({ width, height: 844, scheme })
      expect(await page.evaluate('document.documentElement.scrollWidth <= innerWidth')).toBe(true)
      if (process.env.SHOTS)
        writeFileSync(join(process.env.SHOTS, `chat-${width}-${scheme}.png`), await page.screenshot())
    }
  })

  it('asks for the key, keeps it in the tab, and leaves it out of curl', async () => {
    await open(await serve({ apiKeys: ['sesame'] }))
    await until("!document.querySelector('#key').hidden")
    await set('key-text', 'sesame')
    await page.evaluate("document.querySelector('#key button').click()")
    await ready()
    expect(await page.evaluate('[sessionStorage.key, localStorage.length, location.href.includes("sesame")]')).toEqual([
      {},
      0,
      false,
    ])
    await set('max_tokens', '2')
    await set('text', "It's")
    await page.evaluate("document.getElementById('send').click()")
    await idle()
    await page.evaluate('navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve() }')
    await page.evaluate("document.getElementById('curl').click()")
    const copied = await page.evaluate('window.copied')
    expect(copied).toContain('$LOWRANK_API_KEY')
    expect(copied).toContain("It'\\''s")
    expect(copied).not.toContain('sesame')
  })

  it('chats with a model that has a template, each side with its own history', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'lowrank-chat-page-'))
    const { cpSync } = await import('node:fs')
    cpSync(MODEL, folder, { recursive: true })
    const template =
      '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}'
    writeFileSync(join(folder, 'chat_template.jinja'), template)
    await open(await serve({ model: folder }))
    await ready()
    await set('max_tokens', '6')
    await set('system', 'Be brief')
    for (const text of ['First', 'Second']) {
      await set('text', text)
      await page.evaluate("document.getElementById('send').click()")
      await idle()
      await until("document.querySelector('#stop').hidden")
    }
    await page.evaluate('navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve() }')
    await page.evaluate("document.getElementById('curl').click()")
    const { messages } = JSON.parse(
      /-d '(.*)'$/s.exec(await page.evaluate('window.copied'))![1].replaceAll("'\\''", "'"),
    )
    expect(messages.map(({ role }: { role: string }) => role)).toEqual(['system', 'user', 'assistant', 'user'])
    expect(messages[2].content).toBe((await texts('.answer p'))[0])
    rmSync(folder, { recursive: true })
  })

  it('trains from a file that is dropped, shows losses and samples, compares and promotes', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'lowrank-train-page-'))
    const url = await serve({
      ...{ adapters: {}, training: trainingIn(join(folder, 'training')), hosts: ['127.0.0.1'] },
      apiKeys: [{ key: 'root', isAdmin: true }],
    })
    const row = (i: number) => `${JSON.stringify({ prompt: `Boat ${i}: ${HOSTILE}`, completion: ' it sails.' })}\n`
    const file = join(folder, 'rows.jsonl')
    writeFileSync(file, Array.from({ length: 4 }, (_, i) => row(i)).join(''))
    await open(url)
    await until("!document.querySelector('#key').hidden")
    await set('key-text', 'root')
    await page.evaluate("document.querySelector('#key button').click()")
    await until("!document.querySelector('#train').hidden")
    await page.drop([file])
    await until("document.querySelectorAll('#examples li').length === 3")
    expect((await texts('#examples li'))[0]).toContain(HOSTILE.replaceAll('"', '\\"'))
    expect(await page.evaluate("document.getElementById('train-method').value")).toBe('supervised')
    await set('epochs', '2')
    await set('suffix', 'page')
    await page.evaluate("document.getElementById('begin').click()")
    await until("[...document.querySelectorAll('.job button')].some(({ textContent }) => textContent === 'Promote')")
    const [model] = (await texts('.job h2')).map((title: string) => /^ft:union-3m:lowrank:page:\w{10}/.exec(title)![0])
    expect((await texts('.job small'))[0]).toMatch(/^succeeded · step \d+ of \d+, loss \d/)
    expect(await page.evaluate("document.querySelector('.job polyline').getAttribute('points')")).toMatch(/^0,/)
    expect((await texts('.sample')).at(-1)).toContain(`Boat 0: ${HOSTILE}`)
    expect(await texts('.job .soft')).toEqual([expect.stringMatching(/needs about/)])
    if (process.env.SHOTS) writeFileSync(join(process.env.SHOTS, 'train.png'), await page.screenshot())
    const press = (label: string) =>
      page.evaluate(
        `[...document.querySelectorAll('.job button')].find(({ textContent }) => textContent === '${label}').click()`,
      )
    await press('Compare with the base')
    await until(`document.getElementById('right').value === ${JSON.stringify(model)}`)
    expect(await page.evaluate("document.getElementById('left').value")).toBe('union-3m')
    await page.evaluate(`document.querySelector('.job input').value = ${JSON.stringify(HOSTILE)}`)
    await press('Promote')
    await until("/from now on/.test(document.getElementById('train-state').textContent)")
    const models = await fetch(`${url}/v1/models`, { headers: { authorization: 'Bearer root' } })
    expect((await models.json()).data.map(({ id }: { id: string }) => id)).toContain(HOSTILE)
    // The server says which line is wrong.
    writeFileSync(file, `${row(0)}nothing\n`)
    await page.drop([file])
    await page.evaluate("document.getElementById('begin').click()")
    await until("/line 2 is not a JSON object/.test(document.getElementById('train-state').textContent)")
    expect(page.errors.filter((text) => !/40[01]/.test(text))).toEqual([])
    expect(await page.evaluate('document.title')).toBe('lowrank: talk to the model')
    rmSync(folder, { recursive: true })
  })
})
