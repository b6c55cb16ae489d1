// How PEFT chooses modules and their ranks by name: lists of suffixes, and Python regular expressions, which are translated as
// far as JavaScript has the same construct. Rules: huggingface/peft, tuners_utils.check_target_module_exists and
// other.get_pattern_key.

import { ConfigError } from '../base/errors.js'

/** Longer expressions come from no person; they only cost time to compile. */
const MAX_PATTERN_LENGTH = 65536

/** Every form that differs between the two dialects, and escaped characters so that they are passed over. */
const PYTHON_FORMS = /\\A|\\Z|\\[\s\S]|\(\?P<|\(\?P=(\w+)\)|\(\?#[^)]*\)/g
const GLOBAL_FLAGS = /^\(\?([aiLmsux]+)\)/

/**
 * Python's `re.fullmatch(pattern, text)` as a RegExp to `test` with.
 *
 * @param where names the option in errors.
 * @throws ConfigError when JavaScript cannot compile it.
 */
export function fullMatch(pattern: string, where: string): RegExp {
  return compile((body) => `^(?:${body})$`, pattern, where)
}

/** PEFT's `re.match("(.*\.)?(KEY)$", modulePath)`: KEY is the whole path, or its end after a dot. */
function tailMatch(key: string, where: string): RegExp {
  return compile((body) => `^(.*\\.)?(${body})$`, key, where)
}

function compile(wrap: (body: string) => string, pattern: string, where: string): RegExp {
  const global = GLOBAL_FLAGS.exec(pattern)
  const body = pattern.slice(global?.[0].length ?? 0).replace(PYTHON_FORMS, (form, name) => {
    if (form === '\\A') return '^'
    if (form === '\\Z') return '$'
    if (form === '(?P<') return '(?<'
    if (name !== undefined) return `\\k<${name}>`
    return form.startsWith('(?#') ? '' : form
  })
  // `a` and `u` choose what \w means, which module names do not depend on.
  const flags = (global?.[1] ?? '').replace(/[au]/g, '')
  const got = pattern.length > 200 ? `${pattern.slice(0, 200)}…` : pattern
  if (pattern.length > MAX_PATTERN_LENGTH || /[^ims]/.test(flags)) {
    throw new ConfigError({ where, what: 'a regular expression that cannot be used here', got })
  }
  try {
    return new RegExp(wrap(body), flags)
  } catch (cause) {
    throw new ConfigError({ where, what: 'not a regular expression that JavaScript understands', got, cause })
  }
}

/** rankPattern and alphaPattern, compiled: the value of the first key that matches, in the keys' order. */
export class PatternTable {
  readonly #rows: readonly (readonly [RegExp, number])[]

  /** @throws ConfigError when a key does not compile. */
  constructor(pattern: Readonly<Record<string, number>>, where: string) {
    this.#rows = Object.entries(pattern).map(([key, value]) => [tailMatch(key, `${where} ${key}`), value])
  }

  find(moduleName: string): number | undefined {
    return this.#rows.find(([expression]) => expression.test(moduleName))?.[1]
  }
}

/** Which modules a config adapts. */
export interface TargetRules {
  readonly targetModules: readonly string[] | string
  readonly excludeModules?: readonly string[] | string | undefined
  readonly layersToTransform?: readonly number[] | number | undefined
  readonly layersPattern?: readonly string[] | string | undefined
}

/** `all-linear` in any case. It says nothing about a name alone: what is linear, the model has to tell. */
export function isAllLinear(targetModules: readonly string[] | string): boolean {
  return typeof targetModules === 'string' && targetModules.toLowerCase() === 'all-linear'
}

/**
 * A test of module names against a config's rules; with `all-linear` every name passes that is not excluded.
 *
 * @throws ConfigError when an expression does not compile.
 */
export function targetMatcher(rules: TargetRules): (moduleName: string) => boolean {
  const { targetModules, excludeModules = [] } = rules
  const isExcluded = nameMatcher(excludeModules, 'excludeModules')
  if (isAllLinear(targetModules)) return (name) => !isExcluded(name)
  const isTarget = nameMatcher(targetModules, 'targetModules')
  if (typeof targetModules === 'string') return (name) => isTarget(name) && !isExcluded(name)
  const isInLayers = layerMatcher(rules)
  return (name) => isTarget(name) && !isExcluded(name) && (targetModules.includes(name) || isInLayers(name))
}

/** A list: the name itself or its end after a dot. A string: an expression for the whole name. */
function nameMatcher(names: readonly string[] | string, where: string): (moduleName: string) => boolean {
  if (typeof names === 'string') {
    const expression = fullMatch(names, where)
    return (name) => names !== '' && expression.test(name)
  }
  return (name) => names.some((entry) => name === entry || name.endsWith(`.${entry}`))
}

function layerMatcher({ layersToTransform = [], layersPattern = [] }: TargetRules): (moduleName: string) => boolean {
  const indexes = typeof layersToTransform === 'number' ? [layersToTransform] : layersToTransform
  if (indexes.length === 0) return () => true
  const containers = [layersPattern].flat().filter((pattern) => pattern !== '')
  // The lazy prefix finds the layer's index; a greedy one would find an expert's further down.
  const expressions =
    containers.length === 0
      ? [/^.*?\.[^.]*\.(\d+)\./]
      : containers.map((body) =>
          compile((pattern) => `^(?:|.*?\\.)${pattern}\\.(?<layerIndex>\\d+)\\.`, body, 'layersPattern'),
        )
  return (name) => {
    const match = expressions.map((expression) => expression.exec(name)).find((result) => result !== null)
    return match != null && indexes.includes(Number(match.groups?.layerIndex ?? match[1]))
  }
}
