// Rewards from a file: graders, or a module. Its functions run in a worker, so that an endless one can be ended.

import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { Worker } from 'node:worker_threads'
import { ConfigError, deserializeError, FileError, messageOf } from '../base/errors.js'
import { parseJson, toPlain } from '../formats/json.js'
import type { Grader } from '../train/graders.js'
import type { Reward, RewardInput } from '../train/rewards.js'
import type { RewardAnswer, RewardCall } from './reward-worker.js'

export async function loadRewards(file: string): Promise<readonly (Reward | Grader)[]> {
  if (!existsSync(file)) throw new FileError({ where: file, what: 'the file of rewards does not exist' })
  if (file.endsWith('.json')) {
    const graders = toPlain(parseJson(await readFile(file), file))
    return (Array.isArray(graders) ? graders : [graders]) as Grader[]
  }
  if (/\.[cm]?ts$/.test(file) && !(process.features as { typescript?: unknown }).typescript) {
    throw new ConfigError({
      where: file,
      what: 'this version of Node runs no TypeScript',
      expected: 'Node 22.18 or newer',
      got: process.version,
      hint: 'Give a .mjs file',
    })
  }
  const workerData = pathToFileURL(resolve(file)).href
  const worker = new Worker(new URL('./reward-worker.js', import.meta.url), { workerData })
  const open = new Map<number, (answer: Promise<unknown>) => void>()
  const fail = (error: unknown) => {
    for (const settle of open.values()) settle(Promise.reject(error))
    open.clear()
  }
  worker.on('message', ({ id, value, error }: RewardAnswer) => {
    open.get(id)?.(error === undefined ? Promise.resolve(value) : Promise.reject(deserializeError(error)))
    open.delete(id)
  })
  worker.on('error', fail)
  worker.on('exit', () => fail(new ConfigError({ where: file, what: 'the worker of the rewards has ended' })))
  // After the listeners, which would keep the process alive. Calls do so by their deadline.
  worker.unref()
  const answerOf = (id: number) => new Promise((settle) => void open.set(id, settle as (answer: unknown) => void))
  const waits = setInterval(() => {}, 1000)
  const found = await answerOf(0)
    .catch((cause: unknown) => {
      throw new ConfigError({ where: file, what: `the module cannot be loaded: ${messageOf(cause)}`, cause })
    })
    .finally(() => clearInterval(waits))
  const names = found as string[]
  if (names.length === 0) {
    throw new ConfigError({ where: file, what: 'it exports no function that judges texts' })
  }
  let last = 0
  return names.map((name) => {
    const reward = (input: RewardInput) => {
      const id = ++last
      const answer = answerOf(id)
      worker.postMessage({ id, name, input } satisfies RewardCall)
      return answer as Promise<number | null>
    }
    return Object.defineProperty(Object.assign(reward, { end: () => void worker.terminate() }), 'name', { value: name })
  })
}
