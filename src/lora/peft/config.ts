// Converts between PEFT's adapter_config.json (tuners/lora/config.py, 0.21) and LoraConfig. A field that changes what
// the weights mean and is not implemented is refused by name. Fields without effect on the result are kept unchanged.

import { ConfigError, FormatError, LowrankError, UnsupportedError } from '../../core/base/errors.js'
import { type JsonValue, parseJson, toPlain } from '../../files/json.js'
import { type LoraConfig, type LoraConfigInput, resolveConfig } from '../config.js'
import { LORA_CONFIG } from '../gen/options.js'
import { type Init, isPissaNiter } from '../init/inits.js'
import { patternTable } from '../patterns/patterns.js'

/** PEFT's names of settings, if they differ from ours in more than snake case. */
const OWN_NAMES: Readonly<Record<string, string>> = {
  rank: 'r',
  alpha: 'lora_alpha',
  dropout: 'lora_dropout',
  baseModel: 'base_model_name_or_path',
}
const NAMES = new Map(
  Object.keys(LORA_CONFIG)
    .filter((name) => !['init', 'seed', 'peftFields'].includes(name))
    .map((name) => [OWN_NAMES[name] ?? name.replace(/[A-Z]/g, '_$&').toLowerCase(), name as keyof LoraConfig]),
)

/** Fields that concern only initialization, training speed, bookkeeping, or fields that are refused below. */
const WITHOUT_EFFECT: ReadonlySet<string> = new Set([
  ...'auto_mapping corda_config eva_config inference_mode loftq_config lora_ga_config megatron_config'.split(' '),
  ...'megatron_core peft_type peft_version qalora_group_size revision runtime_config velora_config'.split(' '),
])

const UNSUPPORTED: ReadonlySet<string> = new Set([
  ...'arrow_config enable_lora kasa_config alora_invocation_tokens layer_replication monteclora_config'.split(' '),
  ...'peft_type use_bdlora use_qalora'.split(' '),
])

/** Fields that even an empty object turns on, because PEFT fills in its defaults. */
const ON_WHEN_EMPTY: ReadonlySet<string> = new Set(['arrow_config', 'kasa_config', 'monteclora_config', 'use_bdlora'])

/** Fields that must be present, because the scaling depends on them. */
const REQUIRED = ['r', 'lora_alpha'] as const

/** Fields of PEFT before 0.3, which are not saved. Layers with `enable_lora` contain factors of several matrices. */
const RETIRED: ReadonlySet<string> = new Set(['enable_lora', 'merge_weights'])

const INIT_FIELD = 'init_lora_weights'

/** The values of init_lora_weights. `loftq` is not supported, because it belongs to a quantized base. */
const INIT_VALUES: ReadonlyMap<unknown, Init> = new Map<unknown, Init>([
  [true, 'kaiming-uniform'],
  [false, 'random'],
  [null, 'random'],
  ...(['gaussian', 'orthogonal', 'pissa', 'olora', 'mica', 'eva', 'corda'] as const).map(
    (init) => [init, init] as const,
  ),
  ['lora_ga', 'lora-ga'],
])

function initOf(value: unknown): Init | undefined {
  const init = typeof value === 'string' ? value.toLowerCase() : value
  const known = INIT_VALUES.get(init)
  if (known !== undefined || typeof init !== 'string') return known
  const hyphenated = init.replaceAll('_', '-')
  return isPissaNiter(hyphenated) ? hyphenated : undefined
}

/** Returns PEFT's value for an init. PEFT has no `normal`; its default is closest. */
function peftInit(init: Init): unknown {
  if (init === 'normal' || init === 'kaiming-uniform') return true
  return init === 'random' ? false : init.replaceAll('-', '_')
}

/**
 * Parses a config. If target_modules is missing, PEFT takes it from a table of architectures; here it becomes
 * `all-linear`, because the tensors show which modules are adapted. `unknown` has an error for each field that PEFT
 * 0.21 does not know and would ignore with a warning.
 */
export function parsePeftConfig(bytes: Uint8Array, file: string) {
  const json = parseJson(bytes, file, { isLoose: true })
  if (!(json instanceof Map)) throw new FormatError({ where: file, what: 'not a JSON object' })
  const fields = new Map([...json].flatMap(([key, value]) => (RETIRED.has(key) ? [] : [[key, plainField(key, value)]])))
  const stacked = json.get('enable_lora') ?? null
  const problems = stacked === null ? [] : [unsupported(file, 'enable_lora', toPlain(stacked))]
  if (!fields.has('peft_type')) {
    throw withoutType(fields, file)
  }
  problems.push(...unsupportedFields(fields, file))
  // PEFT would use 8 for a missing value. If the adapter was trained with another value, nobody would notice the error.
  const missing = REQUIRED.find((key) => (fields.get(key) ?? null) === null)
  if (missing !== undefined) {
    throw new ConfigError({
      where: `${file}: ${missing}`,
      what: 'missing',
      expected: 'the value that the adapter was trained with',
      hint: 'Every version of PEFT writes it, so the file is not complete',
    })
  }
  return { config: resolveForFile(inputOf(fields), file), problems, unknown: unknownFields(fields, file) }
}

/** Makes the error for a config without peft_type. mlx-lm also writes a file of this name. */
function withoutType(fields: ReadonlyMap<string, unknown>, file: string): LowrankError {
  if (fields.has('lora_parameters') || fields.has('fine_tune_type')) {
    return new UnsupportedError({
      where: file,
      what: 'the config of an adapter of mlx-lm, which has other names and factors the other way round than PEFT',
      expected: 'the adapter_config.json of a PEFT adapter',
      hint: 'Make a PEFT folder of it first',
    })
  }
  return new ConfigError({ where: file, what: 'no peft_type', expected: 'the adapter_config.json of a PEFT adapter' })
}

function inputOf(fields: ReadonlyMap<string, unknown>): LoraConfigInput {
  const input: Record<string, unknown> = {
    targetModules: 'all-linear',
    init: fields.has(INIT_FIELD) ? initOf(fields.get(INIT_FIELD)) : 'kaiming-uniform',
  }
  const others: [string, unknown][] = []
  for (const [key, value] of fields) {
    const name = NAMES.get(key)
    if (name === undefined && key !== INIT_FIELD) others.push([key, value])
    else if (name !== undefined && value !== null && !isEmpty(key, value)) input[name] = value
  }
  return { ...(input as LoraConfigInput), peftFields: Object.fromEntries(others) }
}

/** Keeps the order of patterns in the file. In an object, JavaScript would put keys such as "1" first. */
function plainField(key: string, value: JsonValue): unknown {
  const isPattern = key === 'rank_pattern' || key === 'alpha_pattern'
  return isPattern && value instanceof Map
    ? new Map([...value].map(([name, item]) => [name, toPlain(item)]))
    : toPlain(value)
}

/** Settings that PEFT treats as missing if they are empty. */
const UNSET_WHEN_EMPTY: ReadonlySet<string> = new Set(['layers_pattern', 'trainable_token_indices'])

function isEmpty(key: string, value: unknown): boolean {
  if (!UNSET_WHEN_EMPTY.has(key)) return false
  return value === '' || (typeof value === 'object' && value !== null && Object.keys(value).length === 0)
}

function resolveForFile(input: LoraConfigInput, file: string): LoraConfig {
  try {
    return resolveConfig(input)
  } catch (error) {
    if (!(error instanceof LowrankError)) throw error
    const [name, ...rest] = (error.where ?? '').split(' ')
    const key = name === 'init' ? INIT_FIELD : ([...NAMES].find(([, camelCase]) => camelCase === name)?.[0] ?? name)
    const { what, expected, got, hint } = error
    throw new ConfigError({ where: `${file}: ${[key, ...rest].join(' ')}`, what, expected, got, hint, cause: error })
  }
}

/** Returns an error for each unsupported field. Throws for methods other than LoRA. */
function unsupportedFields(fields: ReadonlyMap<string, unknown>, file: string): UnsupportedError[] {
  const type = fields.get('peft_type')
  if (type !== 'LORA') throw unsupported(file, 'peft_type', type, 'LORA')
  return [...fields].flatMap(([key, value]) => {
    if (NAMES.has(key) || WITHOUT_EFFECT.has(key)) return []
    if (key !== INIT_FIELD) return isOff(key, value) || !UNSUPPORTED.has(key) ? [] : [unsupported(file, key, value)]
    const known = [...INIT_VALUES.keys(), 'pissa_niter_N'].join(', ')
    return initOf(value) === undefined ? [unsupported(file, key, value, known)] : []
  })
}

function unknownFields(fields: ReadonlyMap<string, unknown>, file: string): UnsupportedError[] {
  return [...fields].flatMap(([key, value]) => {
    if (NAMES.has(key) || WITHOUT_EFFECT.has(key) || UNSUPPORTED.has(key) || key === INIT_FIELD) return []
    if (isOff(key, value)) return []
    return new UnsupportedError({
      where: `${file}: ${key}`,
      what: 'an unknown setting: PEFT 0.21 ignores it',
      got: (JSON.stringify(value) ?? 'nothing').slice(0, 200),
      hint: 'If it is of a newer PEFT, the weights may mean something else',
    })
  })
}

/** Says whether a field is off. PEFT's defaults for new fields are empty, so an empty field is off. */
function isOff(key: string, value: unknown): boolean {
  if (value === null || value === false || value === '') return true
  if (Array.isArray(value)) return value.length === 0
  return typeof value === 'object' && Object.keys(value).length === 0 && !ON_WHEN_EMPTY.has(key)
}

function unsupported(file: string, key: string, value: unknown, expected?: string): UnsupportedError {
  return new UnsupportedError({
    where: `${file}: ${key}`,
    what: 'a setting that changes what the weights mean and is not implemented',
    expected,
    got: (JSON.stringify(value) ?? 'nothing').slice(0, 200),
  })
}

/** Formats a config as PEFT writes it, with sorted keys and an indent of 2. */
export function formatPeftConfig(
  config: LoraConfig,
  targetModules: readonly string[] | string,
  targetParameters: readonly string[],
  layerNames: readonly string[],
): string {
  const fields: Record<string, unknown> = {
    revision: null,
    ...config.peftFields,
    [INIT_FIELD]: peftInit(config.init),
    inference_mode: true,
    alora_invocation_tokens: null,
    layer_replication: null,
    peft_type: 'LORA',
  }
  for (const [key, name] of NAMES) fields[key] = config[name] ?? null
  if (config.modulesToSave.length === 0) fields.modules_to_save = null
  fields.target_modules = targetModules
  fields.target_parameters = targetParameters.length === 0 ? null : targetParameters
  const [refused] = unsupportedFields(new Map(Object.entries(fields)), 'LoraConfig')
  if (refused !== undefined) throw refused
  const sorted = sortKeys(fields) as Record<string, unknown>
  sorted.rank_pattern = sortPattern(config.rankPattern, layerNames)
  sorted.alpha_pattern = sortPattern(config.alphaPattern, layerNames)
  return JSON.stringify(sorted, null, 2)
}

/** Sorts patterns as PEFT does, unless that changes which pattern is the first to match a layer. */
function sortPattern(pattern: Readonly<Record<string, number>>, layerNames: readonly string[]): unknown {
  const sorted = sortKeys(pattern) as Record<string, number>
  const [before, after] = [patternTable(pattern, 'pattern'), patternTable(sorted, 'pattern')]
  return layerNames.every((name) => before(name) === after(name)) ? sorted : pattern
}

function sortKeys(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sortKeys)
  if (typeof value !== 'object' || value === null) return value
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))
  return Object.fromEntries(entries.map(([key, item]) => [key, sortKeys(item)]))
}
