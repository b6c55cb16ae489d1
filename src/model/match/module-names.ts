// Matches module names between versions of transformers, which put different modules around a language model or a
// vision tower.

import { ALL } from '../families/families.js'
import type { ModelType } from '../families/family.js'

/** Modules around a whole model, which some versions leave out. */
const AROUND = new Set(['model', 'language_model', 'text_model', 'vision_model', 'vision_tower'])

const VISION = new Set(['vision_model', 'vision_tower', 'vision_encoder', 'visual', 'image_tower', 'video_tower'])

/** Modules around the language model, in models that also read pictures. */
const LANGUAGE = new Set(['language_model', 'text_model'])

export function endAlike(a: string, b: string): boolean {
  return hasEnd(a, b) || hasEnd(b, a)
}

/** Returns the part of a vision model that a name belongs to, if the name tells. */
export function sideOf(name: string): 'vision' | 'language' | undefined {
  const segments = name.split('.')
  if (segments.some((segment) => VISION.has(segment))) return 'vision'
  return segments.some((segment) => LANGUAGE.has(segment)) ? 'language' : undefined
}

function core(name: string): string {
  const kept = name
    .split('.')
    .filter((segment) => !AROUND.has(segment))
    .join('.')
  return kept === '' ? name : `${sideOf(name) === 'vision'}:${kept}`
}

/** Removes the wrapper that sentence-transformers puts around its first module. */
export function withoutWrapper(module: string): string {
  return module.replace(/^0\.auto_model\./, '')
}

/** Returns the name in transformers of a module of a graph. */
export function nameInPyTorch({ exported = {} }: ModelType, name: string): string {
  const [known] = Object.keys(exported).filter((end) => hasEnd(name, end))
  return known === undefined ? name : withEnd(name, known, exported[known])
}

export function hasEnd(name: string, end: string): boolean {
  return name === end || name.endsWith(`.${end}`)
}

export function withEnd(name: string, end: string, replacement: string): string {
  return name.slice(0, name.length - end.length) + replacement
}

const RESPELLED = ALL.filter(({ spellings, exported }) => (spellings ?? exported) !== undefined)

/** Returns a module's name in today's transformers. */
function todays(type: ModelType, name: string): string {
  const { spellings = [] } = type
  return spellings.reduce((spelled, [older, today]) => spelled.replace(older, today), nameInPyTorch(type, name))
}

/**
 * Finds a module by its name, else the only name that ends alike, else one that differs in the modules around it, in a
 * doubled Sequential, or in the version of transformers.
 */
export function nameOfModule(names: ReadonlySet<string>, name: string): string | undefined {
  if (names.has(name)) return name
  const module = withoutWrapper(name)
  if (names.has(module)) return module
  const all = [...names]
  const near = all.filter((candidate) => endAlike(candidate, module))
  if (near.length > 0) return near.length === 1 ? near[0] : undefined
  const moduleCore = core(module)
  const alike = all.filter((candidate) => core(candidate) === moduleCore)
  if (alike.length > 0) return alike.length === 1 ? alike[0] : undefined
  const doubled = all.filter((candidate) => {
    // PyTorch's exporter doubles the name of a Sequential: merger.mlp.mlp.0 is merger.mlp.0.
    const single = candidate.replace(/(^|\.)([^.]+)\.\2(?=\.\d+(\.|$))/g, '$1$2')
    return single !== candidate && `.${module}`.endsWith(`.${single}`)
  })
  if (doubled.length > 0) return doubled.length === 1 ? doubled[0] : undefined
  const versions = RESPELLED.flatMap((type) => {
    const wanted = todays(type, module)
    return all.filter((candidate) => endAlike(todays(type, candidate), wanted))
  })
  return new Set(versions).size === 1 ? versions[0] : undefined
}

export function ofModule<T extends { readonly name: string }>(entries: readonly T[], module: string): T[] {
  const found = nameOfModule(new Set(entries.map(({ name }) => name)), module)
  return found === undefined ? [] : entries.filter(({ name }) => name === found)
}
