// Opens a page in Chromium, and records its requests and errors.

import { pathToFileURL } from 'node:url'
import { type Message, startChromium, WITHOUT_GPU } from './chromium.js'

/**
 * Keys in the protocol's form: https://chromedevtools.github.io/devtools-protocol/tot/Input/#method-dispatchKeyEvent
 */
const KEYS = {
  Tab: { key: 'Tab', code: 'Tab', windowsVirtualKeyCode: 9 },
  Enter: { key: 'Enter', code: 'Enter', windowsVirtualKeyCode: 13, text: '\r' },
  Space: { key: ' ', code: 'Space', windowsVirtualKeyCode: 32, text: ' ' },
  'Control+a': { key: 'a', code: 'KeyA', windowsVirtualKeyCode: 65, modifiers: 2, commands: ['selectAll'] },
}

export interface OpenPage {
  /** Addresses of all requests. */
  requests: string[]
  /** Errors on the console, exceptions, and violations of the page's policy. */
  errors: string[]
  /** The value of an expression, as JSON. */
  evaluate(expression: string): Promise<Message>
  /** Loads another address, or the same address again. */
  navigate(address: string): Promise<void>
  /** Reloads the page as a browser's button does. */
  reload(): Promise<void>
  /** Sets the size of the window and the color scheme. */
  show(view: { width: number; height: number; scheme?: 'light' | 'dark' }): Promise<void>
  /** Opens another tab of the same browser, and returns its {@link evaluate}. */
  openTab(address: string): Promise<OpenPage['evaluate']>
  /** Kills the process of the tab. The next address opens in a new one. */
  crash(): Promise<void>
  /** Drops files or folders of this machine on the page's top left corner. */
  drop(paths: readonly string[]): Promise<void>
  /** Limits the bytes that the page may keep. Without a number, the limit is removed. */
  setQuota(bytes?: number): Promise<void>
  /** Presses keys, one after the other: Tab, Enter, Space, or Control+a. */
  press(...keys: (keyof typeof KEYS)[]): Promise<void>
  /** Types a text into the element with the focus. */
  type(text: string): Promise<void>
  /** Saves downloads in this folder without asking. */
  download(folder: string): Promise<void>
  /** The page as PNG. */
  screenshot(): Promise<Uint8Array>
  close(): Promise<void>
}

/**
 * @param address a URL, or the path of a file
 * @param flags of Chromium
 */
export async function openPage(address: string, flags: readonly string[] = WITHOUT_GPU): Promise<OpenPage> {
  const page = { requests: [] as string[], errors: [] as string[] }
  let isLoaded = () => {}
  const listen: Record<string, (params: Message) => void> = {
    'Network.requestWillBeSent': ({ request }) => page.requests.push(request.url),
    'Runtime.exceptionThrown': ({ exceptionDetails }) => page.errors.push(JSON.stringify(exceptionDetails)),
    'Runtime.consoleAPICalled': ({ type, args }) => {
      if (type === 'error' || type === 'warning') page.errors.push(JSON.stringify(args))
    },
    'Log.entryAdded': ({ entry }) => page.errors.push(entry.text),
    'Page.loadEventFired': () => isLoaded(),
  }
  const { send, close } = startChromium(flags, ({ method, params }) => listen[method]?.(params))
  try {
    const { targetId } = await send('Target.createTarget', { url: 'about:blank' })
    const { sessionId } = await send('Target.attachToTarget', { targetId, flatten: true })
    for (const domain of ['Page', 'Network', 'Runtime', 'Log']) await send(`${domain}.enable`, {}, sessionId)
    const load = async (method: string, params: object) => {
      const loaded = new Promise<void>((resolve) => {
        isLoaded = resolve
      })
      await send(method, params, sessionId)
      await loaded
    }
    const navigate = (to: string) =>
      load('Page.navigate', { url: /^[a-z-]{2,}:/.test(to) ? to : pathToFileURL(to).href })
    await navigate(address)
    const evaluateIn = (session: string) => async (expression: string) => {
      const { result, exceptionDetails } = await send(
        'Runtime.evaluate',
        { expression, returnByValue: true, awaitPromise: true },
        session,
      )
      if (exceptionDetails !== undefined) throw new Error(JSON.stringify(exceptionDetails))
      return result.value
    }
    const evaluate = evaluateIn(sessionId)
    const openTab = async (url: string) => {
      const tab = await send('Target.createTarget', { url })
      return evaluateIn((await send('Target.attachToTarget', { targetId: tab.targetId, flatten: true })).sessionId)
    }
    const show = async ({ width, height, scheme = 'light' }: Parameters<OpenPage['show']>[0]) => {
      const metrics = { width, height, deviceScaleFactor: 1, mobile: width < 600 }
      await send('Emulation.setDeviceMetricsOverride', metrics, sessionId)
      const features = [{ name: 'prefers-color-scheme', value: scheme }]
      await send('Emulation.setEmulatedMedia', { features }, sessionId)
    }
    const crash = async () => {
      const crashed = new Promise<void>((resolve) => {
        listen['Inspector.targetCrashed'] = () => resolve()
      })
      await send('Inspector.enable', {}, sessionId)
      // A crashed page does not answer.
      void send('Page.crash', {}, sessionId).catch(() => {})
      await crashed
    }
    const drop = async (files: readonly string[]) => {
      const data = { items: [], files, dragOperationsMask: 1 }
      for (const type of ['dragEnter', 'dragOver', 'drop'])
        await send('Input.dispatchDragEvent', { type, x: 10, y: 10, data }, sessionId)
    }
    const setQuota = async (quotaSize?: number) => {
      await send('Storage.overrideQuotaForOrigin', { origin: await evaluate('location.origin'), quotaSize }, sessionId)
    }
    const press = async (...keys: (keyof typeof KEYS)[]) => {
      for (const key of keys)
        for (const type of ['keyDown', 'keyUp']) {
          const { text, ...named } = { text: undefined, ...KEYS[key] }
          await send('Input.dispatchKeyEvent', { type, ...named, ...(type === 'keyDown' && { text }) }, sessionId)
        }
    }
    const type = async (text: string) => {
      await send('Input.insertText', { text }, sessionId)
    }
    const download = async (downloadPath: string) => {
      await send('Browser.setDownloadBehavior', { behavior: 'allow', downloadPath })
    }
    const screenshot = async () => {
      // Chromium draws a hidden tab only after a minute or more.
      await send('Page.bringToFront', {}, sessionId)
      const options = { format: 'png', captureBeyondViewport: true }
      const { data } = await send('Page.captureScreenshot', options, sessionId)
      return Buffer.from(data, 'base64')
    }
    return {
      ...page,
      evaluate,
      openTab,
      navigate,
      reload: () => load('Page.reload', {}),
      show,
      crash,
      drop,
      setQuota,
      press,
      type,
      download,
      screenshot,
      close,
    }
  } catch (error) {
    await close()
    throw error
  }
}
