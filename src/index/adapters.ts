// Adapters: read from PEFT's folders, written to them, and made plain. What knows PEFT's files loads with the first call.

import { ConfigError, UnsupportedError } from '../base/errors.js'
import { BOOLEAN, checkArgument, checkOptions, FUNCTION, kind, NAME, type OptionTable, oneOf } from '../base/options.js'
import { LoraAdapter } from '../lora/adapter.js'
import type { BaseWeights } from '../lora/init/to-plain.js'
import type { LoadOptions, SaveOptions } from '../peft/adapter-folder.js'
import { openFolder, openSource, openTarget, SOURCE, type Source, type Target } from './sources.js'

/** An adapter in memory. */
export const ADAPTER = kind('a LoraAdapter', (value) => value instanceof LoraAdapter)

const LOAD_OPTIONS: OptionTable<LoadOptions> = { name: NAME, strict: BOOLEAN }
const SAVE_OPTIONS: OptionTable<SaveOptions> = { dtype: oneOf('F32', 'F16', 'BF16') }

/**
 * Reads a PEFT adapter folder. Factors are f32, each layer's `dtype` is the file's, layers have no base weight and are in
 * evaluation mode. Ranks above min(d, k) are fine.
 *
 * Older spellings of tensor names are read, and listed in the adapter's `notes`. An adapter_model.bin is read where there is no
 * safetensors file; nothing in it is executed.
 *
 * @throws FileError when a file is missing, or the folder holds several adapters and none is named; FormatError when one is corrupt
 *   or holds a tensor that no layer claims or half a pair; ConfigError when a value of the config is out of range or missing, or an
 *   argument is not usable; UnsupportedError when the config or a tensor means something that is not implemented; MismatchError when
 *   the config's target_modules leave a tensor out, the file has no adapter of that name, or with `strict` a setting matches nothing;
 *   ShapeError when a shape disagrees with the config's rank; NumericError when a value is not finite. Each names the file, and the
 *   field or tensor.
 *
 * @example
 * const adapter = await loadAdapter('tests/golden/peft/f32')
 * for (const [name, layer] of adapter) console.log(name, layer.rank)
 */
export async function loadAdapter(source: Source, options: LoadOptions = {}): Promise<LoraAdapter> {
  checkOptions(options, { of: 'loadAdapter', table: LOAD_OPTIONS })
  const directory = await openFolder(source, 'source')
  return (await import('../peft/adapter-folder.js')).loadAdapter(directory, options)
}

/**
 * Writes a folder that PEFT loads. Both files are complete before either gets its name, and no interruption leaves the weights of one
 * adapter beside the config of another: then the folder has no config, or all of one of them. target_modules name exactly the adapter's
 * layers where the config's own would not.
 *
 * @throws StateError when there is no layer; ConfigError when `dtype` is none of F32, F16 and BF16, or an argument is not usable;
 *   NumericError when a value is not finite, or not in the type it is saved in; MismatchError when the config excludes a layer;
 *   FileError when the folder cannot be written.
 *
 * @example
 * const adapter = await loadAdapter('tests/golden/peft/f32')
 * await saveAdapter(adapter, 'out/half', { dtype: 'F16' })
 */
export async function saveAdapter(adapter: LoraAdapter, target: Target, options: SaveOptions = {}): Promise<void> {
  checkArgument(adapter, ADAPTER, 'adapter')
  checkOptions(options, { of: 'saveAdapter', table: SAVE_OPTIONS })
  const directory = openTarget(target, 'target')
  return (await import('../peft/adapter-folder.js')).saveAdapter(adapter, directory, options)
}

/** What tells how an adapter started: one of the two. */
export interface ToPlainOptions {
  /**
   * The base as it was before training: a safetensors checkpoint, or a function that gives its weights (d, k) by the layer's name, of
   * which one is held at a time. Enough for `pissa` and `olora`.
   */
  base?: Source | BaseWeights | undefined
  /** The adapter as it was before training, where that was kept. Exact for every start; `lora-ga` and `corda` need it. */
  initial?: Source | LoraAdapter | undefined
}

const TO_PLAIN_OPTIONS: OptionTable<ToPlainOptions> = {
  base: kind(`${SOURCE.expected}, or a function`, (value) => SOURCE.accepts(value) || FUNCTION.accepts(value)),
  initial: kind(`${SOURCE.expected}, or a LoraAdapter`, (value) => SOURCE.accepts(value) || ADAPTER.accepts(value)),
}

/**
 * A plain adapter of twice the rank that changes the original base as `adapter` changes its own. Adapters that started as PiSSA,
 * OLoRA, LoRA-GA or CorDA took a part out of the base; a plain one can be merged, swapped and combined like any other.
 * A' = [A; A₀], B' = [B, −B₀].
 *
 * The start of `pissa-niter-N` was random: PEFT finds another whenever it loads the adapter. Without `initial` the result differs by as
 * much.
 *
 * @throws FileError or FormatError when base or adapter cannot be read; ConfigError when the adapter is plain already, or unless there
 *   is either base or initial; UnsupportedError when the weights do not tell its start, and for convolutions and parameters;
 *   MismatchError when a layer has no weight or another shape
 *
 * @example
 * const plain = await toPlain('tests/golden/peft/pissa', { base: 'models/union-3m' })
 * await saveAdapter(plain, 'out/plain')
 */
export async function toPlain(adapter: Source | LoraAdapter, options: ToPlainOptions): Promise<LoraAdapter> {
  checkOptions(options, { of: 'toPlain', table: TO_PLAIN_OPTIONS })
  const { base, initial } = options ?? {}
  if ((base === undefined) === (initial === undefined)) {
    throw new ConfigError({
      where: base === undefined ? 'base' : 'initial',
      what: base === undefined ? 'missing, and initial too' : 'only without base',
      expected: 'the original base, or the adapter before training',
    })
  }
  const opened = await openAdapter(adapter, 'adapter')
  const { convertToPlain } = await import('../merge/convert.js')
  if (initial !== undefined) return convertToPlain(opened, await openAdapter(initial, 'initial'))
  if (typeof base === 'function') return convertToPlain(opened, base)
  const { directory, file } = await openSource(base!, 'base')
  if (file !== undefined && !/\.(safetensors|json)$/.test(file)) {
    throw new UnsupportedError({
      where: `${directory.name}/${file}`,
      what: 'the start of an adapter is not found in such a file',
      expected: 'a .safetensors file, or a folder with a checkpoint',
    })
  }
  return convertToPlain(opened, directory, { basePath: file })
}

/** An adapter in memory, or the one in a source. */
export async function openAdapter(adapter: Source | LoraAdapter, where: string): Promise<LoraAdapter> {
  if (adapter instanceof LoraAdapter) return adapter
  if (!SOURCE.accepts(adapter))
    checkArgument(
      adapter,
      kind(`a LoraAdapter, ${SOURCE.expected}`, () => false),
      where,
    )
  const directory = await openFolder(adapter, where)
  return (await import('../peft/adapter-folder.js')).loadAdapter(directory)
}
