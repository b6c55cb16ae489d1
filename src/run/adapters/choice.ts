// Which adapters a run uses: one by name, a mix with weights, or the base alone; for all rows or for each.

import { ConfigError, didYouMean, MismatchError, StateError, UnsupportedError } from '../../core/base/errors.js'
import { anyOf, isList, isObject, type Kind, kind, listOf, NAME } from '../../core/base/options.js'
import type { AdapterFactors } from './site-factors.js'

/** The name of an adapter; names and weights of several, which are added up; or null for the base model alone. */
export type AdapterChoice = string | Readonly<Record<string, number>> | null

export type Mix = readonly { readonly name: string; readonly weight: number }[]

export function isMix(value: unknown): boolean {
  const weights = isObject(value) ? Object.values(value) : []
  return weights.length > 0 && weights.every((weight) => typeof weight === 'number' && Number.isFinite(weight))
}

const MIX = kind('an object of names and weights such as { a: 0.5, b: 1 }', isMix)

export const ONE_CHOICE: Kind = anyOf(
  NAME,
  MIX,
  kind('null', (value) => value === null),
)

export const ADAPTER_CHOICE: Kind = anyOf(ONE_CHOICE, {
  ...listOf(ONE_CHOICE),
  expected: 'a list of these, one for each row',
})

/** Returns the mix of each row, or one for all rows. `rows` is undefined if their number is unknown before the run. */
export function mixesOf(
  choice: AdapterChoice | readonly AdapterChoice[] | undefined,
  rows: number | undefined,
): readonly Mix[] {
  if (!isList(choice)) return [mixOf(choice)]
  if (rows !== undefined && choice.length !== rows) {
    throw new ConfigError({
      where: 'adapter',
      what: 'a list has one adapter for each row',
      expected: String(rows),
      got: String(choice.length),
      hint: 'null is the base model alone',
    })
  }
  return choice.map(mixOf)
}

function mixOf(choice: AdapterChoice | undefined): Mix {
  if (choice === undefined || choice === null) return []
  if (typeof choice === 'string') return [{ name: choice, weight: 1 }]
  return Object.entries(choice).map(([name, weight]) => ({ name, weight }))
}

export interface Mixable {
  readonly scales: boolean
  /** The base tensors that the adapter replaces, as a whole or in some rows. */
  readonly replaced: ReadonlyMap<string, 'whole' | 'rows'>
  readonly added: ReadonlySet<string>
}

/** Refuses mixes that cannot be computed as a sum: adapters that scale outputs, or two that replace the same values. */
export function requireMixable(mixes: readonly Mix[], of: (name: string) => Mixable): void {
  for (const mix of mixes) {
    const all = mix.map(({ name, weight }) => ({ name, weight, does: of(name) }))
    const fail = (name: string, what: string, hint: string) => {
      const got = mix.map((item) => `${item.name}: ${item.weight}`).join(', ')
      throw new UnsupportedError({ where: `adapter ${JSON.stringify(name)}`, what, got, hint })
    }
    const replacing = new Map<string, string>()
    for (const { name, weight, does } of all) {
      if (does.scales && !(mix.length === 1 && weight === 1)) {
        const what = 'an adapter with DoRA scales the outputs of the base, so it must run alone and with weight 1'
        fail(name, what, 'Merge it, and mix the others on the merged model')
      }
      for (const [tensor, kind] of does.replaced) {
        if (weight !== 1) {
          const what = `it replaces values of the base (${tensor}), which cannot be weighted, so it must run with weight 1`
          fail(name, what, 'Remove the part from the adapter, or give it weight 1')
        }
        const earlier = replacing.get(tensor)
        if (earlier !== undefined)
          fail(name, `it and ${JSON.stringify(earlier)} both replace ${tensor}`, 'Run one of them')
        replacing.set(tensor, name)
        const adding = all.find((item) => item.does !== does && item.does.added.has(tensor))
        if (kind === 'rows' && adding !== undefined) {
          fail(name, `it replaces rows of ${tensor}, which ${JSON.stringify(adding.name)} adds to`, 'Run one of them')
        }
      }
    }
  }
}

export function mixableOf(factors: AdapterFactors, scales: boolean): Mixable {
  const replaced = new Map<string, 'whole' | 'rows'>()
  const added = new Set<string>()
  for (const [module, { rank, replaced: values, replacesBias }] of factors) {
    if (rank > 0) added.add(module)
    if (values !== undefined) replaced.set(module, values.lines === undefined ? 'whole' : 'rows')
    if (replacesBias) replaced.set(`${module}.bias`, 'whole')
  }
  return { scales, replaced, added }
}

/** The error for a call to a session that is disposed, perhaps while the call was running. */
export function closedSession(): StateError {
  return new StateError({
    where: 'session',
    what: 'the session is closed',
    hint: 'Write await before each call that should end before dispose()',
  })
}

export function refuseAdapter(name: string, adapters: readonly string[]): never {
  throw new MismatchError({
    where: 'adapter',
    what: `the session has no adapter ${JSON.stringify(name)}`,
    expected: adapters.length === 0 ? undefined : adapters.join(', '),
    hint: adapters.length === 0 ? 'It has no adapters: add this one with session.add' : didYouMean(name, adapters),
  })
}
