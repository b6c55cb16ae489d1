// Which adapters a run uses: one by its name, a mix of several with weights, the base alone; for the whole batch or for each row.

import { ConfigError, MismatchError, nearMisses, UnsupportedError } from '../base/errors.js'
import { anyOf, isObject, type Kind, kind, listOf, NAME } from '../base/options.js'

/** The name of an adapter; names and weights of several, which are added up; or null for the base model alone. */
export type AdapterChoice = string | Readonly<Record<string, number>> | null

/** An adapter of a mix. */
export interface MixedAdapter {
  readonly name: string
  readonly weight: number
}

/** What a row is adapted by; empty for the base alone. */
export type Mix = readonly MixedAdapter[]

const MIX = kind('an object of names and weights such as { a: 0.5, b: 1 }', (value) => {
  if (!isObject(value)) return false
  const weights = Object.values(value)
  return weights.length > 0 && weights.every((weight) => typeof weight === 'number' && Number.isFinite(weight))
})

export const ONE_CHOICE: Kind = anyOf(
  NAME,
  MIX,
  kind('null', (value) => value === null),
)

/** What the option `adapter` may be. */
export const ADAPTER_CHOICE: Kind = anyOf(ONE_CHOICE, {
  ...listOf(ONE_CHOICE),
  expected: 'a list of these, one for each row',
})

/**
 * The mix of each row; one for all rows where the choice is no list.
 *
 * @param rows number of rows; undefined where only the run itself can tell
 * @throws ConfigError for a list of another length
 */
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

function isList(choice: unknown): choice is readonly AdapterChoice[] {
  return Array.isArray(choice)
}

function mixOf(choice: AdapterChoice | undefined): Mix {
  if (choice === undefined || choice === null) return []
  if (typeof choice === 'string') return [{ name: choice, weight: 1 }]
  return Object.entries(choice).map(([name, weight]) => ({ name, weight }))
}

/** Each mix once, and which of them each row has; without `rowOf` all rows have the first. */
export function distinctMixes(mixes: readonly Mix[]): { distinct: readonly Mix[]; rowOf: number[] | undefined } {
  const keys = mixes.map((mix) => JSON.stringify(mix))
  const unique = [...new Set(keys)]
  const distinct = unique.map((key) => mixes[keys.indexOf(key)])
  return { distinct, rowOf: unique.length > 1 ? keys.map((key) => unique.indexOf(key)) : undefined }
}

/**
 * Throws UnsupportedError for a mix with an adapter that scales the outputs of the base.
 *
 * @param scales whether an adapter does; throws MismatchError for one that the session does not have
 */
export function requireMixable(mixes: readonly Mix[], scales: (name: string) => boolean): void {
  for (const mix of mixes) {
    for (const { name, weight } of mix) {
      if (!scales(name) || (mix.length === 1 && weight === 1)) continue
      throw new UnsupportedError({
        where: `adapter ${JSON.stringify(name)}`,
        what: 'an adapter with DoRA scales the outputs of the base, so that it runs alone and with weight 1',
        got: mix.map((one) => `${one.name}: ${one.weight}`).join(', '),
        hint: 'Merge it, and mix the others on the merged model',
      })
    }
  }
}

/** Throws MismatchError for a name that no adapter of a session has. */
export function refuseAdapter(name: string, adapters: readonly string[]): never {
  const near = nearMisses(name, adapters)
  throw new MismatchError({
    where: 'adapter',
    what: `the session has no adapter ${JSON.stringify(name)}`,
    expected:
      adapters.length === 0
        ? 'the name of an adapter, but the session has none yet: call session.add first'
        : adapters.join(', '),
    ...(near.length > 0 ? { hint: `Did you mean ${near[0]}?` } : {}),
  })
}
