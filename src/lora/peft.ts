// Adapter folders of huggingface/peft ⇄ LoraAdapter: adapter_config.json and adapter_model.safetensors. PEFT passes over tensors
// that it does not expect in silence; here every tensor is used or named in an error. Keys: PEFT's docs, "checkpoint format".

import { type ByteSink, type Directory, readAll } from '../base/bytes.js'
import { encodeFloats, type FloatDtype } from '../base/dtype.js'
import {
  ConfigError,
  FileError,
  FormatError,
  MismatchError,
  NumericError,
  ShapeError,
  StateError,
  UnsupportedError,
} from '../base/errors.js'
import { elementCount, formatShape, type Matrix } from '../base/tensor.js'
import {
  isFloatDtype,
  parseSafetensorsHeader,
  readTensorF32,
  type SafetensorsFile,
  type TensorBytes,
  type TensorInfo,
  writeSafetensors,
} from '../formats/safetensors.js'
import { LoraAdapter } from './adapter.js'
import { configForLayer, type LoraConfig } from './config.js'
import { isAllLinear, targetMatcher } from './patterns.js'
import { formatPeftConfig, parsePeftConfig } from './peft-config.js'
import { isFiniteMatrix } from './product.js'

export const CONFIG_FILE = 'adapter_config.json'
export const WEIGHTS_FILE = 'adapter_model.safetensors'
const PICKLE_FILE = 'adapter_model.bin'
const KEY_PREFIX = 'base_model.model.'
const FACTOR_KEY = /^base_model\.model\.(.+)\.lora_([AB])\.weight$/s

/** A config that lists thousands of modules by full name has a few hundred kB; more is no config. */
const MAX_CONFIG_BYTES = 16_000_000

/** Magnitudes that round to infinity. */
const INFINITE_FROM: Readonly<Record<FloatDtype, number>> = {
  F32: Number.POSITIVE_INFINITY,
  F16: 65520,
  BF16: 2 ** 128 - 2 ** 119,
}

/** Tensors that PEFT writes for what is not implemented here. */
const OTHER_TENSORS: readonly (readonly [RegExp, string])[] = [
  [
    /\.lora_embedding_[AB](\.weight)?$/,
    'adapters of embeddings (lora_embedding_A, lora_embedding_B) are not implemented',
  ],
  [/\.lora_magnitude_vector(\.weight)?$/, 'DoRA (use_dora) is not implemented'],
  [/\.lora_[AB]\.bias$/, 'biases of factors (lora_bias) are not implemented'],
  [/\.trainable_tokens_delta$/, 'trained tokens (trainable_token_indices) are not implemented'],
  [/\.lora_(?![AB]\.)/, 'this kind of LoRA tensor is not implemented'],
]

/** An adapter folder whose factors stay in their file. */
export interface AdapterFile {
  readonly config: LoraConfig
  readonly file: SafetensorsFile
  /** Sorted by name, with numbers as numbers. `config` is the layer's own, with its rank and alpha. */
  readonly layers: readonly { name: string; config: LoraConfig; A: TensorInfo; B: TensorInfo }[]
  close(): Promise<void>
}

/** Checks everything that {@link loadAdapter} checks but the values, which stay in the file. Throws as that does. */
export async function openAdapter(directory: Directory): Promise<AdapterFile> {
  const config = await loadConfig(directory)
  if (!(await directory.has(WEIGHTS_FILE)) && (await directory.has(PICKLE_FILE))) {
    throw new UnsupportedError({
      where: `${directory.name}/${PICKLE_FILE}`,
      what: 'a pickle, which can run any code when it is read',
      expected: WEIGHTS_FILE,
      hint: 'Save the adapter again with a current PEFT',
    })
  }
  const source = await directory.open(WEIGHTS_FILE)
  try {
    const file = await parseSafetensorsHeader(source)
    const pairs = pairFactors(file)
    checkTargets(pairs, config, source.name)
    const layers = pairs.map(([name, { A, B }]) => ({ name, config: configForLayer(config, name), A, B }))
    for (const { A, B, config: own } of layers) checkShapes(A, B, own.rank, source.name)
    return { config, file, layers, close: () => source.close() }
  } catch (error) {
    await source.close()
    throw error
  }
}

/**
 * Reads a PEFT adapter folder. Factors are f32, each layer's `dtype` is the file's, layers have no base weight and are in
 * evaluation mode. Ranks above min(d, k) are fine.
 *
 * @throws FileError when a file is missing; FormatError when one is corrupt or holds a tensor that no layer claims or half a
 *   pair; UnsupportedError when the config or a tensor means something that is not implemented; MismatchError when the config's
 *   target_modules leave a tensor out; ShapeError when a shape disagrees with the config's rank; NumericError when a value is
 *   not finite. Each names the file, and the field or tensor.
 */
export async function loadAdapter(directory: Directory): Promise<LoraAdapter> {
  const { config, file, layers, close } = await openAdapter(directory)
  try {
    const adapter = new LoraAdapter(config)
    for (const { name, A, B } of layers) {
      const layer = adapter.addFactors(name, await readFactor(file, A), await readFactor(file, B))
      layer.dtype = A.dtype === B.dtype && isFloatDtype(A.dtype) ? A.dtype : 'F32'
    }
    return adapter
  } finally {
    await close()
  }
}

async function loadConfig(directory: Directory): Promise<LoraConfig> {
  if (!(await directory.has(CONFIG_FILE))) {
    throw new FileError({
      where: directory.name,
      what: `not an adapter folder: no ${CONFIG_FILE}`,
      hint: 'PEFT saves adapters not named "default" in a folder of their name inside',
    })
  }
  const source = await directory.open(CONFIG_FILE)
  try {
    if (source.byteLength > MAX_CONFIG_BYTES) {
      throw new FormatError({
        where: source.name,
        what: 'too large for a config',
        expected: `at most ${MAX_CONFIG_BYTES} bytes`,
        got: `${source.byteLength}`,
      })
    }
    return parsePeftConfig(await readAll(source), source.name)
  } finally {
    await source.close()
  }
}

interface Pair {
  A: TensorInfo
  B: TensorInfo
}

/** Module name → its two tensors, sorted by name with numbers as numbers. */
function pairFactors(file: SafetensorsFile): [string, Pair][] {
  const found = new Map<string, Partial<Pair>>()
  const unclaimed: string[] = []
  for (const tensor of file.tensors.values()) {
    const [, name, factor] = FACTOR_KEY.exec(tensor.name) ?? []
    if (name === undefined) unclaimed.push(tensor.name)
    else found.set(name, { ...found.get(name), [factor]: tensor })
  }
  if (unclaimed.length > 0) throw unclaimedError(unclaimed, file.source.name)
  if (found.size === 0) throw new FormatError({ where: file.source.name, what: 'an adapter without a single tensor' })
  const order = new Intl.Collator('en', { numeric: true })
  return [...found]
    .sort(([a], [b]) => order.compare(a, b))
    .map(([name, { A, B }]) => {
      if (A !== undefined && B !== undefined) return [name, { A, B }]
      throw new FormatError({
        where: `${file.source.name}: ${(A ?? B)!.name}`,
        what: `half a pair: no ${factorKey(name, A === undefined ? 'A' : 'B')}`,
      })
    })
}

function unclaimedError(names: string[], file: string): FormatError | UnsupportedError {
  for (const [pattern, what] of OTHER_TENSORS) {
    const name = names.find((candidate) => candidate.startsWith(KEY_PREFIX) && pattern.test(candidate))
    if (name !== undefined) return new UnsupportedError({ where: `${file}: ${name}`, what })
  }
  const shown = names.slice(0, 5).join(', ')
  return new FormatError({
    where: file,
    what: `no layer claims ${names.length === 1 ? 'the tensor' : `${names.length} tensors:`} ${shown}${names.length > 5 ? ', …' : ''}`,
    expected: `${factorKey('MODULE', 'A')} and ${factorKey('MODULE', 'B')}`,
  })
}

/** PEFT makes layers where target_modules says, and would drop the tensors of any other module in silence. */
function checkTargets(pairs: [string, Pair][], config: LoraConfig, file: string): void {
  const isTarget = targetMatcher(config)
  for (const [name, { A }] of pairs) {
    if (isTarget(name)) continue
    throw new MismatchError({
      where: `${file}: ${A.name}`,
      what: `no layer claims this tensor: target_modules of ${CONFIG_FILE} leave its module out`,
      expected: JSON.stringify(config.targetModules).slice(0, 200),
      got: name,
    })
  }
}

function checkShapes(a: TensorInfo, b: TensorInfo, rank: number, file: string): void {
  for (const tensor of [a, b]) {
    const where = `${file}: ${tensor.name}`
    if (tensor.shape.length === 4) {
      throw new UnsupportedError({
        where,
        what: 'adapters of convolutions are not implemented',
        got: formatShape(tensor.shape),
      })
    }
    if (tensor.shape.length !== 2 || elementCount(tensor.shape) === 0 || tensor.shape[tensor === a ? 0 : 1] !== rank) {
      throw new ShapeError({
        where,
        what: `wrong shape for the rank that ${CONFIG_FILE} gives this layer`,
        expected: tensor === a ? `(${rank}, k)` : `(d, ${rank})`,
        got: formatShape(tensor.shape),
      })
    }
  }
}

async function readFactor(file: SafetensorsFile, info: TensorInfo): Promise<Matrix> {
  const { data, shape } = await readTensorF32(file, info.name)
  const matrix: Matrix = { data, shape: [shape[0], shape[1]] }
  if (!isFiniteMatrix(matrix)) {
    throw new NumericError({ where: `${file.source.name}: ${info.name}`, what: 'holds a value that is not finite' })
  }
  return matrix
}

export interface SaveOptions {
  /** Default: each layer's own, which is F32 unless it was loaded from another. */
  dtype?: FloatDtype | undefined
}

/**
 * Writes a folder that PEFT loads. Both files are complete before either gets its name. target_modules name exactly the
 * adapter's layers where the config's own would not.
 *
 * @throws StateError when there is no layer; NumericError when a value is not finite, or not in the type it is saved in;
 *   MismatchError when the config excludes a layer; FileError when the folder cannot be written.
 */
export async function saveAdapter(
  adapter: LoraAdapter,
  directory: Directory,
  { dtype }: SaveOptions = {},
): Promise<void> {
  if (dtype !== undefined && !['F32', 'F16', 'BF16'].includes(dtype)) {
    throw new ConfigError({ where: 'dtype', what: 'not usable', expected: 'F32, F16 or BF16', got: String(dtype) })
  }
  if (adapter.size === 0)
    throw new StateError({ where: directory.name, what: 'an adapter without layers cannot be saved' })
  const config = formatPeftConfig(adapter.config, savedTargets(adapter), adapter.names())
  const tensors: TensorBytes[] = []
  for (const [name, layer] of adapter) {
    tensors.push(encodeFactor(factorKey(name, 'A'), layer.weightA, dtype ?? layer.dtype))
    tensors.push(encodeFactor(factorKey(name, 'B'), layer.weightB, dtype ?? layer.dtype))
  }
  const sinks: ByteSink[] = []
  try {
    const weightsSink = await directory.create(WEIGHTS_FILE)
    sinks.push(weightsSink)
    const configSink = await directory.create(CONFIG_FILE)
    sinks.push(configSink)
    await writeSafetensors(weightsSink, tensors, { format: 'pt' })
    await configSink.write(new TextEncoder().encode(config))
    // Without a config the folder is no adapter: in a new folder it appears with this last rename.
    await weightsSink.commit()
    await configSink.commit()
  } catch (error) {
    // Last made, first dropped: the first one may have made the folder.
    for (const sink of sinks.reverse()) await sink.abort()
    throw error
  }
}

/** The config's own target_modules when they mean all layers; `all-linear` spelled out, as PEFT does. */
function savedTargets(adapter: LoraAdapter): readonly string[] | string {
  const { config } = adapter
  const names = adapter.names()
  const own = isAllLinear(config.targetModules)
    ? [...new Set(names.map((name) => name.slice(name.lastIndexOf('.') + 1)))].sort()
    : config.targetModules
  for (const targetModules of [own, names]) {
    if (names.every(targetMatcher({ ...config, targetModules }))) return targetModules
  }
  const excluded = names.find((name) => !targetMatcher({ ...config, targetModules: names })(name))!
  throw new MismatchError({ where: excluded, what: 'the adapter has a layer that its own excludeModules leave out' })
}

function encodeFactor(key: string, matrix: Matrix, dtype: FloatDtype): TensorBytes {
  // A copy: training may go on while the bytes wait to be written.
  const values = Float32Array.from(matrix.data)
  const data = encodeFloats(values, dtype)
  const bad = values.findIndex((value) => !(Math.abs(value) < INFINITE_FROM[dtype]))
  if (bad >= 0) {
    throw new NumericError({
      where: key,
      what: `a value that is not finite in ${dtype}; nothing was saved`,
      got: String(matrix.data[bad]),
      ...(dtype === 'F16' && { hint: 'Save as BF16 or F32' }),
    })
  }
  return { name: key, dtype, shape: matrix.shape, data }
}

function factorKey(moduleName: string, factor: 'A' | 'B'): string {
  return `${KEY_PREFIX}${moduleName}.lora_${factor}.weight`
}
