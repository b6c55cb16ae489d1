// Finds the linear layers that a configuration or an adapter names.

import { ConfigError, didYouMean, listed, MismatchError, nearMisses } from '../../core/base/errors.js'
import { groupBy } from '../../core/base/group.js'
import { isAllLinear, type TargetRules, targetMatcher } from '../../lora/patterns/patterns.js'
import { ATTENTION } from './forms/attention.js'
import type { Linear, NamedLayer } from './linears.js'
import { nameOfModule } from './module-names.js'
import { partNames } from './packed.js'

/** Modules that a model lacks if its head does not read them. */
export const POOLER = /(^|\.)pooler(\.|$)/

/**
 * Finds the layers to adapt. `all-linear` leaves out the output embedding and takes the parts of a fused layer. A list
 * can also name the fused layer, as in models that have it as one module.
 */
export function matchTargets(linears: readonly Linear[], rules: TargetRules): Linear[] {
  const { targetModules } = rules
  if (targetModules.length === 0) {
    throw new ConfigError({
      where: 'targetModules',
      what: 'it is empty, so that nothing would be adapted',
      hint: 'Use all-linear, or names such as q_proj',
    })
  }
  const candidates = typeof targetModules === 'string' ? linears : [...linears, ...wholeModules(linears)]
  if (typeof targetModules !== 'string') {
    for (const entry of targetModules) {
      const isMatch = targetMatcher({ targetModules: [entry] })
      const found = candidates.filter(({ name }) => isMatch(name))
      nonEmpty(found, entry, linears)
    }
  }
  const isMatch = targetMatcher(rules)
  const skipsHead = isAllLinear(targetModules)
  const found = candidates.filter(({ name, isHead }) => isMatch(name) && !(isHead && skipsHead))
  return nonEmpty(found, [targetModules].flat().join(','), linears)
}

/** Fused layers as whole modules, such as Phi-3's qkv_proj; not layers that ONNX Runtime's optimizer packed. */
function wholeModules(linears: readonly Linear[]): Linear[] {
  return linears.flatMap((linear) => {
    const { fused, form } = linear
    return fused?.start === 0 && form !== ATTENTION
      ? [{ ...linear, name: fused.module, d: fused.width, fused: undefined }]
      : []
  })
}

function nonEmpty(found: Linear[], wanted: string, linears: readonly Linear[]): Linear[] {
  if (found.length > 0) return found
  const names = [...new Set(linears.map(({ name }) => name))]
  const lastParts = [...new Set(names.map((name) => name.slice(name.lastIndexOf('.') + 1)))]
  throw new MismatchError({
    where: 'targetModules',
    what: `no module of the model matches ${JSON.stringify(wanted)}`,
    ...(names.length === 0 ? { got: 'a graph without linear layers' } : {}),
    hint:
      didYouMean(wanted, ['all-linear'], 1) ??
      didYouMean(wanted, [...lastParts, ...names], 3) ??
      `The model's linear layers are ${lastParts.slice(0, 12).join(', ')}`,
  })
}

/**
 * Matches layers by {@link nameOfModule}. Throws MismatchError if layers have no module, naming them all, or if a shape
 * differs.
 */
export function matchLayers<T extends NamedLayer>(linears: readonly Linear[], layers: Iterable<T>) {
  const finder = moduleFinder(linears)
  const placed: { layer: T; linear: Linear }[] = []
  const names: string[] = []
  const missing: string[] = []
  for (const layer of layers) {
    const found = finder.find(layer.name)
    names.push(layer.name)
    if (found === undefined) missing.push(layer.name)
    for (const linear of found ?? []) {
      if (linear.d !== layer.d || linear.k !== layer.k) {
        throw new MismatchError({
          where: layer.name,
          what: 'the adapter does not fit this model: it has another shape for this layer',
          expected: `a weight of (${linear.d}, ${linear.k}), as in the model`,
          got: `(${layer.d}, ${layer.k})`,
        })
      }
      placed.push({ layer, linear })
    }
  }
  if (missing.length === 0) return placed
  throw missingError(missing, finder.names, names)
}

export function moduleFinder(linears: readonly Linear[]) {
  const byName = groupBy([...linears, ...wholeModules(linears)], ({ name }) => name)
  const names = new Set(byName.keys())
  const findOne = (name: string) => byName.get(nameOfModule(names, name) ?? '')
  const findParts = (name: string) => {
    const parts = partNames(name)?.map(findOne) ?? [undefined]
    return parts.includes(undefined) ? undefined : (parts as Linear[][]).flat()
  }
  return { names: [...names], find: (name: string) => findOne(name) ?? findParts(name) }
}

const SHOWN = 8

/** `names`: all layers of the adapter. `graphs`: names of the model's graphs, if it has several. */
export function missingError(
  missing: readonly string[],
  modules: Iterable<string>,
  names: readonly string[],
  graphs: readonly string[] = [],
): MismatchError {
  const known = [...modules]
  const borrowed = missing.filter((name) => readsOthersKeys(name, known))
  if (borrowed.length > 0) {
    return new MismatchError({
      where: 'adapter',
      what: `the model has no module for ${listed(borrowed, 'layers')}: these layers read the keys and values of an earlier layer`,
      hint: 'Train the adapter on the model itself, which has no such modules there either, or leave them out with `allowMissing`',
    })
  }
  const near = nearMisses(missing[0], known)
  const lack = graphs.length > 1 ? `none of the model's graphs (${graphs.join(', ')}) has a` : 'the model has no'
  const hints = near.length > 0 ? [`Nearest to the first: ${near.join(', ')}`] : []
  const rest = withoutMissing(missing, names, known)
  const renamed = missing.filter((name) => isRenamed(name, known))
  if (rest !== undefined) hints.push(rest)
  else if (renamed.length > 0 && !hasKindsOf(missing, names)) hints.push(RENAMED)
  else if (near.length === 0 || missing.length < names.length) {
    const how = missing.length < names.length ? 'Layers of the same kinds are' : "None of the adapter's layers is"
    hints.push(`${how} in this model: give the model that the adapter was trained for`)
  }
  return new MismatchError({
    where: 'adapter',
    what: `${lack} module for ${kindsOf(missing)}`,
    ...(hints.length > 0 ? { hint: hints.join('. ') } : {}),
  })
}

/** True if a layer of the model has a query, but neither key nor value: the last layers of Gemma 3n and 4. */
function readsOthersKeys(name: string, modules: readonly string[]): boolean {
  const [, attention] = /^(.*\.)[kv]_proj$/.exec(name) ?? []
  const has = (projection: string) => nameOfModule(new Set(modules), `${attention}${projection}`) !== undefined
  return attention !== undefined && has('q_proj') && !has('k_proj') && !has('v_proj')
}

/** Modules of blocks that exports drop. */
const DROPPED = /(^|[._])(experts?|gate|router)(\.|$)/
const RENAMED =
  'Exports do not drop such modules, so this one has them under other names, or in operators that cannot be adapted. Use an export by another tool'

/** True if the model has the module's block, and exports keep such modules: without it, a part of the block is lost. */
function isRenamed(name: string, modules: readonly string[]): boolean {
  const block = blockOf(name)
  const isSame = (other: string) => block === other || block?.endsWith(`.${other}`) || other.endsWith(`.${block}`)
  return block !== undefined && !DROPPED.test(name) && modules.some((module) => isSame(blockOf(module) ?? ''))
}

/** The block of a module, such as model.layers.0. */
const blockOf = (name: string) => /^(?:.*?\.)?\w+\.\d+(?=\.)/.exec(name)?.[0]

/**
 * Suggests `allowMissing`. Returns undefined if other layers of the same kinds are there, as if the model had too few
 * layers, or if the model has the blocks of the missing ones.
 */
export function withoutMissing(
  missing: readonly string[],
  names: readonly string[],
  modules: readonly string[],
): string | undefined {
  const rest = names.filter((name) => !missing.includes(name))
  if (rest.length === 0 || hasKindsOf(missing, names) || missing.some((name) => isRenamed(name, modules))) {
    return undefined
  }
  const it = missing.length === 1 ? 'it' : 'them'
  return `The export may have dropped ${it}, as exports drop poolers, routers of experts and contact heads. Use an export that has ${it}, or leave ${it} out with \`allowMissing\`: the rest of the adapter is ${kindsOf(rest)}`
}

/** True if the adapter has other layers of the same kinds. */
function hasKindsOf(missing: readonly string[], names: readonly string[]): boolean {
  const kinds = new Set(missing.map(kindOf))
  return names.some((name) => !missing.includes(name) && kinds.has(kindOf(name)))
}

const kindOf = (name: string) => name.replace(/(?<=^|\.)\d+(?=\.|$)/g, '*')

/** Lists names by kind, such as `model.layers.*.mlp.up_proj (24)`. */
function kindsOf(names: readonly string[]): string {
  const kinds = [...groupBy(names, kindOf)].map(([kind, members]) =>
    members.length > 1 ? `${kind} (${members.length})` : members[0],
  )
  return kinds.slice(0, SHOWN).join(', ') + (kinds.length > SHOWN ? `, … (${names.length} in all)` : '')
}
