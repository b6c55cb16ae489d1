// Runs the process of a job, and hands on what it tells.

import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import path from 'node:path'
import { Turns } from '../../../core/base/turns.js'
import { PRIVATE } from '../../store/node/private.js'
import { STOP_MS } from '../job.js'
import type { Message, Order } from './job-process.js'

const PROGRAM = new URL('./job-process.js', import.meta.url)

export class JobProcess {
  readonly #child: ChildProcess
  /** Resolves after the process has ended and all that it told was heard: true if it ended by itself. */
  readonly ended: Promise<boolean>

  constructor(
    readonly id: string,
    args: readonly ['check' | 'train', folder: string, ...string[]],
    hear: (message: Message) => Promise<void>,
  ) {
    // The server's own options, such as a port for debugging, are not for this process.
    this.#child = fork(PROGRAM, args, { stdio: ['ignore', 'pipe', 'pipe', 'ipc'], execArgv: [] })
    const log = createWriteStream(path.join(args[1], 'log.txt'), { flags: 'a', ...PRIVATE })
    log.on('error', () => {})
    for (const output of [this.#child.stdout!, this.#child.stderr!]) output.pipe(log, { end: false })
    const turns = new Turns()
    this.#child.on('message', (message) => turns.take(() => hear(message as Message)))
    this.ended = this.#end(turns).finally(() => log.end())
  }

  /** Makes the process wait when its current step is done, or go on. */
  hold(isHeld: boolean): void {
    this.#send(isHeld ? 'wait' : 'go')
  }

  #send(order: Order): void {
    // It may be ending just now.
    if (this.#child.connected) this.#child.send(order, () => {})
  }

  /** Asks the process to save and to end. */
  stop(): void {
    this.#send('stop')
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), STOP_MS)
    timer.unref()
    void this.ended.finally(() => clearTimeout(timer))
  }

  async #end(turns: Turns): Promise<boolean> {
    // If the process does not start, there is an error instead of an exit.
    const [code] = await Promise.race([once(this.#child, 'close'), once(this.#child, 'error').then(() => [1])])
    await turns.idle
    return code === 0
  }
}
