// Entries of a config that match nothing of its adapter: targets, patterns, modules to save. PEFT passes over most of
// them, some with a warning when it makes the adapter. Each is more often a misspelled name than a choice.

import { type LowrankError, MismatchError, nearMisses } from '../base/errors.js'
import type { LoraConfig } from '../lora/config.js'
import type { PartKind } from '../lora/part.js'
import {
  endsOf,
  isAllLinear,
  isInsideModule,
  layerIndex,
  PatternTable,
  stepsOf,
  targetMatcher,
} from '../lora/patterns/patterns.js'
import { isHeadModule } from './tied.js'

/** In one message; near misses of each cost a comparison with every name. */
const MAX_SHOWN = 10

export interface NamedPart {
  readonly kind: PartKind
  readonly name: string
  readonly module: string
}

interface UnmatchedEntry {
  readonly setting: keyof LoraConfig
  readonly entry: string
  /** Nearest names that the adapter has; looked for when asked. */
  near(): string[]
}

function unmatchedOf(
  setting: keyof LoraConfig,
  entries: readonly string[],
  names: readonly string[],
  matcherOf: (entry: string) => (name: string) => boolean,
): UnmatchedEntry[] {
  return described(
    setting,
    entries.filter((entry) => !names.some(matcherOf(entry))),
    names,
  )
}

/** The same for entries that are names or their ends, as there can be one for each layer. */
function unmatchedEnds(
  setting: keyof LoraConfig,
  entries: readonly string[],
  names: readonly string[],
): UnmatchedEntry[] {
  const left = new Set(entries)
  for (const name of names) for (const end of endsOf(name)) left.delete(end)
  return described(setting, [...left], names)
}

function described(setting: keyof LoraConfig, entries: readonly string[], names: readonly string[]): UnmatchedEntry[] {
  return entries.map((entry) => ({ setting, entry, near: () => nearestTo(entry, names) }))
}

export function unmatchedEntries(config: LoraConfig, parts: readonly NamedPart[]): UnmatchedEntry[] {
  const ofKinds = (...kinds: PartKind[]) => parts.filter(({ kind }) => kinds.includes(kind))
  const layers = ofKinds('linear', 'embedding', 'convolution').map(({ name }) => name)
  const parameters = ofKinds('parameter').map(({ name }) => name)
  const [modulesSaved, rowModules] = [ofKinds('replacement'), ofKinds('token-rows')].map((own) =>
    own.map(({ module }) => module),
  )
  const { targetParameters } = config
  const total = stepsOf(config)
  const ofPattern = (setting: 'rankPattern' | 'alphaPattern') => {
    return unmatchedOf(setting, Object.keys(config[setting]), [...layers, ...parameters], (key) => {
      const table = new PatternTable({ [key]: 1 }, setting, total)
      return (name) => table.find(name) !== undefined
    })
  }
  return [
    ...unmatchedTargets(config, layers),
    ...unmatchedIndexes(config, layers),
    ...ofPattern('rankPattern'),
    ...ofPattern('alphaPattern'),
    ...unmatchedOf('modulesToSave', config.modulesToSave, modulesSaved, (entry) => {
      return (module) => isInsideModule(module, entry)
    }),
    ...unmatchedEnds('targetParameters', targetParameters, parameters),
    ...unmatchedTokenModules(config, rowModules),
  ]
}

function unmatchedTargets({ targetModules }: LoraConfig, layers: readonly string[]): UnmatchedEntry[] {
  if (typeof targetModules !== 'string') return unmatchedEnds('targetModules', targetModules, layers)
  // An expression counts as one entry, and every layer that there is matches it.
  const isIdle = !isAllLinear(targetModules) && layers.length === 0
  return isIdle ? [{ setting: 'targetModules', entry: targetModules, near: () => [] }] : []
}

/** A target that the config names in full is adapted whatever its layer. */
function unmatchedIndexes(config: LoraConfig, layers: readonly string[]): UnmatchedEntry[] {
  const { targetModules, layersToTransform = [] } = config
  const indexes = [layersToTransform].flat()
  if (indexes.length === 0) return []
  const isTarget = targetMatcher(config)
  const targets = layers.filter(isTarget)
  if (typeof targetModules === 'string' || targets.some((name) => targetModules.includes(name))) {
    return targets.length > 0 ? [] : described('layersToTransform', indexes.map(String), layers)
  }
  const found = new Set(targets.map(layerIndex(config, stepsOf(config))))
  const left = indexes.filter((index) => !found.has(index))
  return described('layersToTransform', left.map(String), layers)
}

function unmatchedTokenModules(
  { trainableTokenIndices, ensureWeightTying }: LoraConfig,
  embeddings: readonly string[],
): UnmatchedEntry[] {
  if (trainableTokenIndices === undefined || Array.isArray(trainableTokenIndices)) return []
  // An output embedding that is tied has the input embedding's rows.
  const modules = Object.keys(trainableTokenIndices).filter((name) => !(ensureWeightTying && isHeadModule(name)))
  return unmatchedOf('trainableTokenIndices', modules, embeddings, (entry) => (name) => name.endsWith(entry))
}

export function unmatchedProblems(config: LoraConfig, parts: readonly NamedPart[], where: string): LowrankError[] {
  const unmatched = unmatchedEntries(config, parts)
  if (unmatched.length === 0) return []
  const shown = unmatched.slice(0, MAX_SHOWN)
  const hints = shown.flatMap(({ entry, near }) => {
    const names = near()
    return names.length > 0 ? [`nearest to ${entry}: ${names.join(', ')}`] : []
  })
  const others = unmatched.length > MAX_SHOWN ? `; and ${unmatched.length - MAX_SHOWN} more` : ''
  const error = new MismatchError({
    where,
    what: shown.map(describeUnmatched).join('; ') + others,
    expected: 'that each setting matches something, because strict is set',
    ...(hints.length > 0 && { hint: hints.join('; ') }),
  })
  return [error]
}

export function describeUnmatched({ setting, entry }: UnmatchedEntry): string {
  return `${setting} ${entry} matches ${setting === 'modulesToSave' ? 'no tensor' : 'no layer'}`
}

function nearestTo(entry: string, names: readonly string[]): string[] {
  const count = entry.split('.').length
  return nearMisses(entry, new Set(names.map((name) => name.split('.').slice(-count).join('.'))))
}
