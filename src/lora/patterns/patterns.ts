// PEFT's rules for choosing modules and ranks by name: tuners_utils.check_target_module_exists, other.get_pattern_key.

import { ConfigError } from '../../core/base/errors.js'
import { Expression, ExpressionError } from './expression.js'

/** The most time that matching may take for a config, in milliseconds. A thousand layers need a tenth of a second. */
const MAX_TIME = 10_000

/** The time that matching has taken for a config, in milliseconds. */
interface MatchTime {
  spent: number
}

/** Compiles a pattern for Python's `re.fullmatch(pattern, text)`. `where` names the option in errors. */
export function fullMatch(pattern: string, where: string, time: MatchTime = { spent: 0 }): (text: string) => boolean {
  const exec = compile(pattern, where, time, '', '$')
  return (text) => exec(text) !== null
}

function compile(pattern: string, where: string, time: MatchTime, before: string, after: string) {
  const expression = attempt(() => new Expression(pattern, before, after), pattern, where)
  return (text: string): RegExpExecArray | null => {
    if (time.spent > MAX_TIME)
      throw refused(new ExpressionError('it takes too long to match so many names'), pattern, where)
    const start = performance.now()
    const match = attempt(() => expression.exec(text), pattern, where)
    time.spent += performance.now() - start
    return match
  }
}

function attempt<T>(work: () => T, pattern: string, where: string): T {
  try {
    return work()
  } catch (cause) {
    throw cause instanceof ExpressionError ? refused(cause, pattern, where) : cause
  }
}

function refused(cause: ExpressionError, pattern: string, where: string): ConfigError {
  const got = pattern.length > 200 ? `${pattern.slice(0, 200)}…` : pattern
  return new ConfigError({ where, what: `not a regular expression that can be used: ${cause.message}`, got, cause })
}

/**
 * Returns a function from a module's name to the number of the first pattern that matches it. The function throws
 * ConfigError if matching takes too long.
 */
export function patternTable(
  pattern: Readonly<Record<string, number>>,
  where: string,
  time: MatchTime = { spent: 0 },
): (moduleName: string) => number | undefined {
  // PEFT's `re.match("(.*\.)?(KEY)$", name)`: KEY is the whole name, or its end after a dot.
  const rows = Object.entries(pattern).map(([key, value]) => {
    return { value, exec: compile(key, `${where} ${key}`, time, '(?:[^\\n]*\\.)?', '(?=\\n?$)') }
  })
  return remembered((name) => rows.find(({ exec }) => exec(name) !== null)?.value)
}

export interface TargetRules {
  readonly targetModules: readonly string[] | string
  readonly excludeModules?: readonly string[] | string | undefined
  readonly layersToTransform?: readonly number[] | number | undefined
  readonly layersPattern?: readonly string[] | string | undefined
}

/** Says whether an entry of modules_to_save means a module: the name, or a module above it, ends with the entry. */
export function isInsideModule(module: string, entry: string): boolean {
  return module.endsWith(entry) || module.includes(`${entry}.`)
}

/** True if targetModules is `all-linear`, in upper or lower case. Only the model knows which modules are linear. */
export function isAllLinear(targetModules: readonly string[] | string): boolean {
  return typeof targetModules === 'string' && targetModules.toLowerCase() === 'all-linear'
}

const times = new WeakMap<object, MatchTime>()

/** Returns the time that all expressions of a config share. */
export function matchTimeOf(config: object): MatchTime {
  const time = times.get(config) ?? { spent: 0 }
  times.set(config, time)
  return time
}

const matchers = new WeakMap<TargetRules, (moduleName: string) => boolean>()

/**
 * Returns a test for the modules that a config adapts. With `all-linear`, every name passes that is not excluded. The
 * test is kept for the config and remembers its results, so each name is matched only once.
 */
export function targetMatcher(rules: TargetRules): (moduleName: string) => boolean {
  const result = matchers.get(rules) ?? remembered(makeTargetMatcher(rules, matchTimeOf(rules)))
  matchers.set(rules, result)
  return result
}

/** Loading asks for each name several times, but it should be matched only once. */
function remembered<T>(match: (name: string) => T): (name: string) => T {
  const known = new Map<string, T>()
  return (name) => {
    if (!known.has(name)) known.set(name, match(name))
    return known.get(name) as T
  }
}

function makeTargetMatcher(rules: TargetRules, time: MatchTime): (moduleName: string) => boolean {
  const { targetModules, excludeModules = [] } = rules
  const isExcluded = nameMatcher(excludeModules, 'excludeModules', time)
  if (isAllLinear(targetModules)) return (name) => !isExcluded(name)
  const isTarget = nameMatcher(targetModules, 'targetModules', time)
  if (typeof targetModules === 'string') return (name) => isTarget(name) && !isExcluded(name)
  const isInLayers = layerMatcher(rules, time)
  return (name) => isTarget(name) && !isExcluded(name) && (targetModules.includes(name) || isInLayers(name))
}

/** An entry of a list is a whole name or its end after a dot. A string is an expression for the whole name. */
function nameMatcher(
  names: readonly string[] | string,
  where: string,
  time: MatchTime,
): (moduleName: string) => boolean {
  if (typeof names === 'string') {
    const expression = fullMatch(names, where, time)
    return (name) => names !== '' && expression(name)
  }
  const entries = new Set(names)
  return (name) => endsOf(name).some((end) => entries.has(end))
}

export function endsOf(name: string): string[] {
  const ends = [name]
  for (let at = name.indexOf('.'); at >= 0; at = name.indexOf('.', at + 1)) ends.push(name.slice(at + 1))
  return ends
}

function layerMatcher(rules: TargetRules, time: MatchTime): (moduleName: string) => boolean {
  const { layersToTransform = [] } = rules
  const indexes = typeof layersToTransform === 'number' ? [layersToTransform] : layersToTransform
  if (indexes.length === 0) return () => true
  const indexOf = layerIndex(rules, time)
  return (name) => {
    const index = indexOf(name)
    return index !== undefined && indexes.includes(index)
  }
}

/** Returns a function that finds a module's layer index as layersToTransform counts it, or undefined if it has none. */
export function layerIndex(
  { layersPattern = [] }: TargetRules,
  time: MatchTime,
): (moduleName: string) => number | undefined {
  const containers = [layersPattern].flat().filter((pattern) => pattern !== '')
  // The prefix is lazy so that the layer's index is found, and not that of an expert inside the layer.
  const finders =
    containers.length === 0
      ? [(name: string) => /^.*?\.[^.]*\.(\d+)\./.exec(name)?.[1]]
      : containers.map((container) => indexFinder(container, time))
  return (name) => {
    const index = finders.map((find) => find(name)).find((found) => found !== undefined)
    return index === undefined ? undefined : Number(index)
  }
}

/** Finds the number that PEFT finds with `re.match("(?:^|.*?\.)PATTERN\.(\d+)\.", modulePath)`. */
function indexFinder(pattern: string, time: MatchTime): (moduleName: string) => string | undefined {
  const exec = compile(pattern, 'layersPattern', time, '(?:[^\\n]*?\\.)??', '\\.(\\d+)\\.')
  return (name) => exec(name)?.[1]
}
