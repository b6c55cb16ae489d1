// Adapter folders of huggingface/peft ⇄ LoraAdapter: adapter_config.json and adapter_model.safetensors. PEFT ignores tensors that it
// does not expect; here every tensor is used or named in an error. Keys: PEFT's docs, "checkpoint format".

import { type Directory, readThere } from '../base/bytes.js'
import { encodeFloats, type FloatDtype, isFiniteStored, isFloatDtype } from '../base/dtype.js'
import { ConfigError, type LowrankError, MismatchError, NumericError, StateError } from '../base/errors.js'
import { type FloatArray, isAllFinite, type Matrix, type Tensor } from '../base/tensor.js'
import { readTensorF32, type SafetensorsFile, type TensorBytes, type TensorInfo } from '../formats/safetensors.js'
import { type AdapterPart, LoraAdapter } from '../lora/adapter.js'
import type { LoraConfig } from '../lora/config.js'
import { notFinite } from '../lora/factors.js'
import type { StoredTensor } from '../lora/kinds/stored.js'
import { tensorsOf } from '../lora/part.js'
import { isAllLinear } from '../lora/patterns/patterns.js'
import { readChatTemplate, writeChatTemplate } from './chat-template.js'
import { formatPeftConfig, parsePeftConfig } from './config.js'
import { findAdapter, openWeights, readConfig, writeAdapterFiles } from './files.js'
import { KEY_PREFIX, normalizeKeys } from './keys.js'
import { type Meaning, meaningMetadata, readMeaning } from './labels.js'
import { parameterKeys, savedParameters } from './parameters.js'
import { rowsKey, savedModules } from './replacements.js'
import { claimTensors, type FilePart, factorKey, magnitudeShape } from './tensors.js'
import { adaptedMatcher } from './tied.js'
import { unmatchedProblems } from './unmatched.js'

/** Values of this size and above round to infinity. */
const INFINITE_FROM: Readonly<Record<FloatDtype, number>> = {
  fp32: Number.POSITIVE_INFINITY,
  fp16: 65520,
  bf16: 2 ** 128 - 2 ** 119,
}

/** An adapter folder whose tensors stay in their file. */
export interface AdapterFile {
  readonly config: LoraConfig
  readonly file: SafetensorsFile
  /** See {@link LoraAdapter.notes}. */
  readonly notes: readonly string[]
  /** As {@link LoraAdapter.labels} and {@link LoraAdapter.problemType}. */
  readonly meaning: Meaning
  /** What is sound of the file: layers, then experts, replaced tensors and rows of tokens; each group by name. */
  parts(): readonly FilePart[]
  /** Names of tensors that nothing claims. */
  readonly unclaimed: readonly string[]
  /** That of the chats that it was trained on. */
  readonly chatTemplate: string | undefined
  /** What is wrong with config and tensors; empty unless it was opened with `isTolerant`. */
  readonly problems: readonly LowrankError[]
  close(): Promise<void>
}

/** Options of {@link loadAdapter}. */
export interface LoadOptions {
  /** Name of the adapter: a subfolder, or the adapter name in the tensor names. Needed only if there are several. */
  name?: string | undefined
  /** Refuses a config with targets or patterns that match nothing of the adapter. Default false. */
  strict?: boolean | undefined
}

/** How a folder is opened. */
export interface OpenOptions extends LoadOptions {
  /** Opens what is sound and returns the problems, where the default throws the first. */
  isTolerant?: boolean | undefined
}

/**
 * Checks everything that {@link loadAdapter} checks but the values, which stay in the file.
 *
 * @throws what loadAdapter throws; with `isTolerant` only where a file cannot be read at all
 */
export async function openAdapter(
  directory: Directory,
  { name, strict = false, isTolerant = false }: OpenOptions = {},
): Promise<AdapterFile> {
  const folder = await findAdapter(directory, name)
  const { bytes, file: configFile } = await readConfig(folder)
  const { config, problems, unknown } = parsePeftConfig(bytes, configFile)
  const asides = strict ? [] : unknown.map(({ message }) => message)
  if (!isTolerant) throwFirst([...problems, ...(strict ? unknown : [])])
  const opened = await openWeights(folder)
  const close = () => opened.source.close()
  try {
    const { file, notes: keyNotes } = normalizeKeys(opened, name)
    const chatTemplate = await readChatTemplate(folder.directory, folder.path)
    const isInside = name === undefined && folder.path !== ''
    const { notes: meaningNotes, ...meaning } = readMeaning(opened.metadata)
    const inside = isInside ? [`an adapter in ${folder.path}, its only one`] : []
    const notes = [...inside, ...asides, ...keyNotes, ...meaningNotes]
    const { parts, unclaimed, ...claimed } = claimTensors(file, config)
    const unmatched = strict ? unmatchedProblems({ config, parts: () => parts }, configFile) : []
    const all = [...problems, ...(strict ? unknown : []), ...claimed.problems, ...unmatched]
    if (!isTolerant) throwFirst(all)
    return { config, file, notes, meaning, parts: () => parts, unclaimed, chatTemplate, problems: all, close }
  } catch (error) {
    await close()
    throw error
  }
}

function throwFirst([first]: readonly LowrankError[]): void {
  if (first !== undefined) throw first
}

/** Reads a PEFT adapter folder, as the public function of this name says (index/verbs.ts). */
export async function loadAdapter(directory: Directory, options: LoadOptions = {}): Promise<LoraAdapter> {
  const opened = await openAdapter(directory, { ...options, isTolerant: false })
  const { config, file, notes, meaning, parts, chatTemplate, close } = opened
  try {
    const adapter = new LoraAdapter(config)
    adapter.notes.push(...notes)
    Object.assign(adapter, meaning)
    adapter.chatTemplate = chatTemplate
    for (const part of parts()) await readPart(adapter, part, file)
    return adapter
  } finally {
    await close()
  }
}

/** Reads one part of an open folder, for those who walk an adapter that need not be in memory. Throws NumericError and FileError. */
export async function readAdapterPart({ config, file }: AdapterFile, part: FilePart): Promise<AdapterPart> {
  const scratch = new LoraAdapter(config)
  await readPart(scratch, part, file)
  return scratch.get(part.name)!
}

/** Reads a part's tensors, and adds it to an adapter. */
async function readPart(adapter: LoraAdapter, part: FilePart, file: SafetensorsFile): Promise<void> {
  const { name } = part
  if (part.kind === 'replacement') {
    const { isTrained, key } = part
    adapter.addReplacement(name, await readStored(file, part.tensors.weight), { isTrained, key })
    return
  }
  if (part.kind === 'token-rows') {
    adapter.addTokenRows(part.module, part.indices, await readStored(file, part.tensors.weight))
    return
  }
  const { weightA, weightB, magnitude, biasB } = part.tensors
  const factors = [await readFactor(file, weightA), await readFactor(file, weightB)] as const
  const vectors = { magnitude: await readVector(file, magnitude), biasB: await readVector(file, biasB) }
  const add = {
    linear: () => adapter.addFactors(name, ...matrices(factors), vectors),
    embedding: () => adapter.addEmbedding(name, ...matrices(factors), vectors),
    convolution: () => adapter.addConvolution(name, ...factors, vectors),
    parameter: () => adapter.addExperts(name, ...matrices(factors)),
  }
  add[part.kind]().dtype = commonDtype(part)
}

/** A layer is saved in one type: that of its tensors, or fp32, which holds the others' values. */
export function commonDtype(part: FilePart): FloatDtype {
  const [first, ...others] = tensorsOf(part).map(([, { dtype }]) => dtype)
  return isFloatDtype(first) && others.every((dtype) => dtype === first) ? first : 'fp32'
}

/** A or B. Throws NumericError when a value is not finite, and FileError. */
export async function readFactor(file: SafetensorsFile, info: TensorInfo): Promise<Tensor> {
  const tensor = await readTensorF32(file, info.name)
  checkFinite(tensor.data, info, file)
  return tensor
}

function matrices(factors: readonly [A: Tensor, B: Tensor]): [A: Matrix, B: Matrix] {
  const [a, b] = factors.map(({ data, shape: [rows, columns] }): Matrix => ({ data, shape: [rows, columns] }))
  return [a, b]
}

async function readVector(file: SafetensorsFile, info: TensorInfo | undefined): Promise<Float32Array | undefined> {
  if (info === undefined) return undefined
  const { data } = await readTensorF32(file, info.name)
  checkFinite(data, info, file)
  return data
}

/** A tensor with its bytes as they are; see {@link readThere} for `memory`. Throws as {@link readFactor}. */
export async function readStored(file: SafetensorsFile, info: TensorInfo, memory?: Uint8Array): Promise<StoredTensor> {
  const { dtype, shape, offset, byteLength } = info
  const data = await readThere(file.source, offset, byteLength, memory)
  if (isFiniteStored(data, dtype)) return { dtype, shape, data }
  throw notFinite(`${file.source.name}: ${info.name}`)
}

function checkFinite(values: Float32Array, info: TensorInfo, file: SafetensorsFile): void {
  if (isAllFinite(values)) return
  throw notFinite(`${file.source.name}: ${info.name}`)
}

/** How an adapter is saved. */
export interface SaveOptions {
  /**
   * Type of the saved A and B. Default: the type of each layer (fp32, or the type of the file it was loaded from). Replaced tensors
   * keep their type.
   */
  dtype?: FloatDtype | undefined
}

/** Writes a folder that PEFT loads, as the public function of this name says (index/verbs.ts). */
export async function saveAdapter(
  adapter: LoraAdapter,
  directory: Directory,
  { dtype }: SaveOptions = {},
): Promise<void> {
  if (dtype !== undefined && !['fp32', 'fp16', 'bf16'].includes(dtype)) {
    throw new ConfigError({ where: 'dtype', what: 'not valid', expected: 'fp32, fp16 or bf16', got: String(dtype) })
  }
  if (adapter.size === 0) {
    throw new StateError({ where: directory.name, what: 'an adapter without layers cannot be saved' })
  }
  const names = adapter.parts('linear', 'embedding', 'convolution').map(({ name }) => name)
  const parameters = adapter.parts('parameter').map(({ name }) => name)
  const config = formatPeftConfig(
    { ...adapter.config, modulesToSave: savedModules(adapter), trainableTokenIndices: savedTokens(adapter) },
    savedTargets(adapter.config, names),
    savedParameters(adapter.config.targetParameters, parameters),
    [...names, ...parameters],
  )
  const tensors = encodeAdapter(adapter, dtype)
  await writeChatTemplate(directory, adapter.chatTemplate)
  await writeAdapterFiles(directory, tensors, config, meaningMetadata(adapter))
}

/** The config's own trainable tokens, or, where it has none, those that the adapter holds rows for. */
function savedTokens(adapter: LoraAdapter): LoraConfig['trainableTokenIndices'] {
  const rows = adapter.parts('token-rows')
  const { trainableTokenIndices } = adapter.config
  if (trainableTokenIndices !== undefined || rows.length === 0) return trainableTokenIndices
  return Object.fromEntries(rows.map(({ module, indices }) => [module, indices]))
}

/** The config's own target_modules when they mean all layers; `all-linear` spelled out, as PEFT does. */
function savedTargets(config: LoraConfig, names: readonly string[]): readonly string[] | string {
  const own = isAllLinear(config.targetModules)
    ? [...new Set(names.map((name) => name.slice(name.lastIndexOf('.') + 1)))].sort()
    : config.targetModules
  for (const targetModules of [own, names]) {
    if (names.every(adaptedMatcher({ ...config, targetModules }))) return targetModules
  }
  const excluded = names.find((name) => !adaptedMatcher({ ...config, targetModules: names })(name))!
  throw new MismatchError({ where: excluded, what: 'the adapter has a layer that its own excludeModules exclude' })
}

function encodeAdapter(adapter: LoraAdapter, dtype: FloatDtype | undefined): TensorBytes[] {
  const keys = parameterKeys(adapter.parts('parameter').map(({ name }) => name))
  return adapter.parts().flatMap((part) => encodePart(part, keys.get(part.name) ?? part.name, dtype))
}

/** @param name what PEFT calls the part's factors after */
function encodePart(part: AdapterPart, name: string, dtype: FloatDtype | undefined): TensorBytes[] {
  const stored = (key: string, { dtype: own, shape, data }: StoredTensor) => {
    if (isFiniteStored(data, own)) return [{ name: key, dtype: own, shape, data }]
    throw new NumericError({ where: key, what: 'holds a value that is not finite; nothing was saved' })
  }
  if (part.kind === 'replacement') return stored(KEY_PREFIX + part.key, part.tensors.weight)
  if (part.kind === 'token-rows') return stored(rowsKey(part.module), part.tensors.weight)
  const kind = part.kind === 'parameter' ? 'linear' : part.kind
  return tensorsOf(part).map(([role, { data, shape }]) => {
    const isConvolved = part.kind === 'convolution' && role === 'magnitude'
    const own = isConvolved ? magnitudeShape(part.d, part.kernel.length) : shape
    return encodeValues(factorKey(name, role, kind), data, own, dtype ?? part.dtype)
  })
}

function encodeValues(key: string, data: FloatArray, shape: readonly number[], dtype: FloatDtype): TensorBytes {
  // A copy: training may go on while the bytes wait to be written.
  const values = Float32Array.from(data)
  const bad = values.findIndex((value) => !(Math.abs(value) < INFINITE_FROM[dtype]))
  if (bad >= 0) {
    throw new NumericError({
      where: key,
      what: `a value that is not finite in ${dtype}; nothing was saved`,
      got: String(data[bad]),
      ...(dtype === 'fp16' && { hint: 'Save as bf16 or fp32' }),
    })
  }
  return { name: key, dtype, shape, data: encodeFloats(values, dtype) }
}
