// Finds targets, patterns and modules to save in a config that match nothing in its adapter. PEFT ignores most of them,
// some with a warning when the adapter is made. Usually they are misspelled.

import type { LoraConfig } from '../lora/config.js'
import type { PartKind } from '../lora/part.js'
import {
  endsOf,
  isAllLinear,
  isInsideModule,
  layerIndex,
  matchTimeOf,
  PatternTable,
  targetMatcher,
} from '../lora/patterns/patterns.js'
import { isHeadModule } from './tied.js'

export interface NamedPart {
  readonly kind: PartKind
  readonly name: string
  readonly module: string
}

interface UnmatchedEntry {
  readonly setting: keyof LoraConfig
  readonly entry: string
}

function unmatchedOf(
  setting: keyof LoraConfig,
  entries: readonly string[],
  names: readonly string[],
  matcherOf: (entry: string) => (name: string) => boolean,
): UnmatchedEntry[] {
  return entries.filter((entry) => !names.some(matcherOf(entry))).map((entry) => ({ setting, entry }))
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
  return [...left].map((entry) => ({ setting, entry }))
}

export function unmatchedEntries(config: LoraConfig, parts: readonly NamedPart[]): UnmatchedEntry[] {
  const ofKinds = (...kinds: PartKind[]) => parts.filter(({ kind }) => kinds.includes(kind))
  const layers = ofKinds('linear', 'embedding', 'convolution').map(({ name }) => name)
  const parameters = ofKinds('parameter').map(({ name }) => name)
  const [modulesSaved, rowModules] = [ofKinds('replacement'), ofKinds('token-rows')].map((found) =>
    found.map(({ module }) => module),
  )
  const { targetParameters } = config
  const time = matchTimeOf(config)
  const ofPattern = (setting: 'rankPattern' | 'alphaPattern') => {
    return unmatchedOf(setting, Object.keys(config[setting]), [...layers, ...parameters], (key) => {
      const table = new PatternTable({ [key]: 1 }, setting, time)
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
  return isIdle ? [{ setting: 'targetModules', entry: targetModules }] : []
}

/** Finds layer indices without a layer. Targets that are named in full are adapted whatever their layer index is. */
function unmatchedIndexes(config: LoraConfig, layers: readonly string[]): UnmatchedEntry[] {
  const { targetModules, layersToTransform = [] } = config
  const indexes = [layersToTransform].flat()
  if (indexes.length === 0) return []
  const isTarget = targetMatcher(config)
  const targets = layers.filter(isTarget)
  if (typeof targetModules === 'string' || targets.some((name) => targetModules.includes(name))) {
    return targets.length > 0 ? [] : indexes.map((index) => ({ setting: 'layersToTransform', entry: String(index) }))
  }
  const found = new Set(targets.map(layerIndex(config, matchTimeOf(config))))
  const left = indexes.filter((index) => !found.has(index))
  return left.map((index) => ({ setting: 'layersToTransform', entry: String(index) }))
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

export function describeUnmatched({ setting, entry }: UnmatchedEntry): string {
  return `${setting} ${entry} matches ${setting === 'modulesToSave' ? 'no tensor' : 'no layer'}`
}
