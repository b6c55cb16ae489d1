// Finds out which adapted parameter (target_parameters) the factors of a PEFT file belong to. Their keys never contain
// the parameter's name. PEFT wraps a module once for each adapted parameter, in the order in which the model's code
// registers them. The last parameter has the module's key, and each earlier parameter has another `.base_layer` in it
// (tuners_utils._inject_parameters, lora.ParamWrapper).

import { attempt, FormatError, type LowrankError, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { groupBy } from '../../core/base/group.js'
import { configForLayer, type LoraConfig } from '../config.js'
import { moduleOf, type ParameterView } from '../part.js'
import { isAllLinear, targetMatcher } from '../patterns/patterns.js'
import { CONFIG_FILE } from './file-names.js'
import { type AdapterTensor, wrongShape } from './keys.js'

const WRAPPED = '.base_layer'

interface FoundFactors {
  readonly tensors: Readonly<Partial<Record<string, AdapterTensor>>>
}

/** The order in which modules of transformers 5 register them. It matters only for names that share a module. */
const REGISTRATION_ORDER =
  'weight bias w1 v1 gate_up_proj gate_up_proj_bias gate_proj up_proj down_proj down_proj_bias w2'.split(' ')

function registrationOrder(parameters: readonly string[], where: string): readonly string[] {
  const unknown = parameters.find((name) => !REGISTRATION_ORDER.includes(name))
  if (parameters.length > 1 && unknown !== undefined) {
    throw new UnsupportedError({
      where,
      what: `several parameters of one module, ${unknown} among them: PEFT tells them apart by the order in which the model's code registers them, which is not known here`,
      expected: REGISTRATION_ORDER.join(', '),
      got: parameters.join(', '),
    })
  }
  return [...parameters].sort((a, b) => REGISTRATION_ORDER.indexOf(a) - REGISTRATION_ORDER.indexOf(b))
}

/** Returns the keys for a module's parameters, in the order of registration. */
function wrappedNames(module: string, count: number): string[] {
  return Array.from({ length: count }, (_, i) => module + WRAPPED.repeat(count - 1 - i))
}

export function parameterKeys(names: Iterable<string>): Map<string, string> {
  const result = new Map<string, string>()
  for (const [module, inModule] of groupBy(names, moduleOf)) {
    const keys = wrappedNames(module, inModule.length)
    const parameters = inModule.map((name) => name.slice(module.length + 1))
    for (const [i, parameter] of registrationOrder(parameters, module).entries()) {
      result.set(`${module}.${parameter}`, keys[i])
    }
  }
  return result
}

/** Returns the config's target_parameters if they mean exactly these parameters, or else their full names. */
export function savedParameters(entries: readonly string[], names: readonly string[]): readonly string[] {
  const isMeant = [...groupBy(names, moduleOf)].every(([module, inModule]) => {
    const meant = meantParameters(module, inModule.length, entries)
    return inModule.every((name) => meant.includes(name.slice(module.length + 1)))
  })
  return isMeant ? entries : names
}

/** Returns the parameters of a module that entries may mean. An entry without a dot may mean any module's parameter. */
function candidates(module: string, entries: readonly string[], isDotted: boolean): string[] {
  const found = new Set<string>()
  for (const entry of entries) {
    const parameter = entry.slice(entry.lastIndexOf('.') + 1)
    const name = `${module}.${parameter}`
    if (entry.includes('.') === isDotted && (name === entry || name.endsWith(`.${entry}`))) found.add(parameter)
  }
  return [...found]
}

/** Returns which `count` parameters of a module are adapted. The number of names differs if that is not clear. */
function meantParameters(module: string, count: number, entries: readonly string[]): readonly string[] {
  const certain = candidates(module, entries, true)
  return certain.length >= count ? certain : [...new Set([...certain, ...candidates(module, entries, false)])]
}

/** Takes the factors of parameters out of `found`. Its keys are module names, with any `.base_layer` in them. */
export function takeParameters(
  found: Map<string, FoundFactors>,
  config: LoraConfig,
  file: string,
): { parts: ParameterView<AdapterTensor>[]; problems: LowrankError[] } {
  const parts: ParameterView<AdapterTensor>[] = []
  const problems: LowrankError[] = []
  const modules = new Map<string, number>()
  for (const key of found.keys()) {
    let module = key
    let depth = 0
    for (; module.endsWith(WRAPPED); depth++) module = module.slice(0, -WRAPPED.length)
    modules.set(module, Math.max(depth, modules.get(module) ?? 0))
  }
  const isTarget = targetMatcher(config)
  const isNamed = (name: string) => !isAllLinear(config.targetModules) && isTarget(name)
  for (const [module, depth] of modules) {
    const levels = wrappedNames(module, depth + 1).map((key) => ({ key, tensors: found.get(key)?.tensors }))
    const outermost = levels[depth].tensors
    if (depth === 0 && !isParameter(module, outermost, config, isNamed(module))) continue
    const { value: names, problems: unclear } = attempt(() => assign(module, levels, config, file))
    problems.push(...unclear)
    for (const [i, { key, tensors = {} }] of levels.entries()) {
      found.delete(key)
      if (names === undefined) continue
      const completed = attempt(() => complete(`${module}.${names[i]}`, key, tensors, config, file))
      problems.push(...completed.problems)
      if (completed.value !== undefined) parts.push(completed.value)
    }
  }
  return { parts, problems }
}

/**
 * True if a key that looks like a linear layer's belongs to a parameter: target_parameters may name the module, or only
 * the parameter.
 */
function isParameter(
  module: string,
  tensors: FoundFactors['tensors'] | undefined,
  config: LoraConfig,
  isNamed: boolean,
): boolean {
  const entries = config.targetParameters
  if (candidates(module, entries, true).length > 0) return true
  const [bare] = candidates(module, entries, false)
  if (bare === undefined || isNamed) return false
  // Any module may have a parameter of that name. The rows of A tell a linear layer from several experts.
  const ranks = tensors?.weightA?.shape[0] ?? 0
  return !isAllLinear(config.targetModules) || ranks > configForLayer(config, `${module}.${bare}`).rank
}

function assign(
  module: string,
  levels: readonly Partial<FoundFactors>[],
  config: LoraConfig,
  file: string,
): readonly string[] {
  const names = meantParameters(module, levels.length, config.targetParameters)
  const shown = levels.find(({ tensors }) => tensors?.weightA !== undefined)?.tensors?.weightA?.name ?? module
  if (names.length !== levels.length) {
    throw new MismatchError({
      where: `${file}: ${shown}`,
      what: `no parameter claims this tensor: target_parameters of ${CONFIG_FILE} mean ${names.length} of ${module}, the file has ${levels.length}`,
      expected: JSON.stringify(config.targetParameters).slice(0, 200),
      got: module,
    })
  }
  return registrationOrder(names, `${file}: ${shown}`)
}

function complete(
  name: string,
  key: string,
  { weightA, weightB, ...others }: FoundFactors['tensors'],
  config: LoraConfig,
  file: string,
): ParameterView<AdapterTensor> {
  const unexpected = Object.values(others).find((info) => info !== undefined)
  if (unexpected !== undefined) {
    throw new FormatError({ where: `${file}: ${unexpected.name}`, what: `a parameter (${name}) has no such tensor` })
  }
  if (weightA === undefined || weightB === undefined) {
    throw new FormatError({
      where: `${file}: ${(weightA ?? weightB)?.name ?? key}`,
      what: `half a pair: no lora_${weightA === undefined ? 'A' : 'B'} of ${key}, for ${name}`,
    })
  }
  const parameterConfig = configForLayer(config, name)
  const ranks = weightA.shape[0]
  if (weightA.shape.length !== 2 || weightA.shape.includes(0) || ranks % parameterConfig.rank !== 0) {
    const what = `wrong shape for the rank that ${CONFIG_FILE} gives ${name}`
    throw wrongShape(weightA, file, what, `(experts · ${parameterConfig.rank}, k)`)
  }
  if (weightB.shape.length !== 2 || weightB.shape[0] === 0 || weightB.shape[1] !== ranks) {
    throw wrongShape(weightB, file, `wrong shape for the factor A of ${name}`, `(d, ${ranks})`)
  }
  return {
    kind: 'parameter',
    name,
    module: moduleOf(name),
    config: parameterConfig,
    experts: ranks / parameterConfig.rank,
    tensors: { weightA, weightB },
  }
}
