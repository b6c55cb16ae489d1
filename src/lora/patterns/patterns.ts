// PEFT's rules for choosing modules and ranks by name: tuners_utils.check_target_module_exists, other.get_pattern_key.

import { ConfigError } from '../../base/errors.js'
import { Matcher, type StepCount } from './expression.js'
import { type Expression, ExpressionError, parseExpression } from './parse-expression.js'

/** The longest expression. Nobody writes longer ones, and they would take long to compile. */
const MAX_PATTERN_LENGTH = 65536

const TAIL_PREFIX = parseExpression('(?:.*\\.)?')
const LAYERS_PREFIX = parseExpression('(?:^|.*?\\.)')

interface Pattern {
  test(name: string): boolean
}

/** Compiles a pattern for Python's `re.fullmatch(pattern, text)`. `where` names the option in errors. */
export function fullMatch(pattern: string, where: string, total?: StepCount): Pattern {
  const matcher = compile(pattern, where, undefined, total)
  return { test: (name) => attemptMatch(() => matcher.test(name), pattern, where) }
}

/**
 * Recognizes keys that are plain names, as most are, often with a key for each layer. Expressions take about a hundred
 * times as long.
 */
const PLAIN_KEY = /^\^?(?:[\w.-]|\\[.-]){1,1000}$/
const PRINTABLE = /^[ -~]*$/

/** Matches as PEFT's `re.match("(.*\.)?(KEY)$", modulePath)` does: KEY is the whole path, or its end after a dot. */
function tailMatch(key: string, where: string, total: StepCount): Pattern {
  const plain = PLAIN_KEY.test(key) ? plainKey(key) : undefined
  const matcher = plain === undefined ? compile(key, where, TAIL_PREFIX, total) : undefined
  return {
    test: (name) => {
      if (plain !== undefined && PRINTABLE.test(name)) return endsLike(name, plain)
      return attemptMatch(() => (matcher ?? compile(key, where, TAIL_PREFIX, total)).test(name), key, where)
    },
  }
}

/** Reads a key such as `^model\.layers.0`. A bare dot matches any character, and becomes U+0000 in `text`. */
function plainKey(key: string) {
  const isWhole = key.startsWith('^')
  const text = key
    .slice(isWhole ? 1 : 0)
    .replaceAll(/\\?[.-]/g, (character) => (character === '.' ? '\0' : character.slice(-1)))
  return { text, isWhole }
}

function endsLike(name: string, { text, isWhole }: ReturnType<typeof plainKey>): boolean {
  const start = name.length - text.length
  if (start < 0 || (start > 0 && (isWhole || name[start - 1] !== '.'))) return false
  for (let i = 0; i < text.length; i++) if (text[i] !== '\0' && text[i] !== name[start + i]) return false
  return true
}

function compile(pattern: string, where: string, prefix?: Expression, total?: StepCount): Matcher {
  return attemptMatch(
    () => {
      if (pattern.length > MAX_PATTERN_LENGTH) throw new ExpressionError(`longer than ${MAX_PATTERN_LENGTH} characters`)
      const body = parseExpression(pattern)
      return new Matcher(prefix === undefined ? body : { kind: 'sequence', items: [prefix, body] }, total)
    },
    pattern,
    where,
  )
}

function attemptMatch<T>(work: () => T, pattern: string, where: string): T {
  try {
    return work()
  } catch (cause) {
    if (!(cause instanceof ExpressionError)) throw cause
    const got = pattern.length > 200 ? `${pattern.slice(0, 200)}…` : pattern
    throw new ConfigError({ where, what: `not a regular expression that can be used: ${cause.message}`, got, cause })
  }
}

/** A table from patterns to numbers. The first pattern that matches a name counts. */
export class PatternTable {
  readonly #rows: readonly (readonly [Pattern, number])[]
  /** Loading asks for each name several times, but it should be matched only once. */
  readonly #known = new Map<string, number | undefined>()

  constructor(pattern: Readonly<Record<string, number>>, where: string, total: StepCount = { steps: 0 }) {
    this.#rows = Object.entries(pattern).map(([key, value]) => [tailMatch(key, `${where} ${key}`, total), value])
  }

  /** Throws ConfigError if matching takes too long. */
  find(moduleName: string): number | undefined {
    if (this.#known.has(moduleName)) return this.#known.get(moduleName)
    const value = this.#rows.find(([expression]) => expression.test(moduleName))?.[1]
    this.#known.set(moduleName, value)
    return value
  }
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

/**
 * Says whether targetModules is `all-linear`, in upper or lower case. Only the model knows which modules are linear.
 */
export function isAllLinear(targetModules: readonly string[] | string): boolean {
  return typeof targetModules === 'string' && targetModules.toLowerCase() === 'all-linear'
}

const counts = new WeakMap<object, StepCount>()

/** Returns the step counter that all matchers of a config share. */
export function stepsOf(config: object): StepCount {
  const count = counts.get(config) ?? { steps: 0 }
  counts.set(config, count)
  return count
}

const matchers = new WeakMap<TargetRules, (moduleName: string) => boolean>()

/**
 * Returns a test for the modules that a config adapts. With `all-linear`, every name passes that is not excluded. The
 * test is kept for the config and remembers its results, so each name is matched only once.
 */
export function targetMatcher(rules: TargetRules): (moduleName: string) => boolean {
  const result = matchers.get(rules) ?? remembered(makeTargetMatcher(rules, stepsOf(rules)))
  matchers.set(rules, result)
  return result
}

function remembered(test: (name: string) => boolean): (name: string) => boolean {
  const known = new Map<string, boolean>()
  return (name) => {
    const result = known.get(name) ?? test(name)
    known.set(name, result)
    return result
  }
}

function makeTargetMatcher(rules: TargetRules, total: StepCount): (moduleName: string) => boolean {
  const { targetModules, excludeModules = [] } = rules
  const isExcluded = nameMatcher(excludeModules, 'excludeModules', total)
  if (isAllLinear(targetModules)) return (name) => !isExcluded(name)
  const isTarget = nameMatcher(targetModules, 'targetModules', total)
  if (typeof targetModules === 'string') return (name) => isTarget(name) && !isExcluded(name)
  const isInLayers = layerMatcher(rules, total)
  return (name) => isTarget(name) && !isExcluded(name) && (targetModules.includes(name) || isInLayers(name))
}

/**
 * If `names` is a list, an entry is the name itself or its end after a dot. A string is an expression for all of it.
 */
function nameMatcher(
  names: readonly string[] | string,
  where: string,
  total: StepCount,
): (moduleName: string) => boolean {
  if (typeof names === 'string') {
    const expression = fullMatch(names, where, total)
    return (name) => names !== '' && expression.test(name)
  }
  const entries = new Set(names)
  return (name) => endsOf(name).some((end) => entries.has(end))
}

export function endsOf(name: string): string[] {
  const ends = [name]
  for (let at = name.indexOf('.'); at >= 0; at = name.indexOf('.', at + 1)) ends.push(name.slice(at + 1))
  return ends
}

function layerMatcher(rules: TargetRules, total: StepCount): (moduleName: string) => boolean {
  const { layersToTransform = [] } = rules
  const indexes = typeof layersToTransform === 'number' ? [layersToTransform] : layersToTransform
  if (indexes.length === 0) return () => true
  const indexOf = layerIndex(rules, total)
  return (name) => {
    const index = indexOf(name)
    return index !== undefined && indexes.includes(index)
  }
}

/** Returns a function that finds a module's layer index as layersToTransform counts it, or undefined if it has none. */
export function layerIndex(
  { layersPattern = [] }: TargetRules,
  total: StepCount,
): (moduleName: string) => number | undefined {
  const containers = [layersPattern].flat().filter((pattern) => pattern !== '')
  // The prefix is lazy so that the layer's index is found, and not that of an expert inside the layer.
  const finders =
    containers.length === 0
      ? [(name: string) => /^.*?\.[^.]*\.(\d+)\./.exec(name)?.[1]]
      : containers.map((container) => indexFinder(container, total))
  return (name) => {
    const index = finders.map((find) => find(name)).find((found) => found !== undefined)
    return index === undefined ? undefined : Number(index)
  }
}

/** Finds the number that PEFT finds with `re.match("(?:^|.*?\.)PATTERN\.(\d+)\.", modulePath)`. */
function indexFinder(pattern: string, total: StepCount): (moduleName: string) => string | undefined {
  const matcher = compile(pattern, 'layersPattern', LAYERS_PREFIX, total)
  return (name) => {
    const characters = Array.from(name)
    const indexAt = (end: number) => /^\.(\d+)\./.exec(characters.slice(end).join(''))?.[1]
    const end = attemptMatch(() => matcher.matchEnd(name, (at) => indexAt(at) !== undefined), pattern, 'layersPattern')
    return end === undefined ? undefined : indexAt(end)
  }
}
