// Finds targets, patterns and modules to save in a config that match nothing in its adapter. PEFT ignores most of them,
// some with a warning when the adapter is made. Usually they are misspelled.

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

/** The most entries in a message. For each of them, similar names are searched among all names. */
const MAX_SHOWN = 10

export interface NamedPart {
  readonly kind: PartKind
  readonly name: string
  readonly module: string
}

interface UnmatchedEntry {
  readonly setting: keyof LoraConfig
  readonly entry: string
  /** Searches for the nearest names in the adapter. */
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

/**
 * Does the same for entries that are names or ends of names, and is faster, as there can be an entry for each layer.
 */
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
  const [modulesSaved, rowModules] = [ofKinds('replacement'), ofKinds('token-rows')].map((found) =>
    found.map(({ module }) => module),
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
  // An expression counts as one entry. Every layer matches it, so it is idle only if there are no layers.
  const isIdle = !isAllLinear(targetModules) && layers.length === 0
  return isIdle ? [{ setting: 'targetModules', entry: targetModules, near: () => [] }] : []
}

/** Finds layer indices without a layer. Targets that are named in full are adapted whatever their layer index is. */
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
  // A tied output embedding uses the rows of the input embedding.
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
