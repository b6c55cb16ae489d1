// Which layer each tensor of a PEFT file belongs to, or what else it is. PEFT passes over tensors that it does not expect in
// silence; here every tensor is claimed or named in an error. Keys: PEFT's docs, "checkpoint format".

import { attempt, FormatError, MismatchError, type OnProblem, ShapeError, throwProblem } from '../base/errors.js'
import { elementCount, formatShape } from '../base/tensor.js'
import type { SafetensorsFile, TensorInfo } from '../formats/safetensors.js'
import { configForFactors, configForLayer, type LoraConfig } from '../lora/config.js'
import { convolutionShape } from '../lora/kinds/convolution-factors.js'
import { baseModuleName } from '../lora/replication.js'
import { CONFIG_FILE } from './files.js'
import { KEY_PREFIX, sortedByName, withoutPrefix } from './keys.js'
import { type ParameterTensors, takeParameters } from './parameters.js'
import { type ClaimContext, type ClaimedOthers, claimOthers, rowsKey } from './replacements.js'
import { adaptedMatcher } from './tied.js'

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

/** The content of a PEFT file by meaning, layers sorted by name with numbers as numbers. */
export interface AdapterTensors extends ClaimedOthers {
  readonly layers: readonly LayerTensors[]
  readonly parameters: readonly ParameterTensors[]
}

type Role = 'A' | 'B' | 'magnitude' | 'biasB'

/** End of a key of each kind and role. A newer PEFT's own `.weight` after a magnitude is accepted, but never written. */
const SUFFIXES: Readonly<Record<LayerTensors['kind'], Readonly<Record<'A' | 'B', string>>>> = {
  linear: { A: '.lora_A.weight', B: '.lora_B.weight' },
  convolution: { A: '.lora_A.weight', B: '.lora_B.weight' },
  embedding: { A: '.lora_embedding_A', B: '.lora_embedding_B' },
}
const VECTOR_SUFFIXES = { magnitude: '.lora_magnitude_vector', biasB: '.lora_B.bias' } as const
const ROLES: readonly { readonly pattern: RegExp; readonly role: Role; readonly kind?: LayerTensors['kind'] }[] = [
  { pattern: /^(.+)\.lora_A\.weight$/s, role: 'A', kind: 'linear' },
  { pattern: /^(.+)\.lora_B\.weight$/s, role: 'B', kind: 'linear' },
  { pattern: /^(.+)\.lora_embedding_A$/s, role: 'A', kind: 'embedding' },
  { pattern: /^(.+)\.lora_embedding_B$/s, role: 'B', kind: 'embedding' },
  { pattern: /^(.+)\.lora_magnitude_vector(?:\.weight)?$/s, role: 'magnitude' },
  { pattern: /^(.+)\.lora_B\.bias$/s, role: 'biasB' },
]

/** The key in PEFT's file of a layer's factor or vector. */
export function factorKey(name: string, role: Role, kind: LayerTensors['kind'] = 'linear'): string {
  return KEY_PREFIX + name + (role === 'A' || role === 'B' ? SUFFIXES[kind][role] : VECTOR_SUFFIXES[role])
}

/** The factors and vectors of one module. A linear layer's kind is also a convolution's, until their shapes are looked at. */
interface Found {
  kind?: LayerTensors['kind']
  tensors: Partial<Record<Role, TensorInfo>>
}

/**
 * Finds out what each tensor of a file belongs to.
 *
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
  const context: ClaimContext = { config, file: source.name, onProblem }
  const { found, rest } = findFactors(tensors, context)
  const others = claimOthers(rest, found, context)
  if (tensors.size === 0) {
    onProblem(new FormatError({ where: source.name, what: 'an adapter without a single tensor' }))
  }
  if (config.trainableTokenIndices !== undefined && others.tokenRows.size === 0) {
    const expected = rowsKey('MODULE')
    onProblem(new FormatError({ where: source.name, what: 'no rows for trainable_token_indices', expected }))
  }
  const parameters = takeParameters(found, config, source.name, onProblem)
  for (const { name, A } of parameters) checkReplication(name, A, context)
  return { layers: completeLayers(found, context), parameters, ...others }
}

/** Factors and vectors by their module, and all other tensors. */
function findFactors(
  tensors: SafetensorsFile['tensors'],
  { file, onProblem }: ClaimContext,
): { found: Map<string, Found>; rest: TensorInfo[] } {
  const found = new Map<string, Found>()
  const rest: TensorInfo[] = []
  for (const info of tensors.values()) {
    const part = partOf(info)
    if (part === undefined) {
      rest.push(info)
      continue
    }
    const { module, role, kind } = part
    // With save_embedding_layers PEFT writes the magnitude of an embedding a second time, under its parameter's name.
    const isCopy = role === 'magnitude' && info.name.endsWith('.weight')
    if (isCopy && tensors.has(info.name.slice(0, -'.weight'.length))) continue
    const layer = found.get(module) ?? { tensors: {} }
    found.set(module, layer)
    if (layer.tensors[role] !== undefined || (kind && layer.kind && kind !== layer.kind)) {
      onProblem(
        new FormatError({ where: `${file}: ${info.name}`, what: 'a second tensor for the same part of one module' }),
      )
      continue
    }
    layer.tensors[role] = info
    layer.kind ??= kind
  }
  return { found, rest }
}

/** Which part of which module a tensor's key says it is. */
function partOf({ name }: TensorInfo): { module: string; role: Role; kind?: LayerTensors['kind'] } | undefined {
  const key = withoutPrefix(name)
  if (key === undefined) return undefined
  for (const { pattern, role, kind } of ROLES) {
    const module = pattern.exec(key)?.[1]
    if (module !== undefined) return { module, role, kind }
  }
  return undefined
}

function completeLayers(found: ReadonlyMap<string, Found>, context: ClaimContext): LayerTensors[] {
  const { config, file, onProblem } = context
  const isTarget = adaptedMatcher(config)
  return sortedByName(found).flatMap(([name, parts]) => {
    const layer = attempt(() => complete(name, parts, context), onProblem)
    if (layer === undefined) return []
    attempt(() => checkVectors(layer, file), onProblem)
    attempt(() => checkTarget(layer, isTarget, file), onProblem)
    checkReplication(name, layer.A, context)
    const isSound = attempt(() => checkShapes(layer, file), onProblem)
    return isSound ? [layer] : withOwnRank(layer, file)
  })
}

function checkReplication(name: string, { name: tensor }: TensorInfo, { config, file, onProblem }: ClaimContext): void {
  attempt(() => baseModuleName(name, config.layerReplication, `${file}: ${tensor}`), onProblem)
}

function complete(name: string, { kind, tensors }: Found, { config, file }: ClaimContext): LayerTensors {
  const { A, B, magnitude, biasB } = tensors
  if (kind === undefined || A === undefined || B === undefined) {
    throw new FormatError({
      where: `${file}: ${(A ?? B ?? magnitude ?? biasB)?.name ?? name}`,
      what: `half a pair: no ${factorKey(name, A === undefined ? 'A' : 'B', kind)}`,
    })
  }
  const named = configForLayer(config, name)
  const part = { name, A, B, magnitude, biasB }
  if (kind !== 'linear') return { kind, config: named, ...part }
  if (A.shape.length > 2) return { kind: 'convolution', config: named, ...part }
  return { kind, config: configForFactors(named, { weightA: A, weightB: B }), ...part }
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

/** @returns true, so that `attempt` tells a sound layer */
function checkShapes({ kind, A, B, magnitude, biasB, config: { rank } }: LayerTensors, file: string): true {
  const isConvolution = kind === 'convolution'
  const wrongFactor = (tensor: TensorInfo, expected: string) => {
    return new ShapeError({
      where: `${file}: ${tensor.name}`,
      what: `wrong shape for the rank that ${CONFIG_FILE} gives this layer`,
      expected,
      got: formatShape(tensor.shape),
    })
  }
  const isMatrix = ({ shape }: TensorInfo) => shape.length === 2 && elementCount(shape) > 0
  if (A.shape[0] !== rank || !(isConvolution || isMatrix(A))) {
    throw wrongFactor(A, `(${rank}, ${isConvolution ? 'in, *kernel' : 'k'})`)
  }
  if (isConvolution) convolutionShape(A.shape, B.shape, `${file}: ${A.name}`)
  else if (B.shape[1] !== rank || !isMatrix(B)) throw wrongFactor(B, `(d, ${rank})`)
  const d = B.shape[0]
  checkVector(magnitude, isConvolution ? magnitudeShape(d, A.shape.length - 2) : [d], file)
  checkVector(biasB, [d], file)
  return true
}

function checkVector(tensor: TensorInfo | undefined, expected: readonly number[], file: string): void {
  if (tensor === undefined || formatShape(tensor.shape) === formatShape(expected)) return
  throw new ShapeError({
    where: `${file}: ${tensor.name}`,
    what: 'not one number for each row of B',
    expected: formatShape(expected),
    got: formatShape(tensor.shape),
  })
}

/** The shape of a convolution's magnitude, (1, d, 1…), for so many dimensions of the kernel. */
export function magnitudeShape(d: number, dimensions: number): number[] {
  return [1, d, ...Array<number>(dimensions).fill(1)]
}
