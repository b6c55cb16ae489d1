// Which linear layers a configuration or an adapter means. Rules of target_modules: PEFT's
// `tuners/tuners_utils.py` (check_target_module_exists).

import { ConfigError, MismatchError, nearMisses } from '../base/errors.js'
import type { Linear } from './linears.js'

export interface TargetOptions {
  /** Same rules as the targets; wins over them. */
  readonly excludeModules?: string | readonly string[] | undefined
  /** Only with a list of targets: the indices of the layers that are adapted. */
  readonly layersToTransform?: number | readonly number[] | undefined
  /** Names of the lists of layers whose indices count: 'layers', 'h'. Default: the first number in the module's path. */
  readonly layersPattern?: string | readonly string[] | undefined
}

/**
 * The linear layers that a new adapter gets.
 *
 * @param targets 'all-linear' (all but the output embedding), a list of names (a module's path equals an entry or ends
 *   with `.` and it), or a regular expression that the whole path matches
 * @throws MismatchError when nothing, or nothing for an entry of the list, matches; ConfigError for a bad expression
 */
export function matchTargets(
  linears: readonly Linear[],
  targets: string | readonly string[],
  options: TargetOptions = {},
): Linear[] {
  if (targets.length === 0) {
    throw new ConfigError({
      where: 'targetModules',
      what: 'it is empty, so that nothing would be adapted',
      hint: 'Use all-linear, or names such as q_proj',
    })
  }
  const excluded = options.excludeModules
  const candidates =
    excluded === undefined || excluded.length === 0
      ? linears
      : linears.filter((linear) => !matches(linear.name, excluded, 'excludeModules'))
  if (typeof targets === 'string' && targets.toLowerCase() === 'all-linear') {
    return nonEmpty(
      candidates.filter((linear) => !linear.isHead),
      targets,
      linears,
    )
  }
  if (typeof targets === 'string') {
    return nonEmpty(
      candidates.filter((linear) => matches(linear.name, targets, 'targetModules')),
      targets,
      linears,
    )
  }
  for (const entry of targets) {
    nonEmpty(
      linears.filter(({ name }) => matches(name, [entry], 'targetModules')),
      entry,
      linears,
    )
  }
  const found = candidates.filter(
    (linear) => matches(linear.name, targets, 'targetModules') && isLayerChosen(linear.name, targets, options),
  )
  return nonEmpty(found, targets.join(','), linears)
}

function matches(name: string, rule: string | readonly string[], where: string): boolean {
  if (typeof rule !== 'string') return rule.some((entry) => name === entry || name.endsWith(`.${entry}`))
  try {
    return new RegExp(`^(?:${rule})$`).test(name)
  } catch (cause) {
    throw new ConfigError({ where, what: 'not a regular expression', got: JSON.stringify(rule), cause })
  }
}

function isLayerChosen(name: string, targets: readonly string[], options: TargetOptions): boolean {
  const { layersToTransform, layersPattern } = options
  if (layersToTransform === undefined || targets.includes(name)) return true
  const patterns = layersPattern === undefined || layersPattern.length === 0 ? [] : [layersPattern].flat()
  const expressions =
    patterns.length === 0 ? [/\.[^.]*\.(\d+)\./] : patterns.map((p) => new RegExp(`.*?\\.${p}\\.(\\d+)\\.`))
  const index = expressions.map((expression) => expression.exec(name)?.[1]).find((digits) => digits !== undefined)
  return index !== undefined && [layersToTransform].flat().includes(Number(index))
}

function nonEmpty(found: Linear[], wanted: string, linears: readonly Linear[]): Linear[] {
  if (found.length > 0) return found
  const names = [...new Set(linears.map(({ name }) => name))]
  const lastParts = [...new Set(names.map((name) => name.slice(name.lastIndexOf('.') + 1)))]
  const near = nearMisses(wanted, [...lastParts, ...names])
  throw new MismatchError({
    where: 'targetModules',
    what: `no module of the model matches ${JSON.stringify(wanted)}`,
    ...(names.length === 0 ? { got: 'a graph without linear layers' } : {}),
    hint:
      near.length > 0
        ? `Did you mean ${near.join(' or ')}?`
        : `The model's linear layers are ${lastParts.slice(0, 12).join(', ')}`,
  })
}

/** What has to be known of an adapter's layer to place it. */
export interface NamedLayer {
  readonly name: string
  readonly d: number
  readonly k: number
}

/**
 * The linear layers that an adapter's layers belong to: of the same name, else of a name that ends with the other's
 * (a model exported without its outermost module). A module that the graph calls twice gives two.
 *
 * @throws MismatchError naming every layer without a module, or the first one whose shape differs
 */
export function matchLayers<T extends NamedLayer>(
  linears: readonly Linear[],
  layers: Iterable<T>,
): { layer: T; linear: Linear }[] {
  const byName = new Map<string, Linear[]>()
  for (const linear of linears) byName.set(linear.name, [...(byName.get(linear.name) ?? []), linear])
  const placed: { layer: T; linear: Linear }[] = []
  const missing: string[] = []
  for (const layer of layers) {
    const found = byName.get(layer.name) ?? bySuffix(byName, layer.name)
    if (found === undefined) missing.push(layer.name)
    for (const linear of found ?? []) {
      if (linear.d !== layer.d || linear.k !== layer.k) {
        throw new MismatchError({
          where: layer.name,
          what: 'the adapter was made for another shape of this layer',
          expected: `a weight of (${linear.d}, ${linear.k}), as in the model`,
          got: `(${layer.d}, ${layer.k})`,
        })
      }
      placed.push({ layer, linear })
    }
  }
  if (missing.length === 0) return placed
  const near = nearMisses(missing[0], byName.keys())
  const shown = missing.slice(0, 5).join(', ') + (missing.length > 5 ? `, … (${missing.length} in all)` : '')
  throw new MismatchError({
    where: 'adapter',
    what: `the model has no module for ${shown}`,
    ...(near.length > 0 ? { hint: `Nearest to the first: ${near.join(', ')}` } : {}),
  })
}

function bySuffix(byName: ReadonlyMap<string, Linear[]>, name: string): Linear[] | undefined {
  const found = [...byName.keys()].filter((other) => name.endsWith(`.${other}`) || other.endsWith(`.${name}`))
  return found.length === 1 ? byName.get(found[0]) : undefined
}
