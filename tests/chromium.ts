// Starts Chromium, if it is installed, and speaks to it over the DevTools protocol. Chromium exits when its pipe
// closes, so it ends with the process that started it, even if that process is killed. The shell that runs Chromium
// then removes the profile. Vitest does not clean up after workers that it stops.

import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import { setTimeout } from 'node:timers/promises'

const names = [process.env.CHROMIUM, 'chromium', 'chromium-browser', 'google-chrome']
export const chromium = names.find((name) => name && spawnSync(name, ['--version']).status === 0)

/** Chromium's flags. */
export const WITHOUT_GPU = ['--disable-gpu']
/** WebGPU without a GPU: SwiftShader computes in software. */
export const WEBGPU = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-features=Vulkan']

// biome-ignore lint/suspicious/noExplicitAny: the protocol has a type for each message
export type Message = any

export interface Chromium {
  /** The result of a command; rejects with the error that Chromium answers. */
  send(method: string, params?: object, sessionId?: string): Promise<Message>
  /** Ends all processes of Chromium, and removes its profile. A second call waits for the first. */
  close(): Promise<void>
}

process.once('disconnect', () => process.kill(process.pid))

/**
 * A script for sh whose arguments are a profile and a command. A process that ends late may still write a profile file.
 */
const RUN_THEN_REMOVE = '"$@"; rm -rf "$0" || { sleep 1; rm -rf "$0"; }'

/**
 * @param args flags, and addresses to open
 * @param heard gets each message that is not an answer
 */
export function startChromium(args: readonly string[], heard: (message: Message) => void = () => {}): Chromium {
  const profile = mkdtempSync(join(tmpdir(), 'lowrank-chromium-'))
  const flags = ['--headless=new', '--no-sandbox', '--no-first-run', '--remote-debugging-pipe']
  const command = [chromium!, ...flags, `--user-data-dir=${profile}`, ...args]
  // A separate process group keeps Ctrl-C from Chromium.
  const child = spawn('sh', ['-c', RUN_THEN_REMOVE, profile, ...command], {
    stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
    detached: true,
  })
  const ended = new Promise((resolve) => child.once('exit', resolve))
  const [toBrowser, fromBrowser] = [child.stdio[3] as Writable, child.stdio[4] as Readable]
  // Writing to a browser that is gone fails. Its answers are missed elsewhere.
  toBrowser.on('error', () => {})
  const waiting = new Map<number, (message: Message) => void>()
  let rest = ''
  fromBrowser.setEncoding('utf8').on('data', (text: string) => {
    const messages = (rest + text).split('\0')
    rest = messages.pop()!
    for (const message of messages.map((line): Message => JSON.parse(line))) {
      waiting.get(message.id)?.(message)
      if (message.method !== undefined) heard(message)
    }
  })
  let count = 0
  const send: Chromium['send'] = (method, params = {}, sessionId) => {
    const id = ++count
    toBrowser.write(`${JSON.stringify({ id, method, params, sessionId })}\0`)
    return new Promise((resolve, reject) => {
      waiting.set(id, ({ result, error }) => (error === undefined ? resolve(result) : reject(new Error(error.message))))
    })
  }
  const end = async () => {
    const isEnded = Promise.race([send('Browser.close').then(() => ended), ended]).then(() => true)
    if (!(await Promise.race([isEnded, setTimeout(5000)]))) process.kill(-child.pid!, 'SIGKILL')
    await ended
    rmSync(profile, { recursive: true, force: true, maxRetries: 20 })
  }
  let closing: Promise<void> | undefined
  return {
    send,
    close: () => {
      closing ??= end()
      return closing
    },
  }
}
