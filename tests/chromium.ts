// A Chromium of its own, where there is one, spoken to over the DevTools protocol. It ends with the process that
// started it, however that ends: Chromium does so when its pipe is closed. Its profile is then removed by the shell
// that runs it, which outlives both. A worker of Vitest ends with Vitest, which does not see to that when it is
// stopped.

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
/** WebGPU without a GPU: SwiftShader computes. */
export const WEBGPU = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-features=Vulkan']

// biome-ignore lint/suspicious/noExplicitAny: the protocol has a type for each message
export type Message = any

export interface Chromium {
  /** The result of a command; rejects with the error that Chromium answers. */
  send(method: string, params?: object, sessionId?: string): Promise<Message>
  /** Ends all of its processes, and removes its profile. A second call waits for the first. */
  close(): Promise<void>
}

process.once('disconnect', () => process.kill(process.pid))

/** Its arguments are a profile, and a command. A process that ends late may still write into the profile. */
const RUN_THEN_REMOVE = '"$@"; rm -rf "$0" || { sleep 1; rm -rf "$0"; }'

/**
 * @param args flags, and addresses to open
 * @param heard gets each message that is not an answer
 */
export function startChromium(args: readonly string[], heard: (message: Message) => void = () => {}): Chromium {
  const profile = mkdtempSync(join(tmpdir(), 'lowrank-chromium-'))
  const flags = ['--headless=new', '--no-sandbox', '--no-first-run', '--remote-debugging-pipe']
  const command = [chromium!, ...flags, `--user-data-dir=${profile}`, ...args]
  // In a group of its own, it hears no Ctrl-C.
  const child = spawn('sh', ['-c', RUN_THEN_REMOVE, profile, ...command], {
    stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
    detached: true,
  })
  const ended = new Promise((resolve) => child.once('exit', resolve))
  const [toBrowser, fromBrowser] = [child.stdio[3] as Writable, child.stdio[4] as Readable]
  // What is written to a browser that is gone has no answer.
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
