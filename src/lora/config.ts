// LoraConfig, which is checked once and frozen. The names are PEFT's in camelCase, except for rank, alpha and dropout,
// which are the names in Hu et al. 2021 (arXiv 2106.09685).

import { ConfigError } from '../core/base/errors.js'
import { checkArgument, checkOptions, describe, isObject, OBJECT, STRING } from '../core/base/options.js'
import type { Shaped } from '../core/base/tensor.js'
import { LORA_CONFIG, LORA_CONFIG_DEFAULTS } from './gen/options.js'
import { changesBase, type Init, takesFromBase } from './init/inits.js'
import { matchTimeOf, patternTable, targetMatcher } from './patterns/patterns.js'

/** Which biases of the base an adapter can replace. */
export const BIASES = ['none', 'all', 'lora_only'] as const

/** A complete config, as `adapter.config` holds it. */
export interface LoraConfig {
  /**
   * Rank r of A and B: the size of the adapter.
   * @range an integer of at least 1
   * @default 8
   * @train 8
   */
  readonly rank: number
  /**
   * Strength α of the adapter: its change is scaled by alpha / rank. The default is PEFT's. `train` has 16, and needs a
   * number above 0.
   * @range a finite number
   * @default 8
   * @train 16
   * @help strength of the adapter: its change is scaled by alpha / rank
   */
  readonly alpha: number
  /**
   * Probability that an input of the LoRA branch is set to 0 in training. `train` needs a number below 1.
   * @range a number in [0, 1]
   * @default 0
   * @train 0
   * @help probability, below 1, that an input of the adapter is set to 0 in training
   */
  readonly dropout: number
  /**
   * Module names or their last parts; a regular expression for whole names; or `all-linear`. In `train` also `default`:
   * what PEFT adapts in a model of that type.
   * @default []
   * @train all-linear
   * @help modules to adapt: all linear layers, PEFT's default modules for this type of model, or names such as
   * q_proj,v_proj
   */
  readonly targetModules: readonly string[] | string
  /** Modules to leave out, even if they match the targets. */
  readonly excludeModules: readonly string[] | string | undefined
  /** Adapts only these layers of a stack, by index. Needs a list of targetModules. */
  readonly layersToTransform: readonly number[] | number | undefined
  /** The stack's name, such as `layers` or `h`, if layersToTransform needs it. */
  readonly layersPattern: readonly string[] | string | undefined
  /**
   * Other ranks for some modules: module name, or expression for its end → rank. The first key that matches counts.
   *
   * JavaScript objects sort keys that are numbers first. If your keys are numbers and the order matters, use a Map.
   * @default {}
   * @help other ranks for some modules, such as q_proj=16,v_proj=4
   */
  readonly rankPattern: Readonly<Record<string, number>>
  /**
   * Other alphas for some modules: module name, or expression for its end → alpha. The first key that matches counts.
   * @default {}
   * @help other alphas for some modules, such as q_proj=32
   */
  readonly alphaPattern: Readonly<Record<string, number>>
  /**
   * rsLoRA (Kalajdzievski 2023, arXiv 2312.03732): scales by alpha / √rank, so that high ranks learn as fast as low
   * ones.
   * @default false
   */
  readonly useRslora: boolean
  /**
   * The base stores its weights as (k, d), like GPT-2's Conv1D. No effect on the factors.
   * @default false
   */
  readonly fanInFanOut: boolean
  /**
   * How the initial values of A and B are chosen. `normal`: A has the variance 1/r.
   * @default normal
   * @train kaiming-uniform
   * @help how the random initial values of A and B are chosen
   */
  readonly init: Init
  /**
   * Seed of the initial values; in `train` also of dropout and the order of records. The same seed, data and machine
   * give the same adapter.
   * @range a safe integer
   * @default 42
   * @train 42
   * @help seed for the initial values, dropout and the order of records. The same seed, data and machine give the same
   * adapter
   */
  readonly seed: number
  /** Name or path of the base model, as PEFT records it. */
  readonly baseModel: string | undefined
  /** PEFT's task type: CAUSAL_LM, SEQ_CLS, … */
  readonly taskType: string | undefined
  /**
   * DoRA (Liu et al. 2024, arXiv 2402.09353): also trains the length of each row of a weight, apart from its direction.
   * Each step is slower.
   * @default false
   */
  readonly useDora: boolean
  /**
   * Gives B a bias.
   * @default false
   */
  readonly loraBias: boolean
  /**
   * Which biases of the base the adapter replaces: none, all, or only the biases of adapted modules.
   * @default none
   */
  readonly bias: (typeof BIASES)[number]
  /**
   * Modules that are trained and saved as a whole, by the ends of their names, such as norm or lm_head.
   * @default []
   */
  readonly modulesToSave: readonly string[]
  /**
   * Parameters to adapt that are not the weight of a linear module, mostly weights of experts: full names, or their
   * ends after a dot.
   * @default []
   */
  readonly targetParameters: readonly string[]
  /**
   * Adapts a tied output embedding together with the input embedding, so that they stay tied.
   * @default false
   */
  readonly ensureWeightTying: boolean
  /**
   * Tokens whose rows of the input embedding the adapter replaces. Or tokens for each module, by its name or the end of
   * its name.
   */
  readonly trainableTokenIndices: readonly number[] | Readonly<Record<string, readonly number[]>> | undefined
  /**
   * Other fields of PEFT's file, unchanged and in PEFT's spelling. They do not change the result.
   * @default {}
   */
  readonly peftFields: Readonly<Record<string, unknown>>
}

/**
 * A config as users write it. Settings that are left out have their defaults. Patterns can be Maps, which keep their
 * order.
 */
export type LoraConfigInput = {
  readonly [K in keyof LoraConfig]?:
    | LoraConfig[K]
    | (K extends 'rankPattern' | 'alphaPattern' ? ReadonlyMap<string, number> : never)
    | undefined
}

/** Configs that were checked. They are frozen, so they need not be checked again for every layer. */
const resolved = new WeakSet<LoraConfigInput>()

/**
 * Fills in defaults, checks every field and freezes the result. A resolved config may be passed again.
 *
 * @throws ConfigError that names the first field that is unknown, is out of range or contradicts another field.
 */
export function resolveConfig(input: LoraConfigInput = {}): LoraConfig {
  if (resolved.has(input)) return input as LoraConfig
  checkArgument(input, OBJECT, 'config')
  const { rankPattern, alphaPattern } = input
  const given = {
    ...input,
    ...(rankPattern instanceof Map && { rankPattern: orderedTable(rankPattern) }),
    ...(alphaPattern instanceof Map && { alphaPattern: orderedTable(alphaPattern) }),
  }
  checkOptions(given, 'a LoRA config', LORA_CONFIG)
  const entries = Object.entries(LORA_CONFIG_DEFAULTS).map(([key, fallback]) => {
    return [key, freeze(given[key as keyof LoraConfig] ?? fallback)]
  })
  const config = Object.freeze(Object.fromEntries(entries)) as LoraConfig
  checkTogether(config)
  resolved.add(config)
  return config
}

/** Resolves a config for factors of this rank: if it names no rank, it gets this one. */
export function resolveConfigOf(input: LoraConfigInput, rank: number): LoraConfig {
  return resolveConfig(isObject(input) && input.rank === undefined ? { ...(input as LoraConfigInput), rank } : input)
}

function checkTogether(config: LoraConfig): void {
  const { targetModules, layersToTransform, layersPattern } = config
  if (config.useDora && config.loraBias) {
    throw new ConfigError({ where: 'loraBias', what: 'cannot be used together with DoRA, as in PEFT' })
  }
  const excluded = (['dropout', 'fanInFanOut', 'loraBias', 'useDora'] as const).find((field) => config[field])
  if (config.targetParameters.length > 0 && excluded !== undefined) {
    throw new ConfigError({ where: excluded, what: 'cannot be used together with targetParameters, as in PEFT' })
  }
  checkInit(config)
  if (typeof targetModules === 'string' && layersToTransform !== undefined) {
    throw new ConfigError({
      where: 'layersToTransform',
      what: 'works only with a list of targetModules',
      got: describe(targetModules),
    })
  }
  if (layersPattern !== undefined && layersPattern.length > 0 && layersToTransform === undefined) {
    throw new ConfigError({ where: 'layersPattern', what: 'has no effect without layersToTransform' })
  }
  targetMatcher(config)
  patternTables(config)
}

/** Refuses settings that do not go with an init that changes the base. PEFT refuses most of them too. */
function checkInit({ init, loraBias, fanInFanOut, targetParameters }: LoraConfig): void {
  if (!changesBase(init)) return
  const combinations: [where: string, isOn: boolean, what: string][] = [
    ['loraBias', loraBias, 'PEFT does not support it'],
    ['targetParameters', targetParameters.length > 0, 'PEFT does not support it'],
    ['fanInFanOut', fanInFanOut && init === 'olora', 'PEFT decomposes the transposed weight'],
  ]
  const found = combinations.find(([, isOn]) => isOn)
  if (found === undefined) return
  throw new ConfigError({ where: found[0], what: `cannot be used together with init ${init}: ${found[2]}` })
}

type Tables = Record<'rank' | 'alpha', ReturnType<typeof patternTable>>

const tables = new WeakMap<LoraConfig, Tables>()

/** Compiles a config's patterns only once, because each layer asks for them. */
function patternTables(config: LoraConfig): Tables {
  let result = tables.get(config)
  if (result === undefined) {
    const time = matchTimeOf(config)
    result = {
      rank: patternTable(config.rankPattern, 'rankPattern', time),
      alpha: patternTable(config.alphaPattern, 'alphaPattern', time),
    }
    tables.set(config, result)
  }
  return result
}

/** Returns a layer's config: it has the rank and alpha that the patterns give the layer's name, and no patterns. */
export function configForLayer(config: LoraConfig, layerName: string): LoraConfig {
  checkArgument(layerName, STRING, 'name')
  if (Object.keys(config.rankPattern).length === 0 && Object.keys(config.alphaPattern).length === 0) return config
  const { rank, alpha } = patternTables(config)
  const result = Object.freeze({
    ...config,
    rank: rank(layerName) ?? config.rank,
    alpha: alpha(layerName) ?? config.alpha,
    rankPattern: Object.freeze({}),
    alphaPattern: Object.freeze({}),
  })
  resolved.add(result)
  return result
}

/**
 * Lowers the rank to min(d, k) for pissa and olora, as PEFT does: a weight (d, k) has no more directions. The scaling s
 * stays the same.
 */
export function configForShape(config: LoraConfig, [d, k]: readonly [number, number]): LoraConfig {
  const rank = Math.min(d, k)
  if (!takesFromBase(config.init) || config.rank <= rank || rank === 0) return config
  const share = rank / config.rank
  const result = Object.freeze({ ...config, rank, alpha: config.alpha * (config.useRslora ? Math.sqrt(share) : share) })
  resolved.add(result)
  return result
}

/** Does the same for factors A (r, k) and B (d, r) whose rank is not the config's. */
export function configForFactors(
  config: LoraConfig,
  { weightA, weightB }: { readonly weightA: Shaped; readonly weightB: Shaped },
): LoraConfig {
  if (weightA.shape[0] === config.rank) return config
  return configForShape(config, [weightB.shape[0], weightA.shape[1]])
}

/** Computes s, by which B·A is multiplied. This is the only place that does. */
export function scalingOf({ rank, alpha, useRslora }: Pick<LoraConfig, 'rank' | 'alpha' | 'useRslora'>): number {
  return useRslora ? alpha / Math.sqrt(rank) : alpha / rank
}

function orderedTable(patterns: ReadonlyMap<unknown, unknown>): Record<string, unknown> {
  const entries = new Map<string, unknown>()
  for (const [key, value] of patterns) {
    const ordered = typeof key === 'string' && /^\d+$/.test(key) ? `(?:${key})` : String(key)
    if (!entries.has(ordered)) entries.set(ordered, value)
  }
  return Object.fromEntries(entries)
}

/** Copies before it freezes, so the caller's arrays and objects stay writable and cannot change the config. */
function freeze<T>(value: T): T {
  if (Array.isArray(value)) return Object.freeze(value.map(freeze)) as T
  if (!isObject(value)) return value
  return Object.freeze(Object.fromEntries(Object.entries(value).map(([key, item]) => [key, freeze(item)]))) as T
}
