// The options of merging and unmerging, and the tables that check them.

import {
  BOOLEAN,
  COUNT,
  FUNCTION,
  isObject,
  type Kind,
  kind,
  listOf,
  OBJECT,
  type OptionTable,
  oneOf,
  SIGNAL,
} from '../base/options.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { MergeSettings, PathSettings } from '../merge/settings.js'
import { ADAPTER } from './adapters.js'
import { DTYPE } from './model.js'
import { SOURCE, type Source, TARGET, type Target } from './sources.js'

/** An adapter to merge: an adapter in memory, or a source. `weight` multiplies its change. Default 1. */
export type AdapterToMerge =
  | LoraAdapter
  | Source
  | { readonly adapter: LoraAdapter | Source; readonly weight?: number | undefined }

/** Options of merging and unmerging. */
export interface MergingOptions extends Omit<MergeSettings, 'tied' | 'outDtype' | 'quantized'>, PathSettings {
  /** One adapter, or several adapters. Their changes are added. */
  adapters: AdapterToMerge | readonly AdapterToMerge[]
  /** The place of the result. A path that ends in .onnx or .safetensors is a file. Other paths are folders, which also get the base's configuration and tokenizer. */
  out: Target
}

/** Options of {@link merge}. */
export interface MergeOptions extends MergingOptions, Pick<MergeSettings, 'tied' | 'outDtype' | 'quantized'> {
  /** A folder with a model, an .onnx file, a safetensors file or its index. */
  base: Source
}

/** Options of {@link unmerge}. */
export interface UnmergeOptions extends MergingOptions {
  /** The result of a merge. */
  merged: Source
  /** The original base checkpoint. The report counts the values that differ from it. Not for .onnx. */
  original?: Source | undefined
  /** Use `keep` if the merge used `tied: 'keep'`. Leave it out if the merge used `untie`. Default `refuse`. Not for .onnx. */
  tied?: 'refuse' | 'keep' | undefined
}

const isAdapterToMerge = (value: unknown): boolean =>
  ADAPTER.accepts(value) ||
  SOURCE.accepts(value) ||
  (isObject(value) &&
    (ADAPTER.accepts(value.adapter) || SOURCE.accepts(value.adapter)) &&
    ['undefined', 'number'].includes(typeof value.weight) &&
    Object.keys(value).every((key) => key === 'adapter' || key === 'weight'))

export const ADAPTER_TO_MERGE = kind('a path, a folder, a LoraAdapter, or { adapter, weight }', isAdapterToMerge)

const ADAPTERS: Kind = kind(
  `${ADAPTER_TO_MERGE.expected}; or a list of them`,
  (value) => isAdapterToMerge(value) || (listOf(ADAPTER_TO_MERGE).accepts(value) && (value as unknown[]).length > 0),
)

const MERGING: OptionTable<MergingOptions> = {
  adapters: ADAPTERS,
  out: TARGET,
  format: oneOf('onnx', 'safetensors', 'both'),
  dtype: DTYPE,
  allowMissing: BOOLEAN,
  weightsOnly: BOOLEAN,
  modules: OBJECT,
  threads: COUNT,
  share: kind('{ index, count } with 0 ≤ index < count', (value) => isObject(value) && isShare(value)),
  fsync: BOOLEAN,
  overwrite: BOOLEAN,
  maxShardBytes: COUNT,
  reproducible: BOOLEAN,
  signal: SIGNAL,
  onProgress: FUNCTION,
  strict: BOOLEAN,
  externalData: oneOf('copy', 'hardlink'),
}

export const MERGE: OptionTable<MergeOptions> = {
  ...MERGING,
  base: SOURCE,
  tied: oneOf('refuse', 'untie', 'keep'),
  outDtype: oneOf('fp32', 'fp16', 'bf16', 'keep'),
  quantized: oneOf('branches', 'requantize'),
}

export const UNMERGE: OptionTable<UnmergeOptions> = {
  ...MERGING,
  merged: SOURCE,
  original: SOURCE,
  tied: oneOf('refuse', 'keep'),
}

function isShare({ index, count }: Record<string, unknown>): boolean {
  return (
    Number.isSafeInteger(index) &&
    Number.isSafeInteger(count) &&
    0 <= (index as number) &&
    (index as number) < (count as number)
  )
}
