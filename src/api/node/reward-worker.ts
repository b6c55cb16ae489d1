// The worker that runs the functions of a module of rewards.

import { ownerPort } from '../../onnx/runtime/node/worker.js'
import { expose } from '../../onnx/runtime/rpc.js'
import type { Reward, RewardInput } from '../../train/loop/graders/rewards.js'

let rewards: ReadonlyMap<string, Reward> = new Map()
let weights: Readonly<Record<string, number>> = {}

const methods = {
  /**
   * Imports the module, and returns the names of its rewards: the exports with the given names, or the default export,
   * which is a function, a list of them, or an object with them. Others are helpers. `functions`: all that it exports.
   */
  async load(url: string, named: readonly string[]): Promise<{ names: string[]; functions: string[] }> {
    const module = await import(url)
    weights = module.weights ?? {}
    const { default: given } = module
    const isFunction = ([, value]: [string, unknown]): boolean => typeof value === 'function'
    const list: [string, unknown][] =
      typeof given === 'function'
        ? [[given.name, given]]
        : Array.isArray(given)
          ? given.map((reward, i) => [reward?.name || `reward ${i + 1}`, reward])
          : Object.entries(given ?? {})
    const chosen = named.length > 0 ? named.map((name): [string, unknown] => [name, module[name]]) : list
    rewards = new Map(chosen.filter(isFunction) as [string, Reward][])
    return {
      names: [...rewards.keys()],
      functions: Object.entries<unknown>(module)
        .filter(isFunction)
        .map(([name]) => name),
    }
  },

  async judge(name: string, input: RewardInput): Promise<number | boolean | null> {
    const value = await rewards.get(name)!(input)
    return typeof value === 'number' || typeof value === 'boolean' ? Number(value) * (weights[name] ?? 1) : value
  },
}

export type RewardModule = typeof methods

expose(ownerPort(), methods)
