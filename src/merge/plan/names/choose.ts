// Which names a checkpoint has for the tensors that adapters name: the adapters' own, or those of transformers' table.

import type { Checkpoint } from '../../../formats/checkpoint.js'
import { withoutWrapper } from '../../../graph/match/module-names.js'
import type { MergeParts } from '../adapters.js'
import type { NameRules, StoredForm } from './rules.js'
import type { NameEntry } from './tables.js'

type Tensors = Checkpoint['tensors']
type Naming = (name: string) => StoredForm | undefined

export interface CheckpointNames {
  /** Undefined where the checkpoint stores it in a form that is not implemented. */
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
 * Names as they are where all are found so; else by the rules under which most are. The model's first part is added or
 * left out (`transformer.h.0` or `h.0`) where all are found then and there is one way.
 */
export function chooseNames(
  wanted: readonly WantedTensor[],
  tensors: Tensors,
  entries: readonly NameEntry[],
): CheckpointNames {
  if (wanted.some(({ name }) => withoutWrapper(name) !== name && !tensors.has(name))) {
    const bare = wanted.map((one) => ({ ...one, name: withoutWrapper(one.name) }))
    const { form, locate } = chooseNames(bare, tensors, entries)
    return { form: (name) => form(withoutWrapper(name)), locate: (name) => locate(withoutWrapper(name)) }
  }
  const count = (naming: Naming, own: readonly WantedTensor[] = wanted) =>
    own.reduce((sum, one) => sum + (isFound(one, naming(one.name), tensors) ? 1 : 0), 0)
  const own = count(asItIs)
  const sample = wanted.filter((_, i) => i % Math.ceil(wanted.length / SAMPLE) === 0)
  const namings = entries.flatMap(namingsOf)
  const sorted = namings.map((naming) => ({ naming, found: count(naming, sample) })).sort((a, b) => b.found - a.found)
  // Tensors that are not stored get the names under which transformers would store them.
  const usual = sorted[0]?.naming ?? asItIs
  if (wanted.length === 0 || own === wanted.length) return namesOf([asItIs], usual, tensors)
  const ranked = sorted.slice(0, 3).map(({ naming }) => ({ naming, found: count(naming) }))
  const best = ranked.reduce((one, other) => (other.found > one.found ? other : one), {
    naming: asItIs as Naming,
    found: own,
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
      const own = naming(name)
      if (own !== undefined && (isStored(own, tensors) || tensors.has(`${own.tensors[0]}.weight`))) return own
    }
    return usual(name)
  }
  const locate = (name: string) => {
    const own = form(name)
    return own?.tensors.length === 1 && !own.tensors[0].includes('*') ? own.tensors[0] : name
  }
  return { form, locate }
}

/** An entry of the table can be meant of the model with its head or without, and the other way round. */
function namingsOf({ rules, prefix, isInside }: NameEntry): Naming[] {
  const both = (own: NameRules): Naming[] => {
    const bare: Naming = (name) => own.form(name)
    if (prefix === '') return [bare]
    const start = `${prefix}.`
    if (!isInside) return [bare, (name) => own.form(start + name)]
    const within: Naming = (name) => {
      if (!name.startsWith(start)) return asItIs(name)
      return mapped(own.form(name.slice(start.length)), (stored) => start + stored)
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
