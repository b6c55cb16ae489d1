// Builds the page of web/, serves it as a static host would, opens it in Chromium, and acts as a user.

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { build, preview } from 'vite'
import { chromium } from '../chromium.js'
import { type OpenPage, openPage } from '../page.js'

export const root = fileURLToPath(new URL('../../', import.meta.url))
export const DESKTOP = { width: 1200, height: 900 }
export const PHONE = { width: 390, height: 844 }
/** The folder for screenshots. */
const PICTURES = join(root, 'out', 'page')

/** True if Chromium and the page's ONNX Runtime are installed. */
export const canOpenSite = (() => {
  try {
    createRequire(import.meta.url).resolve('onnxruntime-web/wasm')
    return chromium !== undefined
  } catch {
    return false
  }
})()

export interface Site {
  readonly page: OpenPage
  readonly address: string
  /** Returns the text of the element with this id. */
  text(id: string): Promise<string>
  click(id: string): Promise<void>
  fill(fields: Readonly<Record<string, string | number>>): Promise<void>
  /** Chooses an option of a list. */
  choose(id: string, value: string): Promise<void>
  /** Waits until an expression is true. The error shows the page's text. */
  until(expression: string): Promise<void>
  /** Opens the small model unless one is open. */
  ready(): Promise<void>
  /** Waits until all cards have an answer, and another can be asked for. */
  answered(): Promise<void>
  /** Loads the page again. */
  reload(): Promise<void>
  /** Collects the steps that the page shows from now on in `globalThis.steps`. */
  watchSteps(): Promise<void>
  picture(name: string): Promise<void>
  /** Stops the server, as if the machine were offline. */
  goOffline(): Promise<void>
  close(): Promise<void>
}

/** Builds and serves the page. `edit` returns the new text of a script, or undefined to leave the script as it is. */
export async function serveSite(
  edit: (name: string, script: string) => string | undefined = () => undefined,
): Promise<{ address: string; stop(): Promise<void>; remove(): void }> {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-site-'))
  const settings = { configFile: join(root, 'web', 'vite.config.ts'), logLevel: 'silent' as const }
  // MiniLM is not in the repository, even if a developer has built it.
  const define = { HAS_MINILM: 'false' }
  await build({ ...settings, define, build: { outDir: folder, emptyOutDir: true } })
  for (const name of readdirSync(join(folder, 'assets')).filter((file) => /\.m?js$/.test(file))) {
    const path = join(folder, 'assets', name)
    const edited = edit(name, readFileSync(path, 'utf8'))
    if (edited !== undefined) writeFileSync(path, edited)
  }
  // The server does not send the headers that isolate a page. Neither do static hosts.
  const server = await preview({ ...settings, build: { outDir: folder }, preview: { port: 0, host: '127.0.0.1' } })
  const address = `http://127.0.0.1:${(server.httpServer.address() as AddressInfo).port}/`
  const remove = () => rmSync(folder, { recursive: true, force: true, maxRetries: 20 })
  return { address, stop: () => server.close(), remove }
}

/** @param flags of Chromium */
export async function openSite(flags?: readonly string[], edit?: Parameters<typeof serveSite>[0]): Promise<Site> {
  mkdirSync(PICTURES, { recursive: true })
  const { address, stop, remove } = await serveSite(edit)
  const page = await openPage(address, flags)

  const until = async (expression: string) => {
    // Ask often, because a step of the page may take less than 50 ms.
    for (let i = 0; i < 4000; i++) {
      // While the browser changes from one page to the next, expressions fail.
      if (await page.evaluate(expression).catch(() => false)) return
      await setTimeout(25)
    }
    throw new Error(`${expression} never came: ${await page.evaluate('document.body.innerText')}`)
  }
  const isOpen = "document.getElementById('model-state').textContent.startsWith('Open: ')"
  const ready = async () => {
    await until("document.body.dataset.ready === '' && crossOriginIsolated")
    if (!(await page.evaluate(isOpen))) await page.evaluate("document.querySelector('#models button').click()")
    await until(isOpen)
  }
  const element = (id: string) => `document.getElementById(${JSON.stringify(id)})`
  return {
    page,
    address,
    text: (id) => page.evaluate(`${element(id)}.textContent`),
    click: (id) => page.evaluate(`${element(id)}.click()`),
    async fill(fields) {
      for (const [id, value] of Object.entries(fields))
        await page.evaluate(
          `${element(id)}.value = ${JSON.stringify(String(value))}; ${element(id)}.dispatchEvent(new Event('input'))`,
        )
    },
    choose: (id, value) =>
      page.evaluate(
        `${element(id)}.value = ${JSON.stringify(value)}; ${element(id)}.dispatchEvent(new Event('change', { bubbles: true }))`,
      ),
    until,
    ready,
    answered: () =>
      until(`!document.getElementById('generate').disabled && document.querySelectorAll('#answers .text').length > 1 &&
        [...document.querySelectorAll('#answers .text')].every(({ textContent }) => textContent.length > 0)`),
    async reload() {
      await page.navigate(address)
      await ready()
    },
    watchSteps: () =>
      page.evaluate(`globalThis.steps = new Set(); new MutationObserver(() =>
        globalThis.steps.add(document.getElementById('number-step').textContent)
      ).observe(document.getElementById('number-step'), { childList: true })`),
    picture: async (name) => writeFileSync(join(PICTURES, `${name}.png`), await page.screenshot()),
    goOffline: stop,
    async close() {
      await page.close()
      await stop().catch(() => {})
      remove()
    },
  }
}
