// The worker that runs the functions of a module of rewards.

import { ownerPort } from '../../onnx/runtime/node/worker.js'
import { expose } from '../../onnx/runtime/rpc.js'
import type { Reward, RewardInput } from '../../train/rewards.js'

let module: Readonly<Record<string, unknown>> = {}

const methods = {
  /** Imports the module, and returns the names of its functions. */
  async load(url: string): Promise<string[]> {
    module = await import(url)
    const functions = Object.entries(module).filter(([, value]) => typeof value === 'function')
    return functions.map(([name]) => name)
  },

  async judge(name: string, input: RewardInput): Promise<number | null> {
    const { [name]: reward, weights } = module
    const value = await (reward as Reward)(input)
    const weight = (weights as Record<string, number> | undefined)?.[name] ?? 1
    return value === null ? null : value * weight
  },
}

export type RewardModule = typeof methods

expose(ownerPort(), methods)
