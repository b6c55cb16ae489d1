// Which layer or replaced tensor each tensor of a PEFT file belongs to. PEFT passes over tensors that it does not expect in
// silence; here every tensor is claimed or named in an error. Keys: PEFT's docs, "checkpoint format".

import {
  attempt,
  FormatError,
  MismatchError,
  type OnProblem,
  ShapeError,
  throwProblem,
  UnsupportedError,
} from '../base/errors.js'
import { elementCount, formatShape } from '../base/tensor.js'
import type { SafetensorsFile, TensorInfo } from '../formats/safetensors.js'
import { configForLayer, type LoraConfig } from './config.js'
import { convolutionShape } from './convolution-factors.js'
import { CONFIG_FILE } from './peft-files.js'
import { KEY_PREFIX } from './peft-keys.js'
import { type ParameterTensors, takeParameters } from './peft-parameters.js'
import { baseModuleName } from './replication.js'
import { adaptedMatcher, isHeadModule } from './tied.js'

/** The tensors of one adapted module. */
export interface LayerTensors {
  readonly name: string
  readonly kind: 'linear' | 'embedding' | 'convolution'
  /** The layer's own, with its rank and alpha. */
  readonly config: LoraConfig
  /** (r, k), of an embedding (r, V), of a convolution (r, in, *kernel) */
  readonly A: TensorInfo
  /** (d, r), of an embedding (D, r), of a convolution (d, r/groups, 1…) */
  readonly B: TensorInfo
  /** (d) or (D), of a convolution (1, d, 1…); there with use_dora. */
  readonly magnitude: TensorInfo | undefined
  /** (d), there with lora_bias. */
  readonly biasB: TensorInfo | undefined
}

/** The content of a PEFT file by meaning, sorted by name with numbers as numbers. */
export interface AdapterTensors {
  readonly layers: readonly LayerTensors[]
  readonly parameters: readonly ParameterTensors[]
  /** By the base's tensor name. `key` is the file's, without the prefix. */
  readonly replacements: ReadonlyMap<
    string,
    { readonly key: string; readonly isTrained: boolean; readonly info: TensorInfo }
  >
  /** By the embedding's module name. */
  readonly tokenRows: ReadonlyMap<string, { readonly indices: readonly number[]; readonly info: TensorInfo }>
  /** Tensors that nothing claims; there are none unless problems are collected. */
  readonly unclaimed: readonly string[]
}

type Role = 'A' | 'B' | 'magnitude' | 'biasB'

/** End of a key of each kind and role. A newer PEFT's own `.weight` after a magnitude is accepted, but never written. */
const SUFFIXES: Readonly<Record<LayerTensors['kind'], Readonly<Record<'A' | 'B', string>>>> = {
  linear: { A: '.lora_A.weight', B: '.lora_B.weight' },
  convolution: { A: '.lora_A.weight', B: '.lora_B.weight' },
  embedding: { A: '.lora_embedding_A', B: '.lora_embedding_B' },
}
const VECTOR_SUFFIXES = { magnitude: '.lora_magnitude_vector', biasB: '.lora_B.bias' } as const
const ROLES: readonly (readonly [RegExp, Role, LayerTensors['kind'] | undefined])[] = [
  [/^(.+)\.lora_A\.weight$/s, 'A', 'linear'],
  [/^(.+)\.lora_B\.weight$/s, 'B', 'linear'],
  [/^(.+)\.lora_embedding_A$/s, 'A', 'embedding'],
  [/^(.+)\.lora_embedding_B$/s, 'B', 'embedding'],
  [/^(.+)\.lora_magnitude_vector(?:\.weight)?$/s, 'magnitude', undefined],
  [/^(.+)\.lora_B\.bias$/s, 'biasB', undefined],
]
const ROWS_SUFFIX = '.token_adapter.trainable_tokens_delta'

/**
 * A model's input and output embedding, as transformers calls them. PEFT saves them whole when the vocabulary was resized, and with
 * save_embedding_layers, whatever the config says.
 */
const EMBEDDING =
  /(^|\.)(embed_tokens|embed_in|embed_out|wte|word_embeddings|shared|patch_embeddings\.projection|lm_head|predictions\.decoder)\.(weight|bias)$/

export function factorKey(name: string, role: Role, kind: LayerTensors['kind'] = 'linear'): string {
  return KEY_PREFIX + name + (role === 'A' || role === 'B' ? SUFFIXES[kind][role] : VECTOR_SUFFIXES[role])
}

export function rowsKey(name: string): string {
  return KEY_PREFIX + name + ROWS_SUFFIX
}

interface Found {
  kind?: LayerTensors['kind']
  tensors: Partial<Record<Role, TensorInfo>>
}

/**
 * @param onProblem default: throws it. Where it returns, what is sound is still claimed; factors that go with each other count
 *   as sound, with their own rank, whatever the config says
 * @throws FormatError for a tensor that no layer claims and for half a pair; UnsupportedError for kinds of LoRA tensors that are
 *   not implemented; MismatchError where tensors and config disagree; ShapeError where a shape and the config's rank do
 */
export function claimTensors(
  { source, tensors }: SafetensorsFile,
  config: LoraConfig,
  onProblem: OnProblem = throwProblem,
): AdapterTensors {
  const file = source.name
  const found = new Map<string, Found>()
  const rest: TensorInfo[] = []
  for (const info of tensors.values()) {
    const key = withoutPrefix(info.name)
    const role = key === undefined ? undefined : ROLES.find(([pattern]) => pattern.test(key))
    if (key === undefined || role === undefined) {
      rest.push(info)
      continue
    }
    // With save_embedding_layers PEFT writes the magnitude of an embedding a second time, under its parameter's name.
    if (role[1] === 'magnitude' && key.endsWith('.weight') && tensors.has(info.name.slice(0, -'.weight'.length)))
      continue
    const name = role[0].exec(key)![1]
    const layer = found.get(name) ?? { tensors: {} }
    found.set(name, layer)
    if (layer.tensors[role[1]] !== undefined || (role[2] && layer.kind && role[2] !== layer.kind)) {
      onProblem(
        new FormatError({ where: `${file}: ${info.name}`, what: 'a second tensor for the same part of one module' }),
      )
      continue
    }
    layer.tensors[role[1]] = info
    layer.kind ??= role[2]
  }
  const replacements = new Map<string, { key: string; isTrained: boolean; info: TensorInfo }>()
  const tokenRows = new Map<string, { indices: readonly number[]; info: TensorInfo }>()
  const unclaimed: string[] = []
  for (const info of rest) {
    const key = withoutPrefix(info.name)
    if (key?.endsWith(ROWS_SUFFIX)) {
      const name = key.slice(0, -ROWS_SUFFIX.length)
      const indices = attempt(() => tokensOf(name, info, config, file), onProblem)
      if (indices !== undefined) tokenRows.set(name, { indices, info })
      continue
    }
    if (key !== undefined && isCopy(key, config)) continue
    const origin = key === undefined ? undefined : replacementOrigin(key, info, config, found)
    if (key === undefined || origin === undefined) {
      unclaimed.push(info.name)
      continue
    }
    const base = baseTensor(key)
    if (replacements.has(base)) {
      onProblem(new FormatError({ where: `${file}: ${info.name}`, what: `a second tensor that replaces ${base}` }))
      continue
    }
    replacements.set(base, { key, isTrained: origin === 'trained', info })
  }
  if (unclaimed.length > 0) onProblem(unclaimedError(unclaimed, file))
  if (tensors.size === 0) onProblem(new FormatError({ where: file, what: 'an adapter without a single tensor' }))
  if (config.trainableTokenIndices !== undefined && tokenRows.size === 0) {
    const expected = `MODULE${ROWS_SUFFIX}`
    onProblem(new FormatError({ where: file, what: 'no rows for trainable_token_indices', expected }))
  }
  const parameters = takeParameters(found, config, file, onProblem)
  for (const { name, A } of parameters) {
    attempt(() => baseModuleName(name, config.layerReplication, `${file}: ${A.name}`), onProblem)
  }
  const isTarget = adaptedMatcher(config)
  const layers = sorted(found).flatMap(([name, parts]) => {
    const layer = attempt(() => complete(name, parts, config, file), onProblem)
    if (layer === undefined) return []
    attempt(() => checkVectors(layer, file), onProblem)
    attempt(() => checkTarget(layer, isTarget, file), onProblem)
    attempt(() => baseModuleName(name, config.layerReplication, `${file}: ${layer.A.name}`), onProblem)
    const isSound = attempt(() => checkShapes(layer, file), onProblem)
    return isSound ? [layer] : withOwnRank(layer, file)
  })
  return {
    layers,
    parameters,
    replacements: new Map(sorted(replacements)),
    tokenRows: new Map(sorted(tokenRows)),
    unclaimed,
  }
}

function withoutPrefix(key: string): string | undefined {
  return key.startsWith(KEY_PREFIX) ? key.slice(KEY_PREFIX.length) : undefined
}

function sorted<T>(map: ReadonlyMap<string, T>): [string, T][] {
  const order = new Intl.Collator('en', { numeric: true })
  return [...map].sort(([a], [b]) => order.compare(a, b))
}

/**
 * With bias "all" PEFT saves the biases of modules_to_save a second time, under a key that holds the adapter's name, and those of
 * the base's module, which nothing reads.
 */
function isCopy(key: string, { bias, modulesToSave }: LoraConfig): boolean {
  const owner = /^(.+)\.(?:modules_to_save|original_module)\..*bias[^.]*$/s.exec(key)?.[1]
  return bias === 'all' && owner !== undefined && modulesToSave.some((entry) => owner.endsWith(entry))
}

/** Why PEFT saved a tensor that it would load in the place of the base's; undefined when it would not. */
function replacementOrigin(
  key: string,
  info: TensorInfo,
  config: LoraConfig,
  found: ReadonlyMap<string, Found>,
): 'trained' | 'embedding' | undefined {
  if (key.includes('.lora_')) return undefined
  const base = baseTensor(key)
  const module = base.slice(0, Math.max(0, base.lastIndexOf('.')))
  if (config.bias === 'all' && base.slice(module.length).includes('bias')) return 'trained'
  if (config.bias === 'lora_only' && base.endsWith('.bias') && found.has(module)) return 'trained'
  // As in PEFT, an entry is the end of a name, with or without a dot before it, and means all that is inside.
  const owners = module.split('.').map((_, i, parts) => parts.slice(0, i + 1).join('.'))
  if (config.modulesToSave.some((entry) => owners.some((owner) => owner.endsWith(entry)))) return 'trained'
  const isAdapted = found.get(module)?.kind === 'embedding' || (config.ensureWeightTying && isHeadModule(module))
  const isTable = base.endsWith('.weight') && info.shape.length === 2
  const isWhole = EMBEDDING.test(base) && (base.endsWith('.bias') ? 1 : 2) <= info.shape.length
  return isWhole || (isAdapted && isTable) ? 'embedding' : undefined
}

/** The base's name for a tensor that layers of PEFT were put around. */
function baseTensor(key: string): string {
  return key.replaceAll(/(?:\.token_adapter)?\.base_layer\./g, '.')
}

/** The rows' tokens, whose order is the rows'. */
function tokensOf(name: string, info: TensorInfo, config: LoraConfig, file: string): readonly number[] {
  const where = `${file}: ${info.name}`
  const { trainableTokenIndices } = config
  const named = Object.entries(trainableTokenIndices ?? {})
  const isTiedHead = config.ensureWeightTying && isHeadModule(name) && named.length === 1
  const tokens = Array.isArray(trainableTokenIndices)
    ? trainableTokenIndices
    : named.find(([module]) => isTiedHead || name.endsWith(module))?.[1]
  if (tokens === undefined) {
    throw new MismatchError({
      where,
      what: `no layer claims this tensor: trainable_token_indices of ${CONFIG_FILE} leave its module out`,
    })
  }
  if (info.shape.length === 2 && info.shape[0] === tokens.length) return tokens
  throw new ShapeError({
    where,
    what: 'wrong shape for the tokens of trainable_token_indices',
    expected: `(${tokens.length}, features)`,
    got: formatShape(info.shape),
  })
}

function complete(name: string, { kind, tensors }: Found, config: LoraConfig, file: string): LayerTensors {
  const { A, B, magnitude, biasB } = tensors
  const present = (A ?? B ?? magnitude ?? biasB)!
  if (kind === undefined || A === undefined || B === undefined) {
    throw new FormatError({
      where: `${file}: ${present.name}`,
      what: `half a pair: no ${factorKey(name, A === undefined ? 'A' : 'B', kind)}`,
    })
  }
  const own = kind === 'linear' && A.shape.length > 2 ? 'convolution' : kind
  return { name, kind: own, config: configForLayer(config, name), A, B, magnitude, biasB }
}

function checkVectors({ name, config, A, magnitude, biasB }: LayerTensors, file: string): void {
  const vectors: [keyof typeof VECTOR_SUFFIXES, TensorInfo | undefined, string, boolean][] = [
    ['magnitude', magnitude, 'use_dora', config.useDora],
    ['biasB', biasB, 'lora_bias', config.loraBias],
  ]
  for (const [role, info, setting, isOn] of vectors) {
    if ((info !== undefined) === isOn) continue
    throw new MismatchError({
      where: `${file}: ${info?.name ?? A.name}`,
      what: isOn
        ? `${setting} of ${CONFIG_FILE} is on, but there is no ${factorKey(name, role)}`
        : `no layer claims this tensor: ${setting} of ${CONFIG_FILE} is off`,
    })
  }
}

function unclaimedError(names: string[], file: string): FormatError | UnsupportedError {
  const other = names.find(
    (name) => name.startsWith(KEY_PREFIX) && name.includes('.lora_') && !/\.lora_[AB]\./.test(name),
  )
  if (other !== undefined) {
    return new UnsupportedError({ where: `${file}: ${other}`, what: 'this kind of LoRA tensor is not implemented' })
  }
  const shown = names.slice(0, 5).join(', ')
  return new FormatError({
    where: file,
    what: `no layer claims ${names.length === 1 ? 'the tensor' : `${names.length} tensors:`} ${shown}${names.length > 5 ? ', …' : ''}`,
    expected: `${factorKey('MODULE', 'A')} and ${factorKey('MODULE', 'B')}`,
  })
}

/** PEFT makes layers where target_modules says, and would drop the tensors of any other module in silence. */
function checkTarget({ name, config, A }: LayerTensors, isTarget: (name: string) => boolean, file: string): void {
  if (isTarget(name)) return
  throw new MismatchError({
    where: `${file}: ${A.name}`,
    what: `no layer claims this tensor: target_modules of ${CONFIG_FILE} leave its module out`,
    expected: JSON.stringify(config.targetModules).slice(0, 200),
    got: name,
  })
}

/** A layer whose shapes are wrong, as far as its factors go with each other. */
function withOwnRank({ magnitude, biasB, ...layer }: LayerTensors, file: string): LayerTensors[] {
  const { A, config } = layer
  const own = { ...layer, magnitude: undefined, biasB: undefined, config: { ...config, rank: A.shape[0] } }
  const ignore = () => undefined
  const isSound = (vectors: object) => attempt(() => checkShapes({ ...own, ...vectors }, file), ignore) === true
  if (!isSound({})) return []
  return [{ ...own, ...(isSound({ magnitude }) && { magnitude }), ...(isSound({ biasB }) && { biasB }) }]
}

function checkShapes({ kind, A, B, magnitude, biasB, config: { rank } }: LayerTensors, file: string): true {
  const isConvolution = kind === 'convolution'
  for (const tensor of [A, B]) {
    const isFitting = isConvolution || (tensor.shape.length === 2 && elementCount(tensor.shape) > 0)
    if (isFitting && (tensor === A ? tensor.shape[0] : isConvolution ? rank : tensor.shape[1]) === rank) continue
    throw new ShapeError({
      where: `${file}: ${tensor.name}`,
      what: `wrong shape for the rank that ${CONFIG_FILE} gives this layer`,
      expected: tensor === A ? `(${rank}, ${isConvolution ? 'in, *kernel' : 'k'})` : `(d, ${rank})`,
      got: formatShape(tensor.shape),
    })
  }
  if (isConvolution) convolutionShape(A.shape, B.shape, `${file}: ${A.name}`)
  const d = B.shape[0]
  const vectors: [TensorInfo | undefined, number[]][] = [
    [magnitude, isConvolution ? magnitudeShape(d, A.shape.length - 2) : [d]],
    [biasB, [d]],
  ]
  for (const [tensor, expected] of vectors) {
    if (tensor === undefined || formatShape(tensor.shape) === formatShape(expected)) continue
    throw new ShapeError({
      where: `${file}: ${tensor.name}`,
      what: 'not one number for each row of B',
      expected: formatShape(expected),
      got: formatShape(tensor.shape),
    })
  }
  return true
}

/** Of a convolution's magnitude: d by output channels. */
export function magnitudeShape(d: number, dimensions: number): number[] {
  return [1, d, ...Array<number>(dimensions).fill(1)]
}
