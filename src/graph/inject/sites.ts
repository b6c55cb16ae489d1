// Which part of an adapter becomes which input of a session's graph. Quantized weights, and weights that are tied, stay
// as they are: what takes their place is computed beside them.

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

/** A module that can be adapted, and the inputs that its graph has for it. */
export interface Site {
  readonly kind: 'linear' | 'lookup' | 'vector'
  /** The model's name of the module; of a vector that of the tensor. */
  readonly module: string
  readonly roles: ReadonlySet<SiteRole>
  /** In; of an embedding its vocabulary, of a vector 1. */
  readonly k: number
  /** Out; of an embedding its features, of a vector its length. */
  readonly d: number
  /**
   * True if the layer reads the same values for all rows of a batch, so that rows cannot have adapters of their own.
   */
  readonly isForAllRows?: boolean
  /** The base's values (d). Only for vectors. */
  readonly base?: Float32Array | undefined
}

/**
 * Sites whose layers read the same value, such as query, key and value. One product gives x·Aᵀ for all of them: their A
 * are one input, with the same number of columns for each, {@link sharedInput}. Any other site is alone.
 */
export type SiteGroup = readonly Site[]

/** The name of a graph input. */
export function siteInput(module: string, role: SiteRole): string {
  return `lora/${module}/${role}`
}

/** The name of the input with A of these modules, side by side. */
export function sharedInput(modules: readonly string[]): string {
  return siteInput(modules.join('+'), 'A')
}

/** The inputs that the adapters of a session need in its graph, by module. */
export type SiteNeeds = ReadonlyMap<string, ReadonlySet<SiteRole>>

/** The needs of several adapters together. */
export function joinNeeds(all: Iterable<SiteNeeds>): SiteNeeds {
  const joined = new Map<string, Set<SiteRole>>()
  for (const needs of all) {
    for (const [module, roles] of needs) joined.set(module, new Set([...(joined.get(module) ?? []), ...roles]))
  }
  return joined
}
