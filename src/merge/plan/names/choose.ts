// Chooses a checkpoint's names for the tensors that adapters name: the same names, or names by a rule of transformers.

import type { Checkpoint } from '../../../files/checkpoint.js'
import { withoutWrapper } from '../../../model/match/module-names.js'
import type { MergeParts } from '../adapters.js'
import type { NameRules, StoredForm } from './rules.js'
import type { NameEntry } from './tables.js'

type Tensors = Checkpoint['tensors']
type Naming = (name: string) => StoredForm | undefined

export interface CheckpointNames {
  /**
   * Returns which tensors of the checkpoint store a tensor of the model, and whether as a part of a larger one or
   * transposed. Returns undefined if the form is not implemented.
   */
  form(name: string): StoredForm | undefined
  locate(name: string): string
}

interface WantedTensor {
  readonly name: string
  isThere?(stored: string): boolean
}

const SAMPLE = 48

function asItIs(name: string): StoredForm {
  return { tensors: [name], isTurned: false, share: undefined }
}

/**
 * Takes the names as they are, if all are found. Else it takes the rules by which most names are found. If all are
 * found by adding or removing the first part of the name (`transformer.h.0` or `h.0`), and only in one way, it does
 * that.
 */
export function chooseNames(
  wanted: readonly WantedTensor[],
  tensors: Tensors,
  entries: readonly NameEntry[],
): CheckpointNames {
  if (wanted.some(({ name }) => withoutWrapper(name) !== name && !tensors.has(name))) {
    const bare = wanted.map((tensor) => ({ ...tensor, name: withoutWrapper(tensor.name) }))
    const { form, locate } = chooseNames(bare, tensors, entries)
    return { form: (name) => form(withoutWrapper(name)), locate: (name) => locate(withoutWrapper(name)) }
  }
  const count = (naming: Naming, counted: readonly WantedTensor[] = wanted) =>
    counted.reduce((sum, tensor) => sum + (isFound(tensor, naming(tensor.name), tensors) ? 1 : 0), 0)
  const unchanged = count(asItIs)
  const sample = wanted.filter((_, i) => i % Math.ceil(wanted.length / SAMPLE) === 0)
  const namings = entries.flatMap(namingsOf)
  const sorted = namings.map((naming) => ({ naming, found: count(naming, sample) })).sort((a, b) => b.found - a.found)
  // Tensors that are not stored get the names by which transformers would store them.
  const usual = sorted[0]?.naming ?? asItIs
  if (wanted.length === 0 || unchanged === wanted.length) return namesOf([asItIs], usual, tensors)
  const ranked = sorted.slice(0, 3).map(({ naming }) => ({ naming, found: count(naming) }))
  const best = ranked.reduce((best, candidate) => (candidate.found > best.found ? candidate : best), {
    naming: asItIs as Naming,
    found: unchanged,
  })
  if (best.found === wanted.length || (best.found > 0 && best.naming === asItIs))
    return namesOf([best.naming, asItIs], best.naming === asItIs ? usual : best.naming, tensors)
  const fitting = shifted([asItIs, ...namings], wanted, tensors).filter(
    (naming) => count(naming, sample) === sample.length && count(naming) === wanted.length,
  )
  const alike = new Set(fitting.map((naming) => JSON.stringify(wanted.map(({ name }) => naming(name)!.tensors))))
  const chosen = alike.size === 1 ? fitting[0] : best.naming
  return namesOf([chosen, asItIs], chosen === asItIs ? usual : chosen, tensors)
}

function namesOf(namings: readonly Naming[], usual: Naming, tensors: Tensors): CheckpointNames {
  const form = (name: string) => {
    for (const naming of namings) {
      const stored = naming(name)
      if (stored !== undefined && (isStored(stored, tensors) || tensors.has(`${stored.tensors[0]}.weight`)))
        return stored
    }
    return usual(name)
  }
  const locate = (name: string) => {
    const stored = form(name)
    return stored?.tensors.length === 1 && !stored.tensors[0].includes('*') ? stored.tensors[0] : name
  }
  return { form, locate }
}

/**
 * Returns the namings of a table entry: for the model with and without its head, each from names in the model to names
 * in the checkpoint, and the reverse.
 */
function namingsOf({ rules, prefix, isInside }: NameEntry): Naming[] {
  const both = (directed: NameRules): Naming[] => {
    const bare: Naming = (name) => directed.form(name)
    if (prefix === '') return [bare]
    const start = `${prefix}.`
    if (!isInside) return [bare, (name) => directed.form(start + name)]
    const within: Naming = (name) => {
      if (!name.startsWith(start)) return asItIs(name)
      return mapped(directed.form(name.slice(start.length)), (stored) => start + stored)
    }
    return [within, bare]
  }
  return [...both(rules), ...both(rules.reversed())]
}

function mapped(form: StoredForm | undefined, rename: (stored: string) => string): StoredForm | undefined {
  return form && { ...form, tensors: form.tensors.map(rename) }
}

function shifted(namings: readonly Naming[], wanted: readonly WantedTensor[], tensors: Tensors): Naming[] {
  const starts = new Set([...tensors.keys()].map((name) => name.split('.', 1)[0]))
  return namings.flatMap((naming) => {
    const first = `${naming(wanted[0].name)?.tensors[0].split('.', 1)[0]}.`
    const without: Naming = (name) =>
      mapped(naming(name), (stored) => (stored.startsWith(first) ? stored.slice(first.length) : stored))
    const adding =
      (start: string): Naming =>
      (name) =>
        mapped(naming(name), (stored) => `${start}.${stored}`)
    return [without, ...[...starts].map(adding)]
  })
}

function isFound(wanted: WantedTensor, form: StoredForm | undefined, tensors: Tensors): boolean {
  if (form === undefined) return false
  return isStored(form, tensors) || (form.tensors.length === 1 && wanted.isThere?.(form.tensors[0]) === true)
}

function isStored({ tensors: names }: StoredForm, tensors: Tensors): boolean {
  return names.every((name) => tensors.has(name.replace('*', '0')))
}

export function tensorsOf({ layers, replacements }: MergeParts): string[] {
  return [...layers.map(({ name, tensor }) => `${name}.${tensor}`), ...replacements.map(({ tensor }) => tensor)]
}
