// Entries of a config that match nothing of its adapter: targets, patterns, modules to save. PEFT passes over most of them, some with a
// warning when it makes the adapter. Each is more often a misspelt name than a choice.

import { MismatchError, nearMisses } from '../base/errors.js'
import type { LoraConfig } from './config.js'
import { isAllLinear, PatternTable, targetMatcher } from './patterns.js'
import type { AdapterPart } from './plain.js'
import { isHeadModule } from './tied.js'

/** In one message; near misses of each cost a comparison with every name. */
const MAX_SHOWN = 10

export interface UnmatchedEntry {
  /** The config's field. */
  readonly setting: keyof LoraConfig
  readonly entry: string
  /** Nearest names that the adapter has; looked for when asked. */
  near(): string[]
}

/** All entries that match nothing, in the order of the config's fields. */
export function unmatchedEntries(config: LoraConfig, parts: readonly AdapterPart[]): UnmatchedEntry[] {
  const named = (isOfKind: (kind: AdapterPart['kind']) => boolean) =>
    parts.filter(({ kind }) => isOfKind(kind)).map(({ name }) => name)
  const parameters = named((kind) => kind === 'parameter')
  const replaced = named((kind) => kind === 'replacement')
  const rows = named((kind) => kind === 'token-rows')
  const layers = named((kind) => kind !== 'parameter' && kind !== 'replacement' && kind !== 'token-rows')
  const result: UnmatchedEntry[] = []
  const check = (
    setting: keyof LoraConfig,
    entries: readonly string[],
    names: readonly string[],
    isMatch: (entry: string, name: string) => boolean,
  ) => {
    for (const entry of entries) {
      if (!names.some((name) => isMatch(entry, name)))
        result.push({ setting, entry, near: () => nearestTo(entry, names) })
    }
  }
  const { targetModules, targetParameters, trainableTokenIndices, layersToTransform = [] } = config
  if (typeof targetModules !== 'string') {
    check('targetModules', targetModules, layers, (entry, name) => isEnd(entry, name))
  } else if (!isAllLinear(targetModules) && layers.length === 0) {
    result.push({ setting: 'targetModules', entry: targetModules, near: () => [] }) // it would match all layers there are
  }
  check('layersToTransform', [layersToTransform].flat().map(String), layers, (entry, name) => {
    return targetMatcher({ ...config, layersToTransform: [Number(entry)] })(name)
  })
  for (const field of ['rankPattern', 'alphaPattern'] as const) {
    const tables = new Map(
      Object.entries(config[field]).map(([key, value]) => [key, new PatternTable({ [key]: value }, field)]),
    )
    check(
      field,
      [...tables.keys()],
      [...layers, ...parameters],
      (key, name) => tables.get(key)!.find(name) !== undefined,
    )
  }
  // As PEFT has it, an entry is the end of a module's name, with or without a dot before it.
  check('modulesToSave', config.modulesToSave, replaced, (entry, name) => {
    const parts = name.split('.')
    return parts.some((_, i) =>
      parts
        .slice(0, i + 1)
        .join('.')
        .endsWith(entry),
    )
  })
  check('targetParameters', targetParameters, parameters, isEnd)
  if (trainableTokenIndices !== undefined && !Array.isArray(trainableTokenIndices)) {
    // An output embedding that is tied has the input embedding's rows.
    const modules = Object.keys(trainableTokenIndices).filter(
      (name) => !(config.ensureWeightTying && isHeadModule(name)),
    )
    check('trainableTokenIndices', modules, rows, (entry, name) => name.endsWith(entry))
  }
  return result
}

/** Throws MismatchError that lists all entries which match nothing, with near misses. */
export function requireMatched(
  adapter: { readonly config: LoraConfig; parts(): readonly AdapterPart[] },
  where: string,
): void {
  const unmatched = unmatchedEntries(adapter.config, adapter.parts())
  if (unmatched.length > 0) throw unmatchedError(unmatched, where)
}

/** One sentence. */
export function describeUnmatched({ setting, entry }: UnmatchedEntry): string {
  return `${setting} ${entry} matches ${setting === 'modulesToSave' ? 'no tensor' : 'no layer'}`
}

function unmatchedError(unmatched: readonly UnmatchedEntry[], where: string): MismatchError {
  const shown = unmatched.slice(0, MAX_SHOWN)
  const hints = shown.flatMap(({ entry, near }) => {
    const names = near()
    return names.length > 0 ? [`nearest to ${entry}: ${names.join(', ')}`] : []
  })
  const others = unmatched.length > MAX_SHOWN ? `; and ${unmatched.length - MAX_SHOWN} more` : ''
  return new MismatchError({
    where,
    what: shown.map(describeUnmatched).join('; ') + others,
    expected: 'settings that all match something, as strict asks for',
    ...(hints.length > 0 && { hint: hints.join('; ') }),
  })
}

function isEnd(entry: string, name: string): boolean {
  return name === entry || name.endsWith(`.${entry}`)
}

/** Ends of names with as many parts as the entry has. */
function nearestTo(entry: string, names: readonly string[]): string[] {
  const count = entry.split('.').length
  return nearMisses(entry, new Set(names.map((name) => name.split('.').slice(-count).join('.'))))
}
