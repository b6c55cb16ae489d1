// When two names mean one module: versions of transformers put other modules around a language model or a vision tower.

import { ALL } from '../../families/families.js'
import type { ModelType } from '../../families/family.js'

/** Modules that hold a whole model, and that some versions leave out. */
const AROUND = new Set(['model', 'language_model', 'text_model', 'vision_model', 'vision_tower'])

const VISION = new Set(['vision_model', 'vision_tower', 'vision_encoder', 'visual', 'image_tower', 'video_tower'])

/** In models that also read pictures. */
const LANGUAGE = new Set(['language_model', 'text_model'])

export function endAlike(a: string, b: string): boolean {
  return hasEnd(a, b) || hasEnd(b, a)
}

/** The part of a model of texts and pictures that a name tells. */
export function sideOf(name: string): 'vision' | 'language' | undefined {
  const segments = name.split('.')
  if (segments.some((segment) => VISION.has(segment))) return 'vision'
  return segments.some((segment) => LANGUAGE.has(segment)) ? 'language' : undefined
}

function core(name: string): string {
  const own = name
    .split('.')
    .filter((segment) => !AROUND.has(segment))
    .join('.')
  return own === '' ? name : `${sideOf(name) === 'vision'}:${own}`
}

/** The wrapper that sentence-transformers puts around its first module. */
export function withoutWrapper(module: string): string {
  return module.replace(/^0\.auto_model\./, '')
}

/** The name that a module of a graph has in transformers. */
export function nameInPyTorch({ exported = {} }: ModelType, name: string): string {
  const [own] = Object.keys(exported).filter((end) => hasEnd(name, end))
  return own === undefined ? name : withEnd(name, own, exported[own])
}

/** True if the last parts of a name are these. */
export function hasEnd(name: string, end: string): boolean {
  return name === end || name.endsWith(`.${end}`)
}

export function withEnd(name: string, end: string, other: string): string {
  return name.slice(0, name.length - end.length) + other
}

const RESPELLED = ALL.filter(({ spellings, exported }) => (spellings ?? exported) !== undefined)

/** The name that today's transformers gives to a module of this type of model. */
function todays(type: ModelType, name: string): string {
  const { spellings = [] } = type
  return spellings.reduce((own, [older, today]) => own.replace(older, today), nameInPyTorch(type, name))
}

/**
 * Its own, else the one name that ends alike, else one that differs in modules around it, in a doubled Sequential, or
 * in the version of transformers.
 */
export function nameOfModule(names: ReadonlySet<string>, name: string): string | undefined {
  if (names.has(name)) return name
  const module = withoutWrapper(name)
  if (names.has(module)) return module
  const all = [...names]
  const near = all.filter((other) => endAlike(other, module))
  if (near.length > 0) return near.length === 1 ? near[0] : undefined
  const own = core(module)
  const alike = all.filter((other) => core(other) === own)
  if (alike.length > 0) return alike.length === 1 ? alike[0] : undefined
  const doubled = all.filter((other) => {
    // PyTorch's exporter names a Sequential twice: merger.mlp.mlp.0 is merger.mlp.0.
    const single = other.replace(/(^|\.)([^.]+)\.\2(?=\.\d+(\.|$))/g, '$1$2')
    return single !== other && `.${module}`.endsWith(`.${single}`)
  })
  if (doubled.length > 0) return doubled.length === 1 ? doubled[0] : undefined
  const versions = RESPELLED.flatMap((type) => {
    const wanted = todays(type, module)
    return all.filter((other) => endAlike(todays(type, other), wanted))
  })
  return new Set(versions).size === 1 ? versions[0] : undefined
}

export function ofModule<T extends { readonly name: string }>(entries: readonly T[], module: string): T[] {
  const own = nameOfModule(new Set(entries.map(({ name }) => name)), module)
  return own === undefined ? [] : entries.filter(({ name }) => name === own)
}
