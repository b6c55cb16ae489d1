// Loads and saves PEFT's folders (PEFT's docs, "checkpoint format"). PEFT ignores tensors that it does not expect; here
// every tensor is used or named in an error.

import { closing, type Directory, withSource, writeTogether } from '../../core/base/bytes.js'
import { decodeFloats, encodeWeights, type FloatDtype, isFiniteStored } from '../../core/base/dtype.js'
import { FileError, MismatchError, NumericError, StateError } from '../../core/base/errors.js'
import type { FloatArray } from '../../core/base/tensor.js'
import type { TensorBytes } from '../../files/safetensors.js'
import type { AdapterPart, LoraAdapter } from '../adapter.js'
import type { LoraConfig } from '../config.js'
import { type StoredTensor, tensorsOf } from '../part.js'
import { isAllLinear } from '../patterns/patterns.js'
import { formatPeftConfig } from './config.js'
import { CONFIG_FILE, writeChatTemplate, writeNamedPrompts } from './file-names.js'
import { meaningMetadata, WEIGHTS_FILE, writeAdapterFiles } from './files.js'
import { KEY_PREFIX, rowsKey } from './keys.js'
import { type LoadOptions, openAdapter } from './open.js'
import { parameterKeys, savedParameters } from './parameters.js'
import { savedModules } from './replacements.js'
import { factorKey, magnitudeShape } from './tensors.js'
import { adaptedMatcher } from './tied.js'

export async function loadAdapter(directory: Directory, options: LoadOptions = {}): Promise<LoraAdapter> {
  return closing(await openAdapter(directory, { ...options, isTolerant: false }), (opened) => opened.load())
}

/** Options of {@link saveAdapter}. */
export interface SaveOptions {
  /**
   * Type of the saved A and B. Default: the type of each layer (fp32, or its type in the file that it was loaded from).
   * Replaced tensors keep their type.
   */
  dtype?: FloatDtype | undefined
  /**
   * Replaces an adapter that this process did not write.
   * @default false
   */
  overwrite?: boolean | undefined
}

/** Folders whose adapter this process wrote or goes on with: real paths, and folders that have none. */
const own = new Set<string | Directory>()

/** Lets this process write over the adapter of a folder. */
export async function takeOver(directory: Directory): Promise<void> {
  // What was written counts, even if it cannot be read now.
  const place = await placeOf(directory).catch(() => directory)
  if (place !== undefined) own.add(place)
}

/**
 * Saves an adapter where a caller says. All files appear together, if the folder can do that.
 *
 * @param more writes what belongs beside the adapter
 * @throws FileError for a folder with an adapter that this process did not write, unless `overwrite` is set
 */
export async function saveInto(
  adapter: LoraAdapter,
  directory: Directory,
  options: SaveOptions = {},
  more: (folder: Directory) => Promise<void> = async () => {},
): Promise<void> {
  const place = await placeOf(directory)
  if (!options.overwrite && place !== undefined && !own.has(place)) {
    const hint = 'Choose another folder, or replace it with `overwrite: true`'
    throw new FileError({ where: directory.name, what: 'has an adapter that this process did not write', hint })
  }
  await writeTogether(directory, async (folder) => {
    await saveAdapter(adapter, folder, options)
    await more(folder)
  })
  await takeOver(directory)
}

/** The place of a folder's adapter: a path, or the folder itself if it has none. Undefined without an adapter. */
async function placeOf(directory: Directory): Promise<string | Directory | undefined> {
  for (const file of [CONFIG_FILE, WEIGHTS_FILE]) {
    if (!(await directory.has(file))) continue
    const realPath = await withSource(directory, file, async (source) => source.realPath)
    return realPath?.slice(0, -file.length) ?? directory
  }
  return undefined
}

export async function saveAdapter(
  adapter: LoraAdapter,
  directory: Directory,
  { dtype }: SaveOptions = {},
): Promise<void> {
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
  const keys = parameterKeys(adapter.parts('parameter').map(({ name }) => name))
  const tensors = adapter.parts().flatMap((part) => encodePart(part, keys.get(part.name) ?? part.name, dtype))
  await writeChatTemplate(directory, adapter.chatTemplate)
  await writeNamedPrompts(directory, adapter.prompts)
  await writeAdapterFiles(directory, tensors, config, meaningMetadata(adapter))
}

/** Returns the config's trainable tokens or, if it has none, the tokens that the adapter has rows for. */
function savedTokens(adapter: LoraAdapter): LoraConfig['trainableTokenIndices'] {
  const rows = adapter.parts('token-rows')
  const { trainableTokenIndices } = adapter.config
  if (trainableTokenIndices !== undefined || rows.length === 0) return trainableTokenIndices
  return Object.fromEntries(rows.map(({ module, indices }) => [module, indices]))
}

/** Returns the config's target_modules if they match all layers, else (also for `all-linear`) the layers' names. */
function savedTargets(config: LoraConfig, names: readonly string[]): readonly string[] | string {
  const modules = isAllLinear(config.targetModules)
    ? [...new Set(names.map((name) => name.slice(name.lastIndexOf('.') + 1)))].sort()
    : config.targetModules
  for (const targetModules of [modules, names]) {
    if (names.every(adaptedMatcher({ ...config, targetModules }))) return targetModules
  }
  const excluded = names.find((name) => !adaptedMatcher({ ...config, targetModules: names })(name))!
  throw new MismatchError({ where: excluded, what: 'the adapter has a layer that its own excludeModules exclude' })
}

function encodePart(part: AdapterPart, name: string, dtype: FloatDtype | undefined): TensorBytes[] {
  const stored = (key: string, { dtype: storedDtype, shape, data }: StoredTensor) => {
    if (isFiniteStored(data, storedDtype)) return [{ name: key, dtype: storedDtype, shape, data }]
    throw new NumericError({ where: key, what: 'holds a value that is not finite; nothing was saved' })
  }
  if (part.kind === 'replacement') return stored(KEY_PREFIX + part.key, part.tensors.weight)
  if (part.kind === 'token-rows') return stored(rowsKey(part.module), part.tensors.weight)
  const kind = part.kind === 'parameter' ? 'linear' : part.kind
  return tensorsOf(part).map(([role, { data, shape }]) => {
    const isConvolved = part.kind === 'convolution' && role === 'magnitude'
    const savedShape = isConvolved ? magnitudeShape(part.d, part.kernel.length) : shape
    return encodeValues(factorKey(name, role, kind), data, savedShape, dtype ?? part.dtype)
  })
}

function encodeValues(key: string, data: FloatArray, shape: readonly number[], dtype: FloatDtype): TensorBytes {
  // Copy, because training may go on before the bytes are written.
  const bytes = encodeWeights(data.slice() as FloatArray, dtype)
  if (isFiniteStored(bytes, dtype)) return { name: key, dtype, shape, data: bytes }
  const bad = decodeFloats(bytes, dtype).findIndex((value) => !Number.isFinite(value))
  throw new NumericError({
    where: key,
    what: `a value that is not finite in ${dtype}; nothing was saved`,
    got: String(data[bad]),
    ...(dtype === 'fp16' && { hint: 'Save as bf16 or fp32' }),
  })
}
