// Which part of an adapter becomes which input of a session's graph. Quantized and tied weights stay as they are.

/**
 * The inputs that a module can have, by what an adapter holds for it:
 *
 * | part | site | inputs |
 * | --- | --- | --- |
 * | linear layer | linear | A, B |
 * | DoRA, bias of B, replaced bias | linear | scale, shift |
 * | replaced weight of a linear layer or a head | linear | scale, shift, weight |
 * | trained rows of a head | linear | scale, shift, weight, columns |
 * | adapted embedding | embedding | A, B; with DoRA scale |
 * | replaced embedding, trained rows | embedding | rows, rowOf |
 * | replaced weight or bias of a norm | vector | values |
 */
export type SiteRole = 'A' | 'B' | 'scale' | 'shift' | 'weight' | 'columns' | 'rows' | 'rowOf' | 'values'

export interface Site {
  readonly kind: 'linear' | 'lookup' | 'vector'
  /** The model's name of the module; of a vector that of the tensor. */
  readonly module: string
  readonly roles: ReadonlySet<SiteRole>
  /** In; of an embedding its vocabulary, of a vector 1. */
  readonly k: number
  /** Out; of an embedding its features, of a vector its length. */
  readonly d: number
  /** It reads the same values for all rows of a batch, so that rows cannot have adapters of their own. */
  readonly isForAllRows?: boolean
  /** The base's values (d). Only for vectors. */
  readonly base?: Float32Array | undefined
}

/** Sites whose layers read the same value, such as query, key and value: their A are one input, {@link sharedInput}. */
export type SiteGroup = readonly Site[]

/** The graph input, (1) or (rows, 1), that tells which table of an embedding each row of the batch has. */
export const SLOTS_INPUT = 'lora/slots'

/** The graph input (1) with the first token whose logits are wanted. */
export const FIRST_INPUT = 'logits/first'

/**
 * The graph input (rows) or (1) that tells how many tokens each row holds less than the longest one. Its cache begins
 * with its own first token then, and attention reads no more than it holds.
 */
export const MISSING_INPUT = 'cache/missing'

export function siteInput(module: string, role: SiteRole): string {
  return `lora/${module}/${role}`
}

export function sharedInput(modules: readonly string[]): string {
  return siteInput(modules.join('+'), 'A')
}

/**
 * The input that says which columns of x·Aᵀ each row keeps, where the adapters of several rows stand side by side. The
 * modules of one name in all layers share it.
 */
export function ownInput(modules: readonly string[]): string {
  return `lora/${modules.map((name) => name.replaceAll(/\d+/g, '*')).join('+')}/own`
}

export type SiteNeeds = ReadonlyMap<string, ReadonlySet<SiteRole>>

export function joinNeeds(all: Iterable<SiteNeeds>): SiteNeeds {
  const joined = new Map<string, Set<SiteRole>>()
  for (const needs of all) {
    for (const [module, roles] of needs) joined.set(module, new Set([...(joined.get(module) ?? []), ...roles]))
  }
  return joined
}
