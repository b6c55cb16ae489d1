// The worker that runs the functions of a module of rewards, one call after the other.

import { parentPort, workerData } from 'node:worker_threads'
import { type SerializedError, serializeError } from '../base/errors.js'
import type { Reward, RewardInput } from '../train/rewards.js'

/** The worker's answers: first the names of the functions, then values. */
export interface RewardAnswer {
  readonly id: number
  readonly value?: unknown
  readonly error?: SerializedError
}

export interface RewardCall {
  readonly id: number
  readonly name: string
  readonly input: RewardInput
}

const port = parentPort!
const module = import(workerData) as Promise<Record<string, unknown>>

async function answer(id: number, work: () => unknown): Promise<void> {
  try {
    port.postMessage({ id, value: await work() } satisfies RewardAnswer)
  } catch (error) {
    port.postMessage({ id, error: serializeError(error) } satisfies RewardAnswer)
  }
}

void answer(0, async () => {
  const functions = Object.entries(await module).filter(([, value]) => typeof value === 'function')
  return functions.map(([name]) => name)
})
port.on('message', ({ id, name, input }: RewardCall) => {
  void answer(id, async () => {
    const { [name]: reward, weights } = await module
    const value = await (reward as Reward)(input)
    const weight = (weights as Record<string, number> | undefined)?.[name] ?? 1
    return value === null ? null : value * weight
  })
})
