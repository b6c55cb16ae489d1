// Opens and saves adapters. The code that reads PEFT's files is loaded with the first call.

import type { Source, Target } from '../core/base/bytes.js'
import { ConfigError, UnsupportedError } from '../core/base/errors.js'
import { checkArgument, checkOptions, isObject } from '../core/base/options.js'
import type { RemoteOptions } from '../files/io/hub/directory.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { BaseWeights } from '../lora/init/to-plain.js'
import type { SaveOptions } from '../lora/peft/adapter-folder.js'
import type { LoadOptions } from '../lora/peft/open.js'
import { isAdapter } from '../lora/run-adapter.js'
import { ADAPTER } from '../model/source-values.js'
import { SAVE_OPTIONS, TO_PLAIN_OPTIONS } from './gen/options.js'
import { LOAD_OPTIONS } from './gen/run-options.js'
import type { AdapterToMerge } from './merge-options.js'
import { adapterOrFolder, openFolder, openSource, openTarget } from './sources.js'

export async function loadAdapter(source: Source, options: LoadOptions = {}): Promise<LoraAdapter> {
  checkOptions(options, 'loadAdapter', LOAD_OPTIONS)
  const directory = await openFolder(source, 'source')
  return (await import('../lora/peft/adapter-folder.js')).loadAdapter(directory, options)
}

export async function saveAdapter(adapter: LoraAdapter, target: Target, options: SaveOptions = {}): Promise<void> {
  checkArgument(adapter, ADAPTER, 'adapter')
  checkOptions(options, 'saveAdapter', SAVE_OPTIONS)
  const directory = openTarget(target, 'target')
  const peft = await import('../lora/peft/adapter-folder.js')
  return peft.saveInto(adapter, directory, options)
}

/** Options of `toPlain`. Give either `base` or `initial`. */
export interface ToPlainOptions {
  /**
   * The base as it was before training: a safetensors checkpoint, or a function that returns the weight (d, k) of a
   * layer by name. Enough for `pissa` and `olora`, but not for `pissa-niter-N`.
   * @help the original base, a safetensors checkpoint; enough for PiSSA (but not pissa_niter_N) and OLoRA
   */
  base?: Source | BaseWeights | undefined
  /**
   * The adapter as it was before training, if you saved it. Exact for every start; `pissa-niter-N`, `lora-ga` and
   * `corda` need it.
   * @flag DIR|ID
   */
  initial?: Source | LoraAdapter | undefined
}

export async function toPlain(adapter: Source | LoraAdapter, options: ToPlainOptions): Promise<LoraAdapter> {
  checkOptions(options, 'toPlain', TO_PLAIN_OPTIONS)
  const { base, initial } = options ?? {}
  if ((base === undefined) === (initial === undefined)) {
    throw new ConfigError({
      where: base === undefined ? 'base' : 'initial',
      what: base === undefined ? 'base and initial are both missing' : 'not together with base',
      expected: 'the original base, or the adapter before training',
    })
  }
  const opened = await openAdapter(adapter, 'adapter')
  const plain = await plainOf(opened, options)
  plain.chatTemplate = opened.chatTemplate
  plain.prompts = opened.prompts
  return plain
}

async function plainOf(opened: LoraAdapter, { base, initial }: ToPlainOptions): Promise<LoraAdapter> {
  const { convertToPlain } = await import('../merge/tools/to-plain.js')
  if (initial !== undefined) return convertToPlain(opened, await openAdapter(initial, 'initial'))
  if (typeof base === 'function') return convertToPlain(opened, base)
  const { directory, file } = await openSource(base!, 'base')
  if (file !== undefined && !/\.(safetensors|json)$/.test(file)) {
    throw new UnsupportedError({
      where: `${directory.name}/${file}`,
      what: 'the initial values of an adapter cannot be computed from such a file',
      expected: 'a .safetensors file, or a folder with a checkpoint',
    })
  }
  return convertToPlain(opened, directory, file)
}

export async function openAdapter(adapter: Source | LoraAdapter, where: string): Promise<LoraAdapter> {
  const opened = await adapterOrFolder(adapter, where)
  return isAdapter(opened) ? opened : (await import('../lora/peft/adapter-folder.js')).loadAdapter(opened)
}

export async function weightedAdapter(given: AdapterToMerge, options: RemoteOptions = {}) {
  const isAlone = !isObject(given) || !('adapter' in given) || ADAPTER.accepts(given)
  const { adapter, weight } = (isAlone ? { adapter: given } : given) as { adapter: LoraAdapter; weight?: number }
  return { adapter: await adapterOrFolder(adapter, 'adapters', options), ...(weight !== undefined && { weight }) }
}
