// The inputs that a session's graph has for an adapter. Quantized and tied weights of the base stay unchanged.

/**
 * Inputs of a module, by the part of an adapter:
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
  /** Name of the module, or of a vector. */
  readonly module: string
  readonly roles: ReadonlySet<SiteRole>
  /** Inputs of a layer, vocabulary of an embedding, 1 for a vector. */
  readonly k: number
  /** Outputs of a layer, features of an embedding, length of a vector. */
  readonly d: number
  /** True if it reads values that all rows of a batch share, so that rows cannot have different adapters. */
  readonly isForAllRows?: boolean
  /** True for a tensor that stacks the weights of several experts. */
  readonly isStack?: boolean
  /** The base's values (d). Only for vectors. */
  readonly base?: Float32Array | undefined
}

/** Sites that read the same value, such as query, key and value, and share one input for all A: {@link sharedInput}. */
export type SiteGroup = readonly Site[]

/** The graph input, (1) or (rows, 1), with the number of each row's table of an embedding. */
export const SLOTS_INPUT = 'lora/slots'

/** The graph input (1) with the first token whose logits are wanted. */
export const FIRST_INPUT = 'logits/first'

/**
 * The graph input, (rows) or (1), with the number of tokens that each row lacks compared with the longest row. Each
 * row's cache then begins with its first token, and attention reads only as much as the row has.
 */
export const MISSING_INPUT = 'cache/missing'

export function siteInput(module: string, role: SiteRole): string {
  return `lora/${module}/${role}`
}

export function sharedInput(modules: readonly string[]): string {
  return siteInput(modules.join('+'), 'A')
}

/**
 * Names the input that selects the columns of x·Aᵀ for each row, if rows have different adapters. Modules with the same
 * name in all layers share it.
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
