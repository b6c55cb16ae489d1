// Finds out which part of an adapter each tensor of a PEFT file belongs to (PEFT's docs, "checkpoint format"): every
// tensor is used or named in an error.

import { attempt, FormatError, type LowrankError, MismatchError } from '../../core/base/errors.js'
import { elementCount, formatShape } from '../../core/base/tensor.js'
import { configForFactors, configForLayer, type LoraConfig } from '../config.js'
import { convolutionShape } from '../kinds/convolution-factors.js'
import type { FactorTensors, FactorView, PartView, TensorRole } from '../part.js'
import { CONFIG_FILE } from './file-names.js'
import { type AdapterTensor, KEY_PREFIX, rowsKey, sortedByName, withoutPrefix, wrongShape } from './keys.js'
import type { ClaimContext } from './replacements.js'
import { adaptedMatcher } from './tied.js'

export type OpenPart = PartView<AdapterTensor>

/** The tensors of an adapted module. A convolution's magnitude is (1, d, 1…). */
type LayerPart = FactorView<AdapterTensor>

type FactorRole = keyof FactorTensors<AdapterTensor>
type LayerKind = LayerPart['kind']

/**
 * The ends of tensor names. Convolutions have the names of linear layers. Newer versions of PEFT add `.weight` to a
 * magnitude's name, which is read but never written.
 */
const ENDS: readonly { readonly role: FactorRole; readonly kind?: LayerKind; readonly end: string }[] = [
  { role: 'weightA', kind: 'linear', end: '.lora_A.weight' },
  { role: 'weightB', kind: 'linear', end: '.lora_B.weight' },
  { role: 'weightA', kind: 'embedding', end: '.lora_embedding_A' },
  { role: 'weightB', kind: 'embedding', end: '.lora_embedding_B' },
  { role: 'magnitude', end: '.lora_magnitude_vector' },
  { role: 'biasB', end: '.lora_B.bias' },
]

export function factorKey(name: string, role: TensorRole, kind: LayerKind = 'linear'): string {
  const keyKind = kind === 'convolution' ? 'linear' : kind
  return KEY_PREFIX + name + ENDS.find((entry) => entry.role === role && (entry.kind ?? keyKind) === keyKind)!.end
}

/** The tensors found for a module. Convolutions count as linear until the shapes are known. */
interface Found {
  kind?: LayerKind
  tensors: Partial<Record<FactorRole, AdapterTensor>>
}

/**
 * Sorts a file's tensors into parts, and collects all problems instead of throwing the first. Sound tensors become
 * parts even if the others have problems, and keep their rank even if the config contradicts it. The parts are layers,
 * then experts, replaced tensors and rows of tokens. Each group is sorted by name, with numbers in numeric order.
 */
export async function claimTensors(tensors: ReadonlyMap<string, AdapterTensor>, config: LoraConfig, file: string) {
  const context: ClaimContext = { config, file }
  const { found, rest, problems: doubles } = findFactors(tensors, file)
  const others =
    rest.length === 0
      ? { parts: [], notes: [], problems: [] }
      : (await import('./replacements.js')).claimOthers(rest, found, context)
  const problems = [...doubles, ...others.problems]
  if (tensors.size === 0) {
    problems.push(new FormatError({ where: file, what: 'an adapter without a single tensor' }))
  }
  if (config.trainableTokenIndices !== undefined && !others.parts.some(({ kind }) => kind === 'token-rows')) {
    const expected = rowsKey('MODULE')
    problems.push(new FormatError({ where: file, what: 'no rows for trainable_token_indices', expected }))
  }
  const experts =
    config.targetParameters.length === 0
      ? { parts: [], problems: [] }
      : (await import('./parameters.js')).takeParameters(found, config, file)
  const layers = completeLayers(found, context)
  return {
    parts: [...layers.parts, ...experts.parts, ...others.parts],
    notes: others.notes,
    problems: [...problems, ...experts.problems, ...layers.problems],
  }
}

function findFactors(tensors: ReadonlyMap<string, AdapterTensor>, file: string) {
  const found = new Map<string, Found>()
  const rest: AdapterTensor[] = []
  const problems: LowrankError[] = []
  for (const info of tensors.values()) {
    const part = partOf(info)
    if (part === undefined) {
      rest.push(info)
      continue
    }
    const { module, role, kind } = part
    // With save_embedding_layers, PEFT writes an embedding's magnitude a second time, under the parameter's name.
    const isCopy = role === 'magnitude' && info.name.endsWith('.weight')
    if (isCopy && tensors.has(info.name.slice(0, -'.weight'.length))) continue
    const layer = found.get(module) ?? { tensors: {} }
    found.set(module, layer)
    if (layer.tensors[role] !== undefined || (kind && layer.kind && kind !== layer.kind)) {
      const what = 'a second tensor for the same part of one module'
      problems.push(new FormatError({ where: `${file}: ${info.name}`, what }))
      continue
    }
    layer.tensors[role] = info
    layer.kind ??= kind
  }
  return { found, rest, problems }
}

function partOf({ name }: AdapterTensor): { module: string; role: FactorRole; kind?: LayerKind } | undefined {
  const key = withoutPrefix(name)
  if (key === undefined) return undefined
  for (const { end, role, kind } of ENDS) {
    const bare = role === 'magnitude' ? key.replace(/\.weight$/, '') : key
    if (bare.endsWith(end) && bare.length > end.length) return { module: bare.slice(0, -end.length), role, kind }
  }
  return undefined
}

function completeLayers(found: ReadonlyMap<string, Found>, context: ClaimContext) {
  const { config, file } = context
  const isTarget = adaptedMatcher(config)
  const problems: LowrankError[] = []
  const parts = sortedByName(found).flatMap(([name, layerTensors]) => {
    const made = attempt(() => complete(name, layerTensors, context))
    problems.push(...made.problems)
    const layer = made.value
    if (layer === undefined) return []
    const checks = [() => checkVectors(layer, file), () => checkTarget(layer, isTarget, file)]
    for (const check of checks) problems.push(...attempt(check).problems)
    const shapes = attempt(() => checkShapes(layer, file))
    problems.push(...shapes.problems)
    return shapes.problems.length === 0 ? [layer] : withOwnRank(layer, file)
  })
  return { parts, problems }
}

function complete(name: string, { kind, tensors }: Found, { config, file }: ClaimContext): LayerPart {
  const { weightA, weightB, magnitude, biasB } = tensors
  if (kind === undefined || weightA === undefined || weightB === undefined) {
    throw new FormatError({
      where: `${file}: ${(weightA ?? weightB ?? magnitude ?? biasB)?.name ?? name}`,
      what: `half a pair: no ${factorKey(name, weightA === undefined ? 'weightA' : 'weightB', kind)}`,
    })
  }
  const named = configForLayer(config, name)
  const part = { name, module: name, tensors: { weightA, weightB, magnitude, biasB } }
  if (kind !== 'linear') return { kind, config: named, ...part }
  if (weightA.shape.length > 2) return { kind: 'convolution', config: named, ...part }
  return { kind, config: configForFactors(named, { weightA, weightB }), ...part }
}

function checkVectors({ name, config, tensors: { weightA, magnitude, biasB } }: LayerPart, file: string): void {
  const vectors: ['magnitude' | 'biasB', AdapterTensor | undefined, string, boolean][] = [
    ['magnitude', magnitude, 'use_dora', config.useDora],
    ['biasB', biasB, 'lora_bias', config.loraBias],
  ]
  for (const [role, info, setting, isOn] of vectors) {
    if ((info !== undefined) === isOn) continue
    throw new MismatchError({
      where: `${file}: ${info?.name ?? weightA.name}`,
      what: isOn
        ? `${setting} of ${CONFIG_FILE} is on, but there is no ${factorKey(name, role)}`
        : `no layer claims this tensor: ${setting} of ${CONFIG_FILE} is off`,
    })
  }
}

/** Refuses a layer whose module target_modules does not name. PEFT would silently drop its tensors. */
function checkTarget(
  { name, config, tensors: { weightA } }: LayerPart,
  isTarget: (name: string) => boolean,
  file: string,
): void {
  if (isTarget(name)) return
  throw new MismatchError({
    where: `${file}: ${weightA.name}`,
    what: `no layer claims this tensor: target_modules of ${CONFIG_FILE} leave its module out`,
    expected: JSON.stringify(config.targetModules).slice(0, 200),
    got: name,
  })
}

function withOwnRank(
  { tensors: { weightA, weightB, magnitude, biasB }, ...layer }: LayerPart,
  file: string,
): LayerPart[] {
  const config = { ...layer.config, rank: weightA.shape[0] }
  const withVectors = (vectors: Partial<FactorTensors<AdapterTensor>>): LayerPart => {
    return { ...layer, config, tensors: { weightA, weightB, ...vectors } }
  }
  const isSound = (vectors: Partial<FactorTensors<AdapterTensor>>) => {
    return attempt(() => checkShapes(withVectors(vectors), file)).problems.length === 0
  }
  if (!isSound({})) return []
  return [withVectors({ ...(isSound({ magnitude }) && { magnitude }), ...(isSound({ biasB }) && { biasB }) })]
}

function checkShapes({ kind, tensors, config: { rank } }: LayerPart, file: string): void {
  const { weightA, weightB, magnitude, biasB } = tensors
  const isConvolution = kind === 'convolution'
  const wrongRank = `wrong shape for the rank that ${CONFIG_FILE} gives this layer`
  const isMatrix = ({ shape }: AdapterTensor) => shape.length === 2 && elementCount(shape) > 0
  if (weightA.shape[0] !== rank || !(isConvolution || isMatrix(weightA))) {
    throw wrongShape(weightA, file, wrongRank, `(${rank}, ${isConvolution ? 'in, *kernel' : 'k'})`)
  }
  if (isConvolution) convolutionShape(weightA.shape, weightB.shape, `${file}: ${weightA.name}`)
  else if (weightB.shape[1] !== rank || !isMatrix(weightB)) throw wrongShape(weightB, file, wrongRank, `(d, ${rank})`)
  const d = weightB.shape[0]
  checkVector(magnitude, isConvolution ? magnitudeShape(d, weightA.shape.length - 2) : [d], file)
  checkVector(biasB, [d], file)
}

function checkVector(tensor: AdapterTensor | undefined, expected: readonly number[], file: string): void {
  if (tensor === undefined || formatShape(tensor.shape) === formatShape(expected)) return
  throw wrongShape(tensor, file, 'not one number for each row of B', formatShape(expected))
}

/** Returns the shape of a convolution's magnitude, (1, d, 1…), for the number of dimensions of the kernel. */
export function magnitudeShape(d: number, dimensions: number): number[] {
  return [1, d, ...Array<number>(dimensions).fill(1)]
}
