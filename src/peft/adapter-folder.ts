// Adapter folders of huggingface/peft ⇄ LoraAdapter: adapter_config.json and adapter_model.safetensors. PEFT passes over tensors
// that it does not expect in silence; here every tensor is used or named in an error. Keys: PEFT's docs, "checkpoint format".

import type { Directory } from '../base/bytes.js'
import { encodeFloats, type FloatDtype } from '../base/dtype.js'
import {
  attempt,
  ConfigError,
  MismatchError,
  NumericError,
  type OnProblem,
  StateError,
  throwProblem,
} from '../base/errors.js'
import { type FloatArray, isAllFinite, type Matrix, type Tensor } from '../base/tensor.js'
import {
  isFloatDtype,
  isWeightDtype,
  readTensorF32,
  type SafetensorsFile,
  type TensorBytes,
  type TensorInfo,
} from '../formats/safetensors.js'
import { LoraAdapter } from '../lora/adapter.js'
import type { LoraConfig } from '../lora/config.js'
import { notFinite } from '../lora/factors.js'
import { isAllLinear } from '../lora/patterns/patterns.js'
import { type AdapterPart, linearKind } from '../lora/plain.js'
import type { StoredTensor } from '../lora/replacements.js'
import { formatPeftConfig, parsePeftConfig } from './config.js'
import { findAdapter, openWeights, readConfig, writeAdapterFiles } from './files.js'
import { KEY_PREFIX, normalizeKeys } from './keys.js'
import { parameterKeys, savedParameters } from './parameters.js'
import { rowsKey } from './replacements.js'
import { type AdapterTensors, claimTensors, factorKey, type LayerTensors, magnitudeShape } from './tensors.js'
import { adaptedMatcher } from './tied.js'
import { requireMatched } from './unmatched.js'

/** Values of this size and above round to infinity. */
const INFINITE_FROM: Readonly<Record<FloatDtype, number>> = {
  F32: Number.POSITIVE_INFINITY,
  F16: 65520,
  BF16: 2 ** 128 - 2 ** 119,
}

/** An adapter folder whose tensors stay in their file. */
export interface AdapterFile extends AdapterTensors {
  readonly config: LoraConfig
  readonly file: SafetensorsFile
  /** As {@link LoraAdapter.notes}. */
  readonly notes: readonly string[]
  /** As {@link LoraAdapter.parts}. */
  parts(): AdapterPart[]
  close(): Promise<void>
}

/** What to load of a folder, and how strictly. */
export interface LoadOptions {
  /** Which adapter: the name of a folder inside, or the one in the tensors' names. Default: the only one there is. */
  name?: string | undefined
  /** Refuses a config with targets or patterns that match nothing of the adapter. Default false. */
  strict?: boolean | undefined
}

/**
 * Checks everything that {@link loadAdapter} checks but the values, which stay in the file. Throws as that does.
 *
 * @param onProblem default: throws it. Else it hears of what is wrong in the config and with the tensors, and what is sound is
 *   opened; a file that cannot be read still throws
 */
export async function openAdapter(
  directory: Directory,
  onProblem: OnProblem = throwProblem,
  { name, strict = false }: LoadOptions = {},
): Promise<AdapterFile> {
  const folder = await findAdapter(directory, name)
  const { bytes, file: configFile } = await readConfig(folder)
  const config = parsePeftConfig(bytes, configFile, onProblem)
  const opened = await openWeights(folder)
  const close = () => opened.source.close()
  try {
    const { file, notes: keyNotes } = normalizeKeys(opened, name)
    const isInside = name === undefined && folder.path !== ''
    const notes = [...(isInside ? [`an adapter in ${folder.path}, its only one`] : []), ...keyNotes]
    const tensors = claimTensors(file, config, onProblem)
    const adapter = { config, file, notes, ...tensors, parts: () => partsOf(tensors), close }
    if (strict) attempt(() => requireMatched(adapter, configFile), onProblem)
    return adapter
  } catch (error) {
    await close()
    throw error
  }
}

/** Reads a PEFT adapter folder, as the public function of this name says (index/verbs.ts). */
export async function loadAdapter(directory: Directory, options: LoadOptions = {}): Promise<LoraAdapter> {
  const { config, file, notes, layers, parameters, replacements, tokenRows, close } = await openAdapter(
    directory,
    throwProblem,
    options,
  )
  try {
    const adapter = new LoraAdapter(config)
    adapter.notes.push(...notes)
    for (const tensors of layers) {
      const { name, kind, A, B, magnitude, biasB } = tensors
      const factors = [await readFactor(file, A), await readFactor(file, B)] as const
      const vectors = { magnitude: await readVector(file, magnitude), biasB: await readVector(file, biasB) }
      const add = {
        linear: () => adapter.addFactors(name, ...matrices(factors), vectors),
        embedding: () => adapter.addEmbedding(name, ...matrices(factors), vectors),
        convolution: () => adapter.addConvolution(name, ...factors, vectors),
      }
      add[kind]().dtype = commonDtype(tensors)
    }
    for (const { name, A, B } of parameters) {
      const parameter = adapter.addExperts(name, ...matrices([await readFactor(file, A), await readFactor(file, B)]))
      parameter.dtype = commonDtype({ A, B })
    }
    for (const [name, { key, isTrained, info }] of replacements) {
      adapter.replacements.set(name, { key, isTrained, ...(await readStored(file, info)) })
    }
    for (const [name, { indices, info }] of tokenRows) {
      adapter.tokenRows.set(name, { indices, ...(await readStored(file, info)) })
    }
    return adapter
  } finally {
    await close()
  }
}

function partsOf({ layers, parameters, replacements, tokenRows }: AdapterTensors): AdapterPart[] {
  return [
    ...layers.map((layer): AdapterPart => {
      return { name: layer.name, kind: layer.kind === 'linear' ? linearKind(layer) : layer.kind }
    }),
    ...parameters.map(({ name }): AdapterPart => ({ name, kind: 'parameter' })),
    ...[...replacements.keys()].map((name): AdapterPart => ({ name, kind: 'replacement' })),
    ...[...tokenRows.keys()].map((name): AdapterPart => ({ name, kind: 'token-rows' })),
  ]
}

/** A layer is saved in one type: that of its tensors, or F32, which holds the others' values. */
export function commonDtype({
  A,
  B,
  magnitude,
  biasB,
}: Pick<LayerTensors, 'A' | 'B'> & Partial<Pick<LayerTensors, 'magnitude' | 'biasB'>>): FloatDtype {
  const dtypes = [A, B, magnitude, biasB].flatMap((info) => (info === undefined ? [] : [info.dtype]))
  return isFloatDtype(A.dtype) && dtypes.every((dtype) => dtype === A.dtype) ? A.dtype : 'F32'
}

async function readFactor(file: SafetensorsFile, info: TensorInfo): Promise<Tensor> {
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

async function readStored(file: SafetensorsFile, info: TensorInfo): Promise<StoredTensor> {
  if (isWeightDtype(info.dtype)) checkFinite((await readTensorF32(file, info.name)).data, info, file)
  const { dtype, shape } = info
  return { dtype, shape, data: await file.source.read(info.offset, info.byteLength) }
}

function checkFinite(values: Float32Array, info: TensorInfo, file: SafetensorsFile): void {
  if (isAllFinite(values)) return
  throw notFinite(`${file.source.name}: ${info.name}`)
}

/** How an adapter is saved. */
export interface SaveOptions {
  /** Of layers. Default: each one's own, which is F32 unless it was loaded from another. What replaces the base's stays as it is. */
  dtype?: FloatDtype | undefined
}

/** Writes a folder that PEFT loads, as the public function of this name says (index/verbs.ts). */
export async function saveAdapter(
  adapter: LoraAdapter,
  directory: Directory,
  { dtype }: SaveOptions = {},
): Promise<void> {
  if (dtype !== undefined && !['F32', 'F16', 'BF16'].includes(dtype)) {
    throw new ConfigError({ where: 'dtype', what: 'not usable', expected: 'F32, F16 or BF16', got: String(dtype) })
  }
  if (adapter.parts().length === 0) {
    throw new StateError({ where: directory.name, what: 'an adapter without layers cannot be saved' })
  }
  const names = [...adapter.names(), ...adapter.embeddings.keys(), ...adapter.convolutions.keys()]
  const parameters = [...adapter.experts.keys()]
  const config = formatPeftConfig(
    { ...adapter.config, trainableTokenIndices: savedTokens(adapter) },
    savedTargets(adapter.config, names),
    savedParameters(adapter.config.targetParameters, parameters),
    [...names, ...parameters],
  )
  const tensors = encodeAdapter(adapter, dtype)
  await writeAdapterFiles(directory, tensors, config)
}

/** The config's own trainable tokens, or, where it has none, those that the adapter holds rows for. */
function savedTokens({ config, tokenRows }: LoraAdapter): LoraConfig['trainableTokenIndices'] {
  if (config.trainableTokenIndices !== undefined || tokenRows.size === 0) return config.trainableTokenIndices
  return Object.fromEntries([...tokenRows].map(([module, { indices }]) => [module, indices]))
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
  throw new MismatchError({ where: excluded, what: 'the adapter has a layer that its own excludeModules leave out' })
}

function encodeAdapter(adapter: LoraAdapter, dtype: FloatDtype | undefined): TensorBytes[] {
  const tensors: TensorBytes[] = []
  const add = (key: string, data: FloatArray, shape: readonly number[], own: FloatDtype) => {
    tensors.push(encodeValues(key, data, shape, dtype ?? own))
  }
  for (const [name, { weightA, weightB, magnitude, biasB, dtype: own }] of adapter) {
    add(factorKey(name, 'A'), weightA.data, weightA.shape, own)
    add(factorKey(name, 'B'), weightB.data, weightB.shape, own)
    if (magnitude !== undefined) add(factorKey(name, 'magnitude'), magnitude, [magnitude.length], own)
    if (biasB !== undefined) add(factorKey(name, 'biasB'), biasB, [biasB.length], own)
  }
  for (const [name, { weightA, weightB, magnitude, dtype: own }] of adapter.embeddings) {
    add(factorKey(name, 'A', 'embedding'), weightA.data, weightA.shape, own)
    add(factorKey(name, 'B', 'embedding'), weightB.data, weightB.shape, own)
    if (magnitude !== undefined) add(factorKey(name, 'magnitude'), magnitude, [magnitude.length], own)
  }
  for (const [name, { weightA, weightB, magnitude, biasB, d, kernel, dtype: own }] of adapter.convolutions) {
    add(factorKey(name, 'A'), weightA.data, weightA.shape, own)
    add(factorKey(name, 'B'), weightB.data, weightB.shape, own)
    if (magnitude !== undefined) add(factorKey(name, 'magnitude'), magnitude, magnitudeShape(d, kernel.length), own)
    if (biasB !== undefined) add(factorKey(name, 'biasB'), biasB, [d], own)
  }
  const keys = parameterKeys(adapter.experts.keys())
  for (const [name, { weightA, weightB, dtype: own }] of adapter.experts) {
    add(factorKey(keys.get(name)!, 'A'), weightA.data, weightA.shape, own)
    add(factorKey(keys.get(name)!, 'B'), weightB.data, weightB.shape, own)
  }
  const stored = (name: string, { dtype: own, shape, data }: StoredTensor) => ({ name, dtype: own, shape, data })
  for (const replacement of adapter.replacements.values()) {
    tensors.push(stored(KEY_PREFIX + replacement.key, replacement))
  }
  for (const [name, rows] of adapter.tokenRows) tensors.push(stored(rowsKey(name), rows))
  return tensors
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
      ...(dtype === 'F16' && { hint: 'Save as BF16 or F32' }),
    })
  }
  return { name: key, dtype, shape, data: encodeFloats(values, dtype) }
}
